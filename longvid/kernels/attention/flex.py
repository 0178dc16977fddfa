"""Block-sparse attention through torch's compiled `flex_attention`: an opt-in for inference.

On a CPU it compiles a C++ kernel (20 s the first time for a shape, cached on disk afterwards) and honours block lists;
it has neither log-sum-exp nor a backward pass there, and whether it beats the gather loop depends on the processor
(docs/kernels.md has one that it does not). Run without the compiler it ignores block lists and attends to everything,
through the whole L x L matrix. torch falls back to that in silence after eight shapes, so it is compiled with
`fullgraph`, which makes falling back an error, and with room for as many shapes as there are.
"""

from __future__ import annotations

import shutil
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longvid.kernels.blocks import BlockCSR

GPU_BLOCK = 128  # tokens; its default tiles divide this
MOST_SHAPES = 1 << 16


def flex_reason(q: Tensor, blocks: BlockCSR, *, needs_grad: bool, needs_lse: bool) -> str | None:
    """Why flex_attention cannot run this call, None when it can."""
    if q.device.type == "cpu" and shutil.which("g++") is None and shutil.which("clang++") is None:
        return "it compiles C++ on a CPU and no compiler was found"
    if q.device.type == "cpu" and (needs_grad or needs_lse):
        return "on a CPU it returns neither gradients nor the log-sum-exp"
    for name, starts in (("query", blocks.q_starts), ("key", blocks.kv_starts)):
        sizes = np.diff(starts)
        if (sizes[:-1] != sizes[0]).any() or sizes[-1] > sizes[0]:
            return f"it needs {name} blocks of one size"
        if q.device.type != "cpu" and sizes[0] % GPU_BLOCK:
            return f"its GPU kernels need {name} blocks of a multiple of {GPU_BLOCK} tokens, these have {sizes[0]}"
    return None


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def flex_block_mask(blocks: BlockCSR, device: torch.device) -> Any:
    """The pattern as torch's BlockMask: padded index lists, every kept block whole."""
    from torch.nn.attention.flex_attention import BlockMask

    key = ("flex", str(device))
    if key not in blocks.memo:
        counts = np.diff(blocks.row_ptr).astype(np.int32)
        indices = np.zeros((len(counts), blocks.kv_blocks), np.int32)
        row = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(blocks.nnz) - np.repeat(blocks.row_ptr[:-1], counts)
        indices[row, place] = blocks.col_idx
        shape = (1, blocks.mask_heads, blocks.q_blocks)
        number = torch.from_numpy(counts).view(shape).to(device)
        listed = torch.from_numpy(indices).view(*shape, -1).to(device)
        blocks.memo[key] = BlockMask.from_kv_blocks(
            torch.zeros_like(number),
            torch.zeros_like(listed),
            number,
            listed,
            BLOCK_SIZE=(int(blocks.q_starts[1]), int(blocks.kv_starts[1])),
            seq_lengths=(blocks.q_len, blocks.kv_len),
        )
    return blocks.memo[key]


def flex_block_sparse_attention(
    q_BNLD: Tensor, k_BNKD: Tensor, v_BNKD: Tensor, blocks: BlockCSR, scale: float, *, needs_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """(out, lse or None). Natural-log lse [B, N, L] only where flex_attention has one (GPU)."""
    mask = flex_block_mask(blocks, q_BNLD.device)
    if q_BNLD.device.type == "cpu":  # it refuses tensors that require grad even when none is wanted
        q_BNLD, k_BNKD, v_BNKD = q_BNLD.detach(), k_BNKD.detach(), v_BNKD.detach()
    with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES, accumulated_recompile_limit=MOST_SHAPES):
        result = _compiled()(q_BNLD, k_BNKD, v_BNKD, block_mask=mask, scale=scale, return_lse=needs_lse)
    return result if needs_lse else (result, None)
