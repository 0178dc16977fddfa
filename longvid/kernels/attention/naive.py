"""Block-sparse attention that anyone believes: a masked softmax over all pairs, in float64. Quadratic; for tests.

Shape letters: B batch, N heads, L query tokens, K key tokens, D head dim.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from longvid.kernels.blocks import BlockCSR


def token_mask(blocks: BlockCSR) -> Tensor:
    """The mask at token resolution, bool [M, L, K]."""
    mask = torch.from_numpy(blocks.to_dense()).view(blocks.mask_heads, blocks.q_blocks, blocks.kv_blocks)
    rows = torch.from_numpy(np.diff(blocks.q_starts))
    cols = torch.from_numpy(np.diff(blocks.kv_starts))
    return mask.repeat_interleave(rows, 1).repeat_interleave(cols, 2)


def naive_block_sparse_attention(
    q_BNLD: Tensor, k_BNKD: Tensor, v_BNKD: Tensor, blocks: BlockCSR, scale: float
) -> tuple[Tensor, Tensor]:
    """(out [B, N, L, D], lse [B, N, L] natural log), float64, differentiable. Empty rows: out 0, lse -inf."""
    q, k, v = (x.double() for x in (q_BNLD, k_BNKD, v_BNKD))
    mask = token_mask(blocks).to(q.device)
    logits = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, -torch.inf)
    lse = torch.logsumexp(logits, -1)
    weights = torch.exp(logits - torch.where(lse.isinf(), 0.0, lse).unsqueeze(-1))
    return weights @ v, lse
