"""Block-sparse attention: one function, several implementations, one truth.

    naive.py    masked softmax in float64: what all others are compared with
    gather.py   plain PyTorch, any device, forward and backward: the default without a GPU
    flex.py     torch's compiled flex_attention: opt-in, inference
    fused.py    the Triton kernels, forward and backward: the default on a GPU

Shape letters: B batch, N heads, L query tokens, K key tokens, D head dim.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from longvid.kernels.attention.flex import flex_block_sparse_attention, flex_reason
from longvid.kernels.attention.gather import gather_block_sparse_attention
from longvid.kernels.attention.naive import naive_block_sparse_attention
from longvid.kernels.backend import interpreting, on_device, resolve, triton_reason
from longvid.kernels.blocks import BlockCSR

__all__ = ["ATTENTION_BACKENDS", "block_sparse_attention", "choose_backend", "merge_attention"]

ATTENTION_BACKENDS = ("auto", "triton", "gather", "flex", "naive")
WIDEST_HEAD = 256


def _triton_reason(q: Tensor) -> str | None:
    if q.shape[-1] > WIDEST_HEAD:
        return f"head_dim={q.shape[-1]} is over {WIDEST_HEAD}"
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the kernels take float16, bfloat16 and float32, not {q.dtype}"
    return triton_reason(q.device)


def choose_backend(
    backend: str, q: Tensor, blocks: BlockCSR, *, needs_grad: bool, needs_lse: bool, strict: bool = False
) -> str:
    """The implementation that a call will use. "auto": Triton on a GPU (or in its interpreter), gather elsewhere."""
    if backend == "auto":
        backend = "triton" if q.device.type == "cuda" or interpreting() else "gather"
    reasons = {
        "triton": _triton_reason(q),
        "gather": None,
        "flex": flex_reason(q, blocks, needs_grad=needs_grad, needs_lse=needs_lse),
        "naive": None,
    }
    return resolve(backend, reasons, "gather", strict=strict, what="block-sparse attention")


def _check(q: Tensor, k: Tensor, v: Tensor, blocks: BlockCSR) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: must be [batch, heads, tokens, head_dim], "
            "k and v alike"
        )
    if (q.shape[0], q.shape[1], q.shape[3]) != (k.shape[0], k.shape[1], k.shape[3]):
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}: batch, heads and head_dim must agree "
            "(repeat key heads for grouped-query attention)"
        )
    if (q.shape[2], k.shape[2]) != (blocks.q_len, blocks.kv_len):
        raise ValueError(
            f"q has {q.shape[2]} tokens and k {k.shape[2]}: blocks cover {blocks.q_len} and {blocks.kv_len}; build the "
            "block list for these lengths"
        )
    if blocks.mask_heads not in (1, q.shape[1]):
        raise ValueError(f"blocks.mask_heads={blocks.mask_heads}: must be 1 or the number of heads, {q.shape[1]}")


@overload
def block_sparse_attention(
    q_BNLD: Tensor,
    k_BNKD: Tensor,
    v_BNKD: Tensor,
    blocks: BlockCSR,
    *,
    scale: float | None = ...,
    return_lse: Literal[False] = ...,
    backend: str = ...,
    strict: bool = ...,
) -> Tensor: ...


@overload
def block_sparse_attention(
    q_BNLD: Tensor,
    k_BNKD: Tensor,
    v_BNKD: Tensor,
    blocks: BlockCSR,
    *,
    scale: float | None = ...,
    return_lse: Literal[True],
    backend: str = ...,
    strict: bool = ...,
) -> tuple[Tensor, Tensor]: ...


# A host-side block list chooses the work, so torch.compile breaks the graph here; flex compiles its own inside.
@torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call, untyped-decorator]
def block_sparse_attention(
    q_BNLD: Tensor,
    k_BNKD: Tensor,
    v_BNKD: Tensor,
    blocks: BlockCSR,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
    strict: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(q k^T * scale) v over the kept blocks only: FlashAttention's online softmax (Dao 2022) on a block list.

    q [B, N, L, D]; k, v [B, N, K, D]; bf16, fp16, fp32 (fp64 outside Triton), any strides. `scale` defaults to
    D^-0.5. Returns out like q and, if `return_lse`, the natural-log sum of exponentials, float32 [B, N, L], which
    `merge_attention` takes. A query block that keeps nothing gives out 0 and lse -inf. Differentiable in both outputs.
    `backend` is one of ATTENTION_BACKENDS; one that cannot run falls back with a warning, or raises if `strict`.
    Raises ValueError on shapes that do not agree with each other or with `blocks`.
    """
    _check(q_BNLD, k_BNKD, v_BNKD, blocks)
    scale = q_BNLD.shape[-1] ** -0.5 if scale is None else scale
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q_BNLD, k_BNKD, v_BNKD))
    chosen = choose_backend(backend, q_BNLD, blocks, needs_grad=needs_grad, needs_lse=return_lse, strict=strict)
    lse: Tensor | None
    if chosen == "triton":
        from longvid.kernels.attention.fused import triton_block_sparse_attention

        with on_device(q_BNLD.device):
            out, lse = triton_block_sparse_attention(q_BNLD, k_BNKD, v_BNKD, blocks, scale)
    elif chosen == "gather":
        out, lse = gather_block_sparse_attention(q_BNLD, k_BNKD, v_BNKD, blocks, scale)
    elif chosen == "flex":
        out, lse = flex_block_sparse_attention(q_BNLD, k_BNKD, v_BNKD, blocks, scale, needs_lse=return_lse)
    else:
        out, lse = naive_block_sparse_attention(q_BNLD, k_BNKD, v_BNKD, blocks, scale)
        out, lse = out.to(q_BNLD.dtype), lse.to(torch.float64 if q_BNLD.dtype == torch.float64 else torch.float32)
    if not return_lse:
        return out
    assert lse is not None
    return out, lse


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint key sets, from the two parts (FlashAttention's rescaling).

    out [B, N, L, D], lse [B, N, L]. A part that saw nothing (lse -inf) counts for nothing; two such give 0 and -inf.
    """
    lse = torch.logaddexp(lse_a, lse_b)
    safe = torch.where(lse.isinf(), torch.zeros_like(lse), lse)
    a, b = (torch.exp(part - safe).unsqueeze(-1) for part in (lse_a, lse_b))
    return (out_a * a + out_b * b).to(out_a.dtype), lse
