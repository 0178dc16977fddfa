"""Triton kernels for a frame cache's hot loops, one pass over memory each. Truths: cache_plain.py.

Shape letters: B batch, T tokens of a storage, L tokens read, R recent queries, N heads, D head dim.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longvid.kernels.backend import interpreting


@triton.jit
def rotate_tokens_kernel(
    source_ptr,
    cos_ptr,
    sin_ptr,
    index_ptr,
    out_ptr,
    length,
    heads,
    stride_sb,
    stride_sl,
    stride_sh,
    stride_ob,
    stride_ol,
    stride_oh,
    HALF: tl.constexpr,  # rotary pairs, head dim / 2
    BLOCK_HALF: tl.constexpr,
    BLOCK_L: tl.constexpr,
    GATHER: tl.constexpr,
):
    """Read a token's key wherever it lies, turn it to its new position, write it: re-phasing costs no pass of its own.

    (even, odd) -> (even cos - odd sin, even sin + odd cos), RoFormer eq. 34. A program turns all heads of its tokens,
    so that cosines and sines are loaded once.
    """
    token = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    batch = tl.program_id(1).to(tl.int64)
    pair = tl.arange(0, BLOCK_HALF)
    inside = (token < length)[:, None] & (pair < HALF)[None, :]
    cos = tl.load(cos_ptr + token[:, None] * HALF + pair[None, :], mask=inside, other=0.0)
    sin = tl.load(sin_ptr + token[:, None] * HALF + pair[None, :], mask=inside, other=0.0)
    origin = token
    if GATHER:
        origin = tl.load(index_ptr + token, mask=token < length, other=0)
    side = tl.arange(0, 2)
    both = inside[:, :, None] & (side < 2)[None, None, :]
    element = pair[None, :, None] * 2 + side[None, None, :]
    source = source_ptr + batch * stride_sb + origin.to(tl.int64)[:, None, None] * stride_sl + element
    target = out_ptr + batch * stride_ob + token.to(tl.int64)[:, None, None] * stride_ol + element
    for head in range(heads):
        even, odd = tl.split(tl.load(source + head * stride_sh, mask=both, other=0.0).to(tl.float32))
        turned = tl.join(even * cos - odd * sin, even * sin + odd * cos)
        tl.store(target + head * stride_oh, turned.to(out_ptr.dtype.element_ty), mask=both)


@triton.jit
def column_max_kernel(
    q_ptr,
    k_ptr,
    out_ptr,
    queries,
    length,
    heads,
    factor,
    stride_qb,
    stride_ql,
    stride_qh,
    stride_kb,
    stride_kl,
    stride_kh,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """score_t = factor * max_r sum_h q_rh . k_th, without the R x T matrix (Deep Forcing, eq. 7, fused by maximum)."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    batch = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    k_in = (t < length)[:, None] & (d < HEAD_DIM)[None, :]
    k_tile = k_ptr + batch * stride_kb + t.to(tl.int64)[:, None] * stride_kl + d[None, :]
    best = tl.full([BLOCK_T], -float("inf"), tl.float32)
    for first in range(0, queries, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        q_in = (r < queries)[:, None] & (d < HEAD_DIM)[None, :]
        q_tile = q_ptr + batch * stride_qb + r.to(tl.int64)[:, None] * stride_ql + d[None, :]
        dots = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
        for head in range(heads):
            q = tl.load(q_tile + head * stride_qh, mask=q_in, other=0.0)
            k = tl.load(k_tile + head * stride_kh, mask=k_in, other=0.0)
            if UPCAST:
                q = q.to(tl.float32)
                k = k.to(tl.float32)
            dots = tl.dot(q, tl.trans(k), dots, input_precision=PRECISION)
        dots = tl.where((r < queries)[:, None], dots, -float("inf"))
        best = tl.maximum(best, tl.max(dots, 0))
    tl.store(out_ptr + batch * length + t, best * factor, mask=t < length)


@triton.jit
def column_sum_kernel(
    q_ptr,  # [B, N * D] float32: the queries, summed
    k_ptr,
    out_ptr,
    length,
    width,
    factor,
    stride_kb,
    stride_kl,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """score_t = factor * (sum_r q_r) . k_t over all heads at once: a matrix-vector product, keys read once."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    batch = tl.program_id(1).to(tl.int64)
    rows = k_ptr + batch * stride_kb + t.to(tl.int64)[:, None] * stride_kl
    total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for first in range(0, width, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (t < length)[:, None] & (c < width)[None, :]
        k = tl.load(rows + c[None, :], mask=inside, other=0.0).to(tl.float32)
        q = tl.load(q_ptr + batch * width + c, mask=c < width, other=0.0)
        total += k * q[None, :]
    tl.store(out_ptr + batch * length + t, tl.sum(total, 1) * factor, mask=t < length)


@triton.jit
def column_mass_kernel(
    q_ptr,
    k_ptr,
    lse_ptr,
    out_ptr,
    queries,
    length,
    heads,
    scale_log2,
    stride_qb,
    stride_ql,
    stride_qh,
    stride_kb,
    stride_kl,
    stride_kh,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """mass_ht = sum_r exp(scale * q_rh . k_th - lse_hr): what the recent queries attend to, column by column."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    head = tl.program_id(1) % heads
    batch = (tl.program_id(1) // heads).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    k_in = (t < length)[:, None] & (d < HEAD_DIM)[None, :]
    k_base = k_ptr + batch * stride_kb + head * stride_kh
    k = tl.load(k_base + t.to(tl.int64)[:, None] * stride_kl + d[None, :], mask=k_in, other=0.0)
    if UPCAST:
        k = k.to(tl.float32)
    q_base = q_ptr + batch * stride_qb + head * stride_qh
    lse_base = lse_ptr + tl.program_id(1).to(tl.int64) * queries
    mass = tl.zeros([BLOCK_T], tl.float32)
    for first in range(0, queries, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        q_in = (r < queries)[:, None] & (d < HEAD_DIM)[None, :]
        q = tl.load(q_base + r.to(tl.int64)[:, None] * stride_ql + d[None, :], mask=q_in, other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
        lse_log2 = tl.load(lse_base + r, mask=r < queries, other=float("inf")) * 1.4426950408889634
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2
        mass += tl.sum(tl.exp2(s - lse_log2[None, :]), 1)  # a query past the end has lse +inf and weighs 0
    tl.store(out_ptr + tl.program_id(1).to(tl.int64) * length + t, mass, mask=t < length)


@triton.jit
def gather_tokens_kernel(
    k_ptr,
    v_ptr,
    index_ptr,
    k_out_ptr,
    v_out_ptr,
    length,
    width,
    stride_kb,
    stride_kl,
    stride_vb,
    stride_vl,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Copy the chosen tokens' keys and values to packed storage, [B, L, width] each."""
    token = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    batch = tl.program_id(2).to(tl.int64)
    origin = tl.load(index_ptr + batch * length + token, mask=token < length, other=0).to(tl.int64)
    inside = (token < length)[:, None] & (c < width)[None, :]
    target = batch * length * width + token.to(tl.int64)[:, None] * width + c[None, :]
    k = tl.load(k_ptr + batch * stride_kb + origin[:, None] * stride_kl + c[None, :], mask=inside)
    v = tl.load(v_ptr + batch * stride_vb + origin[:, None] * stride_vl + c[None, :], mask=inside)
    tl.store(k_out_ptr + target, k, mask=inside)
    tl.store(v_out_ptr + target, v, mask=inside)


@triton.jit
def ema_merge_kernel(
    master_ptr,
    evicted_ptr,
    out_ptr,
    count,
    alpha,
    stride_mb,
    stride_eb,
    stride_ob,
    BLOCK: tl.constexpr,
):
    """master <- alpha master + (1 - alpha) evicted (Reward Forcing, sec. 3.2), float32; out <- master, rounded once."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    batch = tl.program_id(1).to(tl.int64)
    master = tl.load(master_ptr + batch * stride_mb + i, mask=i < count)
    evicted = tl.load(evicted_ptr + batch * stride_eb + i, mask=i < count).to(tl.float32)
    merged = alpha * master + (1.0 - alpha) * evicted
    tl.store(master_ptr + batch * stride_mb + i, merged, mask=i < count)
    tl.store(out_ptr + batch * stride_ob + i, merged.to(out_ptr.dtype.element_ty), mask=i < count)


# -- launching -------------------------------------------------------------------------------------------------------


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _token_rows(x: Tensor) -> Tensor:
    """The same tokens with [N, D] contiguous inside each: what the copy kernels take."""
    return x if x.stride(-1) == 1 and x.stride(-2) == x.shape[-1] else x.contiguous()


def _head_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def rotate_tokens(source_BTND: Tensor, cos: Tensor, sin: Tensor, index: Tensor | None, out_BLND: Tensor) -> None:
    source = _head_rows(source_BTND)
    half, length = source.shape[-1] // 2, out_BLND.shape[1]
    cos, sin = cos.reshape(length, half).contiguous(), sin.reshape(length, half).contiguous()
    block = 16
    rotate_tokens_kernel[(triton.cdiv(length, block), source.shape[0])](
        source,
        cos,
        sin,
        index if index is not None else cos,
        out_BLND,
        length,
        source.shape[2],
        *source.stride()[:3],
        *out_BLND.stride()[:3],
        HALF=half,
        BLOCK_HALF=_power(half),
        BLOCK_L=block,
        GATHER=index is not None,
    )


def column_scores(q_BRND: Tensor, k_BTND: Tensor, fusion: str) -> Tensor:
    batch, length, heads, dim = k_BTND.shape
    out = torch.empty(batch, length, dtype=torch.float32, device=k_BTND.device)
    factor = dim**-0.5 / heads
    if fusion == "sum":
        k = _token_rows(k_BTND)
        q_sum = q_BRND.float().sum(1).flatten(1).contiguous()
        column_sum_kernel[(triton.cdiv(length, 32), batch)](
            q_sum, k, out, length, heads * dim, factor, *k.stride()[:2], BLOCK_T=32, BLOCK_C=128
        )
        return out
    q, k = _head_rows(q_BRND), _head_rows(k_BTND)
    column_max_kernel[(triton.cdiv(length, 64), batch)](
        q,
        k,
        out,
        q.shape[1],
        length,
        heads,
        factor,
        *q.stride()[:3],
        *k.stride()[:3],
        **_dot_constants(dim, q.element_size()),
    )
    return out


def _dot_constants(dim: int, element_size: int) -> dict[str, object]:
    small = element_size == 4 or dim > 128
    return {
        "HEAD_DIM": dim,
        "BLOCK_D": max(16, _power(dim)),
        "BLOCK_R": 32 if small else 64,
        "BLOCK_T": 64,
        "PRECISION": "ieee",
        "UPCAST": interpreting(),
        "num_warps": 4,
        "num_stages": 2,
    }


def column_mass(q_BRND: Tensor, k_BTND: Tensor, lse_BNR: Tensor, scale: float) -> Tensor:
    q, k = _head_rows(q_BRND), _head_rows(k_BTND)
    batch, length, heads, dim = k.shape
    out = torch.empty(batch, heads, length, dtype=torch.float32, device=k.device)
    column_mass_kernel[(triton.cdiv(length, 64), batch * heads)](
        q,
        k,
        lse_BNR.contiguous(),
        out,
        q.shape[1],
        length,
        heads,
        scale * 1.4426950408889634,
        *q.stride()[:3],
        *k.stride()[:3],
        **_dot_constants(dim, q.element_size()),
    )
    return out


def gather_tokens(k_BTND: Tensor, v_BTND: Tensor, index_BL: Tensor) -> tuple[Tensor, Tensor]:
    k, v = _token_rows(k_BTND), _token_rows(v_BTND)
    batch, _, heads, dim = k.shape
    length, width = index_BL.shape[1], heads * dim
    k_out = torch.empty(batch, length, heads, dim, dtype=k.dtype, device=k.device)
    v_out = torch.empty(batch, length, heads, dim, dtype=v.dtype, device=v.device)
    block_l, block_c = 16, min(512, _power(width))
    gather_tokens_kernel[(triton.cdiv(length, block_l), triton.cdiv(width, block_c), batch)](
        k,
        v,
        index_BL.contiguous(),
        k_out,
        v_out,
        length,
        width,
        *k.stride()[:2],
        *v.stride()[:2],
        BLOCK_L=block_l,
        BLOCK_C=block_c,
    )
    return k_out, v_out


def ema_merge(master_BTND: Tensor, evicted_BTND: Tensor, alpha: float, out_BTND: Tensor) -> None:
    evicted = evicted_BTND if evicted_BTND[0].is_contiguous() else evicted_BTND.contiguous()
    count = master_BTND[0].numel()
    ema_merge_kernel[(triton.cdiv(count, 1024), master_BTND.shape[0])](
        master_BTND,
        evicted,
        out_BTND,
        count,
        alpha,
        master_BTND.stride(0),
        evicted.stride(0),
        out_BTND.stride(0),
        BLOCK=1024,
    )
