"""Triton kernel: block-sparse attention, forward.

    O_i = sum_j softmax_j(scale * q_i . k_j) v_j over the kept keys j;  lse_i = log sum_j exp(scale * q_i . k_j)

FlashAttention-2's online softmax (Dao 2023, algorithm 1) over a list of key ranges in place of all keys. One program
owns one range of at most BLOCK_M queries of one head. Truth: naive.py.

Shape letters: M rows of a query range, N keys of a key range, D head dim.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attention_forward(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    q_start_ptr,  # [rows] first query of each row; the lists are described in longvid.kernels.blocks.TileList
    q_stop_ptr,
    begin_ptr,  # [mask_heads * rows] this row's slice of the key ranges
    end_ptr,
    kv_start_ptr,  # [entries + 1] key ranges; one spare entry, so that the next may always be read ahead
    kv_stop_ptr,
    order_ptr,  # [mask_heads * rows] rows, longest list first
    rows,
    heads,
    mask_heads,
    scale_log2,  # scale * log2(e): the softmax runs in base 2
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
    stride_ob,
    stride_oh,
    stride_ol,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,  # HEAD_DIM rounded up to a power of two
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FULL: tl.constexpr,  # every key range holds exactly BLOCK_N keys
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,  # multiply in float32: the interpreter multiplies the raw bits of bf16 (triton #11584)
):
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
    # Batch and token offsets in 64 bits: a million tokens of 24 heads pass 2^31.
    q_base = q_ptr + batch.to(tl.int64) * stride_qb + head.to(tl.int64) * stride_qh + q_start.to(tl.int64) * stride_ql
    k_base = k_ptr + batch.to(tl.int64) * stride_kb + head.to(tl.int64) * stride_kh
    v_base = v_ptr + batch.to(tl.int64) * stride_vb + head.to(tl.int64) * stride_vh
    q = tl.load(q_base + m[:, None] * stride_ql + d[None, :], mask=q_in[:, None] & d_in[None, :], other=0.0)
    if UPCAST:
        q = q.to(tl.float32)

    largest = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # The next range is read one step ahead, carried as a scalar: this is what lets the compiler pipeline the loads of
    # K and V to the full depth; an index loaded where it is used caps it at two stages.
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
        # Scaled after the product, in float32: the backward pass must arrive at the very same logits.
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        if not FULL:
            s = tl.where(kv_in[None, :], s, -float("inf"))
        largest_new = tl.maximum(largest, tl.max(s, 1))  # finite: every range holds a key
        p = tl.exp2(s - largest_new[:, None])
        shrink = tl.exp2(largest - largest_new)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        largest = largest_new
        start = next_start
        stop = next_stop

    empty = total == 0.0  # a row that keeps nothing: out 0, lse -inf
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    lse = tl.where(empty, -float("inf"), (largest + tl.log2(tl.where(empty, 1.0, total))) * 0.6931471805599453)
    out_base = (
        out_ptr + batch.to(tl.int64) * stride_ob + head.to(tl.int64) * stride_oh + q_start.to(tl.int64) * stride_ol
    )
    out_tile = out_base + m[:, None] * stride_ol + d[None, :]
    tl.store(out_tile, acc.to(out_ptr.dtype.element_ty), mask=q_in[:, None] & d_in[None, :])
    tl.store(lse_ptr + tl.program_id(1).to(tl.int64) * q_len + q_start + m, lse, mask=q_in)
