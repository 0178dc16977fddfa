"""Triton kernels: block-sparse attention, backward.

With P = exp(scale * Q K^T - lse), delta = rowsum(dO * O) - dlse:

    dV = P^T dO      dP = dO V^T      dS = P * (dP - delta)      dQ = scale * dS K      dK = scale * dS^T Q

FlashAttention-2 (Dao 2023, algorithm 2), split in two passes that each own their output, so that nothing is added
atomically: `attention_backward_q` walks the key ranges of a query range, `attention_backward_kv` the query ranges of a
key range (the transposed list). Results do not depend on the order of programs. Truth: naive.py.

Shape letters: M rows of a query range, N keys of a key range, D head dim.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attention_delta(
    out_ptr,
    grad_ptr,
    grad_lse_ptr,
    delta_ptr,
    heads,
    q_len,
    stride_ob,
    stride_oh,
    stride_ol,
    stride_gb,
    stride_gh,
    stride_gl,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """delta_i = sum_d dO_id O_id - dlse_i, once a query."""
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    inside = (m < q_len)[:, None] & (d < HEAD_DIM)[None, :]
    out_base = out_ptr + batch.to(tl.int64) * stride_ob + head.to(tl.int64) * stride_oh
    grad_base = grad_ptr + batch.to(tl.int64) * stride_gb + head.to(tl.int64) * stride_gh
    out = tl.load(out_base + m[:, None].to(tl.int64) * stride_ol + d[None, :], mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_base + m[:, None].to(tl.int64) * stride_gl + d[None, :], mask=inside, other=0.0).to(tl.float32)
    place = tl.program_id(1).to(tl.int64) * q_len + m
    grad_lse = tl.load(grad_lse_ptr + place, mask=m < q_len, other=0.0)
    tl.store(delta_ptr + place, tl.sum(out * grad, 1) - grad_lse, mask=m < q_len)


@triton.jit
def attention_backward_q(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    q_start_ptr,
    q_stop_ptr,
    begin_ptr,
    end_ptr,
    kv_start_ptr,
    kv_stop_ptr,
    order_ptr,
    rows,
    heads,
    mask_heads,
    scale,
    q_len,
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kh,
    stride_kl,
    stride_vb,
    stride_vh,
    stride_vl,
    stride_gb,
    stride_gh,
    stride_gl,
    stride_db,
    stride_dh,
    stride_dl,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FULL: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dQ of one query range."""
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    mask_row = (head % mask_heads) * rows
    row = tl.load(order_ptr + mask_row + tl.program_id(0))
    q_start = tl.load(q_start_ptr + row)
    q_stop = tl.load(q_stop_ptr + row)
    begin = tl.load(begin_ptr + mask_row + row)
    end = tl.load(end_ptr + mask_row + row)

    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    q_in = q_start + m < q_stop
    d_in = d < HEAD_DIM
    b64 = batch.to(tl.int64)
    h64 = head.to(tl.int64)
    first = q_start.to(tl.int64)
    inside = q_in[:, None] & d_in[None, :]
    q_tile = q_ptr + b64 * stride_qb + h64 * stride_qh + first * stride_ql + m[:, None] * stride_ql + d[None, :]
    grad_tile = grad_ptr + b64 * stride_gb + h64 * stride_gh + first * stride_gl + m[:, None] * stride_gl + d[None, :]
    q = tl.load(q_tile, mask=inside, other=0.0)
    grad = tl.load(grad_tile, mask=inside, other=0.0)
    if UPCAST:
        q = q.to(tl.float32)
        grad = grad.to(tl.float32)
    place = tl.program_id(1).to(tl.int64) * q_len + q_start + m
    lse_log2 = tl.load(lse_ptr + place, mask=q_in, other=0.0) * 1.4426950408889634
    delta = tl.load(delta_ptr + place, mask=q_in, other=0.0)
    k_base = k_ptr + b64 * stride_kb + h64 * stride_kh
    v_base = v_ptr + b64 * stride_vb + h64 * stride_vh

    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    start = tl.load(kv_start_ptr + begin)
    stop = tl.load(kv_stop_ptr + begin)
    for entry in range(begin, end):
        next_start = tl.load(kv_start_ptr + entry + 1)
        next_stop = tl.load(kv_stop_ptr + entry + 1)
        kv_in = start + n < stop
        k_tile = k_base + start.to(tl.int64) * stride_kl + n[:, None] * stride_kl + d[None, :]
        v_tile = v_base + start.to(tl.int64) * stride_vl + n[:, None] * stride_vl + d[None, :]
        if FULL and HEAD_DIM == BLOCK_D:
            k = tl.load(k_tile)
            v = tl.load(v_tile)
        else:
            k = tl.load(k_tile, mask=kv_in[:, None] & d_in[None, :], other=0.0)
            v = tl.load(v_tile, mask=kv_in[:, None] & d_in[None, :], other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * 1.4426950408889634)
        p = tl.exp2(s - lse_log2[:, None])
        if not FULL:
            p = tl.where(kv_in[None, :], p, 0.0)
        dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        start = next_start
        stop = next_stop
    dq_tile = dq_ptr + b64 * stride_db + h64 * stride_dh + first * stride_dl + m[:, None] * stride_dl + d[None, :]
    tl.store(dq_tile, (dq * scale).to(dq_ptr.dtype.element_ty), mask=inside)


@triton.jit
def attention_backward_kv(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    kv_start_ptr,  # the transposed list: rows are key ranges, entries are query ranges
    kv_stop_ptr,
    begin_ptr,
    end_ptr,
    q_start_ptr,
    q_stop_ptr,
    order_ptr,
    rows,
    heads,
    mask_heads,
    scale,
    q_len,
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kh,
    stride_kl,
    stride_vb,
    stride_vh,
    stride_vl,
    stride_gb,
    stride_gh,
    stride_gl,
    stride_db,
    stride_dh,
    stride_dl,
    stride_eb,
    stride_eh,
    stride_el,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FULL: tl.constexpr,  # every query range holds exactly BLOCK_M queries
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dK and dV of one key range."""
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    mask_row = (head % mask_heads) * rows
    row = tl.load(order_ptr + mask_row + tl.program_id(0))
    kv_start = tl.load(kv_start_ptr + row)
    kv_stop = tl.load(kv_stop_ptr + row)
    begin = tl.load(begin_ptr + mask_row + row)
    end = tl.load(end_ptr + mask_row + row)

    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    kv_in = kv_start + n < kv_stop
    d_in = d < HEAD_DIM
    b64 = batch.to(tl.int64)
    h64 = head.to(tl.int64)
    first = kv_start.to(tl.int64)
    inside = kv_in[:, None] & d_in[None, :]
    k_tile = k_ptr + b64 * stride_kb + h64 * stride_kh + first * stride_kl + n[:, None] * stride_kl + d[None, :]
    v_tile = v_ptr + b64 * stride_vb + h64 * stride_vh + first * stride_vl + n[:, None] * stride_vl + d[None, :]
    k = tl.load(k_tile, mask=inside, other=0.0)
    v = tl.load(v_tile, mask=inside, other=0.0)
    if UPCAST:
        k = k.to(tl.float32)
        v = v.to(tl.float32)
    q_base = q_ptr + b64 * stride_qb + h64 * stride_qh
    grad_base = grad_ptr + b64 * stride_gb + h64 * stride_gh
    lse_base = lse_ptr + tl.program_id(1).to(tl.int64) * q_len
    delta_base = delta_ptr + tl.program_id(1).to(tl.int64) * q_len

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    start = tl.load(q_start_ptr + begin)
    stop = tl.load(q_stop_ptr + begin)
    for entry in range(begin, end):
        next_start = tl.load(q_start_ptr + entry + 1)
        next_stop = tl.load(q_stop_ptr + entry + 1)
        q_in = start + m < stop
        q_tile = q_base + start.to(tl.int64) * stride_ql + m[:, None] * stride_ql + d[None, :]
        grad_tile = grad_base + start.to(tl.int64) * stride_gl + m[:, None] * stride_gl + d[None, :]
        if FULL and HEAD_DIM == BLOCK_D:
            q = tl.load(q_tile)
            grad = tl.load(grad_tile)
            lse_log2 = tl.load(lse_base + start + m) * 1.4426950408889634
            delta = tl.load(delta_base + start + m)
        else:
            q = tl.load(q_tile, mask=q_in[:, None] & d_in[None, :], other=0.0)
            grad = tl.load(grad_tile, mask=q_in[:, None] & d_in[None, :], other=0.0)
            lse_log2 = tl.load(lse_base + start + m, mask=q_in, other=0.0) * 1.4426950408889634
            delta = tl.load(delta_base + start + m, mask=q_in, other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
            grad = grad.to(tl.float32)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * 1.4426950408889634)
        p = tl.exp2(s - lse_log2[None, :])
        if not FULL:
            p = tl.where(q_in[None, :], p, 0.0)
        dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
        start = next_start
        stop = next_stop
    dk_tile = dk_ptr + b64 * stride_db + h64 * stride_dh + first * stride_dl + n[:, None] * stride_dl + d[None, :]
    dv_tile = dv_ptr + b64 * stride_eb + h64 * stride_eh + first * stride_el + n[:, None] * stride_el + d[None, :]
    tl.store(dk_tile, (dk * scale).to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_tile, dv.to(dv_ptr.dtype.element_ty), mask=inside)
