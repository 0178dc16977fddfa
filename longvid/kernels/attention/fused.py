"""Launching the Triton attention kernels, with their backward pass as one autograd function.

Shape letters: B batch, N heads, L query tokens, K key tokens, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longvid.kernels.attention.tiling import Tiling, tiling
from longvid.kernels.attention.triton_backward import attention_backward_kv, attention_backward_q, attention_delta
from longvid.kernels.attention.triton_forward import attention_forward
from longvid.kernels.backend import interpreting
from longvid.kernels.blocks import BlockCSR


def architecture(device: torch.device) -> int | str:
    """Compute capability times ten, or the AMD name; the interpreter counts as 80."""
    if device.type != "cuda":
        return 80
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def _head_major(x: Tensor) -> Tensor:
    """Kernels read the head dim as one contiguous run; every other stride is free."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _constants(x: Tensor, tile: Tiling, full: bool) -> dict[str, Any]:
    dim = x.shape[-1]
    return {
        "HEAD_DIM": dim,
        "BLOCK_D": max(16, 1 << (dim - 1).bit_length()),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "FULL": full,
        "PRECISION": "ieee",  # float32 inputs are multiplied in float32, not tf32
        "UPCAST": interpreting(),
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


def _strides(*tensors: Tensor) -> list[int]:
    return [s for x in tensors for s in x.stride()[:3]]


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: BlockCSR, scale: float) -> tuple[Tensor, Tensor]:
        q, k, v = (_head_major(x) for x in (q, k, v))
        batch, heads, length, dim = q.shape
        tile = tiling("forward", architecture(q.device), dim, q.element_size(), *blocks.longest())
        lists = blocks.tensors(tile.block_m, tile.block_n, q.device)
        rows = len(lists["q_start"])
        out = torch.empty_like(q)  # keeps q's strides: [B, L, N, D] storage stays as the transformer wants it
        lse = torch.empty(batch, heads, length, dtype=torch.float32, device=q.device)
        attention_forward[(rows, batch * heads)](
            q,
            k,
            v,
            out,
            lse,
            lists["q_start"],
            lists["q_stop"],
            lists["begin"],
            lists["end"],
            lists["kv_start"],
            lists["kv_stop"],
            lists["order"],
            rows,
            heads,
            blocks.mask_heads,
            scale * 1.4426950408889634,
            length,
            *_strides(q, k, v, out),
            **_constants(q, tile, blocks.tiles(tile.block_m, tile.block_n).full),
        )
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.blocks, ctx.scale = blocks, scale
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        blocks, scale = ctx.blocks, ctx.scale
        batch, heads, length, dim = q.shape
        grad, grad_lse = _head_major(grad), grad_lse.contiguous()
        arch, size = architecture(q.device), q.element_size()
        delta = torch.empty_like(lse)
        rows_of_delta = 64
        attention_delta[(-(-length // rows_of_delta), batch * heads)](
            out,
            grad,
            grad_lse,
            delta,
            heads,
            length,
            *_strides(out, grad),
            HEAD_DIM=dim,
            BLOCK_D=max(16, 1 << (dim - 1).bit_length()),
            BLOCK_M=rows_of_delta,
        )
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))

        tile = tiling("backward_q", arch, dim, size, *blocks.longest())
        lists = blocks.tensors(tile.block_m, tile.block_n, q.device)
        rows = len(lists["q_start"])
        attention_backward_q[(rows, batch * heads)](
            q,
            k,
            v,
            grad,
            lse,
            delta,
            dq,
            lists["q_start"],
            lists["q_stop"],
            lists["begin"],
            lists["end"],
            lists["kv_start"],
            lists["kv_stop"],
            lists["order"],
            rows,
            heads,
            blocks.mask_heads,
            scale,
            length,
            *_strides(q, k, v, grad, dq),
            **_constants(q, tile, blocks.tiles(tile.block_m, tile.block_n).full),
        )

        flipped = blocks.transpose()
        longest_kv, longest_q = flipped.longest()  # its rows are key blocks, its runs are queries
        tile = tiling("backward_kv", arch, dim, size, longest_q, longest_kv)
        lists = flipped.tensors(tile.block_n, tile.block_m, q.device)
        rows = len(lists["q_start"])
        attention_backward_kv[(rows, batch * heads)](
            q,
            k,
            v,
            grad,
            lse,
            delta,
            dk,
            dv,
            lists["q_start"],
            lists["q_stop"],
            lists["begin"],
            lists["end"],
            lists["kv_start"],
            lists["kv_stop"],
            lists["order"],
            rows,
            heads,
            blocks.mask_heads,
            scale,
            length,
            *_strides(q, k, v, grad, dk, dv),
            **_constants(q, tile, flipped.tiles(tile.block_n, tile.block_m).full),
        )
        return dq, dk, dv, None, None


def triton_block_sparse_attention(
    q_BNLD: Tensor, k_BNKD: Tensor, v_BNKD: Tensor, blocks: BlockCSR, scale: float
) -> tuple[Tensor, Tensor]:
    """(out like q, lse float32 [B, N, L] natural log), both differentiable. bf16, fp16 or fp32 on a GPU, or on a CPU in
    Triton's interpreter; the last dimension is copied if it is not contiguous."""
    out, lse = _TritonAttention.apply(q_BNLD, k_BNKD, v_BNKD, blocks, scale)  # type: ignore[no-untyped-call]
    return out, lse
