"""The hot loops of a frame cache: re-phasing keys, scoring tokens, compacting, merging evicted frames.

Most have a Triton kernel (cache_triton.py) that passes over memory once and a plain PyTorch twin (cache_plain.py).
`backend`: "auto" (Triton on a GPU, plain elsewhere), "triton" or "plain"; one that cannot run falls back with a single
warning, or raises BackendError if `strict`. The two for single heads, `head_scores` and `gather_head_tokens`, are plain
PyTorch on every device and so take no `backend`. None of these functions is differentiable.

Shape letters: B batch, T tokens of a storage, L tokens read, R recent queries, N heads, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longvid.kernels import cache_plain
from longvid.kernels.backend import interpreting, on_device, resolve, triton_reason

__all__ = [
    "CACHE_BACKENDS",
    "column_mass",
    "column_scores",
    "ema_merge",
    "gather_head_tokens",
    "gather_tokens",
    "head_scores",
    "rotate_tokens",
]

CACHE_BACKENDS = ("auto", "triton", "plain")
FUSIONS = ("sum", "max")


def _run(name: str, backend: str, x: Tensor, strict: bool, *arguments: object) -> Any:
    """Function `name` of the implementation that serves `backend` on x's device."""
    if backend == "auto":
        backend = "triton" if x.device.type == "cuda" or interpreting() else "plain"
    reasons = {"triton": triton_reason(x.device), "plain": None}
    if resolve(backend, reasons, "plain", strict=strict, what="cache kernels") == "plain":
        return getattr(cache_plain, name)(*arguments)
    from longvid.kernels import cache_triton

    with on_device(x.device):
        return getattr(cache_triton, name)(*arguments)


@torch.no_grad()
def rotate_tokens(
    source_BTND: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    index: Tensor | None = None,
    out: Tensor | None = None,
    backend: str = "auto",
    strict: bool = False,
) -> Tensor:
    """Read tokens from a storage and rotate each to its position, in one pass.

    source [B, T, N, D], D even, interleaved pairs. cos, sin: float32 tables of the L tokens read, [L, D/2] or
    [L, 1, D/2]. index: int [L], which token of the storage each of them is; None: the first L in order. out
    [B, L, N, D] may have another dtype and any strides (last dimension contiguous); it must not overlap what is read.
    Angles are applied in float32. Raises ValueError on tables that do not fit.
    """
    length = len(cos) if index is None else len(index)
    half = source_BTND.shape[-1] // 2
    if source_BTND.shape[-1] % 2:
        raise ValueError(f"head_dim={source_BTND.shape[-1]}: rotary pairs need an even number")
    if cos.numel() != length * half or sin.numel() != length * half:
        raise ValueError(f"cos {tuple(cos.shape)}: must hold {length} tokens x {half} pairs")
    if index is None and length > source_BTND.shape[1]:
        raise ValueError(f"cos has {length} tokens: the source holds {source_BTND.shape[1]}; give an index")
    shape = (source_BTND.shape[0], length, *source_BTND.shape[2:])
    if out is None:
        out = torch.empty(shape, dtype=source_BTND.dtype, device=source_BTND.device)
    elif out.shape != shape or out.stride(-1) != 1:
        raise ValueError(f"out {tuple(out.shape)}: must be {shape} with a contiguous last dimension")
    source = source_BTND if index is not None else source_BTND[:, :length]
    _run("rotate_tokens", backend, source, strict, source, cos, sin, index, out)
    return out


@torch.no_grad()
def column_scores(
    q_BRND: Tensor, k_BTND: Tensor, *, fusion: str = "sum", backend: str = "auto", strict: bool = False
) -> Tensor:
    """Importance of each cached token to the recent queries: raw dot products summed over heads, fused over queries.

    q [B, R, N, D] and k [B, T, N, D], both rotated. Deep Forcing, arXiv 2512.05081, eq. 7: no softmax. fusion "sum" or
    "max" over the queries. Returns float32 [B, T], divided by sqrt(D) N. The R x T products are never stored.
    """
    _check_fusion(fusion)
    return _run("column_scores", backend, k_BTND, strict, q_BRND, k_BTND, fusion)  # type: ignore[no-any-return]


@torch.no_grad()
def head_scores(q_BRND: Tensor, k_BTND: Tensor, *, fusion: str = "sum") -> Tensor:
    """Importance of each cached token to the recent queries, head by head: `column_scores` without its sum over heads.

    q [B, R, N, D] and k [B, T, N, D], both rotated. fusion "sum" or "max" over the queries. Returns float32 [B, N, T],
    divided by sqrt(D); for "sum" its mean over heads is what `column_scores` gives. Plain PyTorch on every device; the
    R x T products of "max" are made a few queries at a time. Raises ValueError on another fusion.
    """
    _check_fusion(fusion)
    return cache_plain.head_scores(q_BRND, k_BTND, fusion)


def _check_fusion(fusion: str) -> None:
    if fusion not in FUSIONS:
        raise ValueError(f"fusion={fusion!r}: must be 'sum' or 'max'")


@torch.no_grad()
def column_mass(
    q_BRND: Tensor,
    k_BTND: Tensor,
    lse_BNR: Tensor,
    *,
    scale: float | None = None,
    backend: str = "auto",
    strict: bool = False,
) -> Tensor:
    """Attention that each cached token receives from the recent queries: column sums of the softmax, [B, N, T] float32.

    lse [B, N, R]: the queries' log-sum-exp, as `block_sparse_attention(..., return_lse=True)` gives it; every row of
    the result over all keys then sums to R. The R x T matrix is never stored. `scale` defaults to D^-0.5.
    """
    scale = k_BTND.shape[-1] ** -0.5 if scale is None else scale
    return _run("column_mass", backend, k_BTND, strict, q_BRND, k_BTND, lse_BNR, scale)  # type: ignore[no-any-return]


@torch.no_grad()
def gather_tokens(
    k_BTND: Tensor, v_BTND: Tensor, index_BL: Tensor, *, backend: str = "auto", strict: bool = False
) -> tuple[Tensor, Tensor]:
    """Keys and values of the chosen tokens, packed: (k [B, L, N, D], v [B, L, N, D]). index: int [B, L], any order."""
    if k_BTND.shape != v_BTND.shape or index_BL.shape[0] != k_BTND.shape[0]:
        raise ValueError(
            f"k {tuple(k_BTND.shape)}, v {tuple(v_BTND.shape)}, index {tuple(index_BL.shape)}: must share the batch, "
            "and k and v their shape"
        )
    return _run("gather_tokens", backend, k_BTND, strict, k_BTND, v_BTND, index_BL)  # type: ignore[no-any-return]


@torch.no_grad()
def gather_head_tokens(k_BTND: Tensor, v_BTND: Tensor, index_BLN: Tensor) -> tuple[Tensor, Tensor]:
    """`gather_tokens` where each head has its own index, int [B, L, N]. Plain PyTorch on every device.

    Returns (k [B, L, N, D], v [B, L, N, D]); token l of head n is token index[b, l, n] of the storage. Raises
    ValueError when k and v differ in shape, or the index in batch or heads.
    """
    if k_BTND.shape != v_BTND.shape or index_BLN.shape[::2] != k_BTND.shape[:3:2]:
        raise ValueError(
            f"k {tuple(k_BTND.shape)}, v {tuple(v_BTND.shape)}, index {tuple(index_BLN.shape)}: must share batch and "
            "heads, and k and v their shape"
        )
    return cache_plain.gather_head_tokens(k_BTND, v_BTND, index_BLN)


@torch.no_grad()
def ema_merge(
    master_BTND: Tensor,
    evicted_BTND: Tensor,
    alpha: float,
    *,
    out: Tensor,
    backend: str = "auto",
    strict: bool = False,
) -> None:
    """EMA-Sink (Reward Forcing, arXiv 2512.04678, sec. 3.2): master <- alpha master + (1 - alpha) evicted, in place.

    master [B, T, N, D] float32 (in half precision 0.999 x rounds back to x), evicted and out the same shape in the
    storage's dtype; `out` receives the merged value rounded once. Tokens of a sample contiguous in master and out.
    """
    if master_BTND.dtype != torch.float32:
        raise ValueError(f"master is {master_BTND.dtype}: must be float32, or small steps of the average are lost")
    if not master_BTND.shape == evicted_BTND.shape == out.shape:
        raise ValueError(
            f"master {tuple(master_BTND.shape)}, evicted {tuple(evicted_BTND.shape)}, out {tuple(out.shape)}: "
            "must have one shape"
        )
    if not (master_BTND[0].is_contiguous() and out[0].is_contiguous()):
        raise ValueError("master and out: the tokens of a sample must be contiguous")
    _run("ema_merge", backend, out, strict, master_BTND, evicted_BTND, alpha, out)
