"""What a frame cache does to its tokens, in plain PyTorch: the twins of cache_triton.py.

`head_scores` and `gather_head_tokens` have no Triton twin and run on every device.

Shape letters: B batch, T tokens of a storage, L tokens read, R recent queries, N heads, D head dim.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

PRODUCTS = 2**26
"""Most dot products that `head_scores` holds at a time (256 MiB): all of them at once would be tens of gigabytes."""


def rotate_tokens(source_BTND: Tensor, cos: Tensor, sin: Tensor, index: Tensor | None, out_BLND: Tensor) -> None:
    """out_l = R(angle_l) source_index(l): pairs (2i, 2i+1) turned in float32 (RoFormer, eq. 34)."""
    tokens = source_BTND if index is None else source_BTND.index_select(1, index)
    even, odd = tokens[..., ::2].float(), tokens[..., 1::2].float()
    cos, sin = cos.reshape(len(cos), 1, -1), sin.reshape(len(sin), 1, -1)
    out_BLND[..., ::2] = even * cos - odd * sin
    out_BLND[..., 1::2] = even * sin + odd * cos


def column_scores(q_BRND: Tensor, k_BTND: Tensor, fusion: str) -> Tensor:
    """fuse_r sum_h q_rh . k_th / (sqrt(D) N), [B, T] float32; fusion "sum" or "max" over the recent queries r."""
    heads, dim = k_BTND.shape[2:]
    q, k = q_BRND.flatten(2).float(), k_BTND.flatten(2).float()
    if fusion == "sum":  # the sum moves inside the product: one vector in place of R x T dot products
        fused = torch.einsum("bc,btc->bt", q.sum(1), k)
    else:
        fused = torch.einsum("brc,btc->brt", q, k).amax(1)
    return fused.mul(dim**-0.5 / heads)


def head_scores(q_BRND: Tensor, k_BTND: Tensor, fusion: str) -> Tensor:
    """fuse_r q_rh . k_th / sqrt(D), [B, N, T] float32; fusion "sum" or "max" over the recent queries r."""
    batch, length, heads, dim = k_BTND.shape
    q, k = q_BRND.float(), k_BTND.float()
    if fusion == "sum":
        fused = torch.einsum("bnd,btnd->bnt", q.sum(1), k)
    else:
        rows = max(1, PRODUCTS // (batch * heads * length))
        parts = (torch.einsum("brnd,btnd->bnrt", part, k).amax(2) for part in torch.split(q, rows, dim=1))
        fused = reduce(torch.maximum, parts)
    return fused.mul(dim**-0.5)


def column_mass(q_BRND: Tensor, k_BTND: Tensor, lse_BNR: Tensor, scale: float) -> Tensor:
    """sum_r softmax_t(scale * q_rh . k_th), [B, N, T] float32, from a known log-sum-exp."""
    logits = torch.einsum("brnd,btnd->bnrt", q_BRND.float(), k_BTND.float()) * scale
    return torch.exp(logits - lse_BNR.unsqueeze(-1)).sum(2)


def gather_tokens(k_BTND: Tensor, v_BTND: Tensor, index_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the chosen tokens, in the order of `index`, packed: [B, L, N, D] each."""
    index = index_BL.long()[..., None, None].expand(-1, -1, *k_BTND.shape[2:])
    return k_BTND.gather(1, index), v_BTND.gather(1, index)


def gather_head_tokens(k_BTND: Tensor, v_BTND: Tensor, index_BLN: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the tokens that each head chose, in the order of its `index`, packed: [B, L, N, D] each."""
    index = index_BLN.long().unsqueeze(-1).expand(-1, -1, -1, k_BTND.shape[-1])
    return k_BTND.gather(1, index), v_BTND.gather(1, index)


def ema_merge(master_BTND: Tensor, evicted_BTND: Tensor, alpha: float, out_BTND: Tensor) -> None:
    """master <- alpha * master + (1 - alpha) * evicted in float32, in place; out <- master in its own dtype."""
    master_BTND.mul_(alpha).add_(evicted_BTND.float(), alpha=1 - alpha)
    out_BTND.copy_(master_BTND)
