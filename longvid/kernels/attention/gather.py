"""Block-sparse attention in plain PyTorch: the twin of the Triton kernels and the default path on a CPU.

Shape letters: B batch, N heads, L query tokens, K key tokens, D head dim, R rows of one query block, n keys it keeps.

One query block at a time: put its kept keys side by side (or, when they lie in few long runs, multiply the runs where
they are), and take an ordinary softmax over them. Each step is one large matrix product, which is what a CPU is good
at: faster than dense attention from about half density down (benchmarks/attention.py has the measured table).

Heads go in groups: at least one a thread, and more while a group's scores stay in cache, which spares calls. The
backward pass recomputes the weights from the log-sum-exp, as FlashAttention does (Dao 2022, algorithm 4); letting
autograd differentiate the slices instead would allocate all of K and V once a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longvid.kernels.blocks import BlockCSR

LONG_RUN = 256  # tokens; runs this long on average are multiplied in place, shorter ones are gathered first
CACHE_BYTES = 3 << 19  # scores, keys and values of the heads that go together: what a core's own cache may hold
LEAST_EXPONENT = -60.0  # exp(-60) = 9e-27 changes no sum in float32; below -87 results are subnormal and 100x slower


def _rows(blocks: BlockCSR) -> list[list[tuple[int, int, list[tuple[int, int]], Tensor | None]]]:
    """Per mask head and query block: (first query, end, runs of keys, gather index when runs are short)."""
    if "gather_rows" not in blocks.memo:
        pointer, start, stop = (x.tolist() for x in blocks.runs())
        heads = []
        for head in range(blocks.mask_heads):
            rows = []
            for block in range(blocks.q_blocks):
                row = head * blocks.q_blocks + block
                runs = list(zip(start[pointer[row] : pointer[row + 1]], stop[pointer[row] : pointer[row + 1]]))
                count = sum(b - a for a, b in runs)
                gathers = len(runs) > 1 and count < LONG_RUN * len(runs)
                index = torch.cat([torch.arange(a, b) for a, b in runs]) if gathers else None
                rows.append((int(blocks.q_starts[block]), int(blocks.q_starts[block + 1]), runs, index))
            heads.append(rows)
        blocks.memo["gather_rows"] = heads
    return blocks.memo["gather_rows"]  # type: ignore[no-any-return]


class _Keys:
    """The kept keys (or values) of one query block, for one group of heads: gathered once, or read run by run."""

    def __init__(self, x: Tensor, runs: list[tuple[int, int]], index: Tensor | None, buffer: Tensor) -> None:
        self.count = sum(b - a for a, b in runs)
        self.parts: list[tuple[int, int, Tensor]] = []
        if index is None:
            place = 0
            for a, b in runs:
                self.parts.append((place, place + b - a, x[:, a:b]))
                place += b - a
        else:
            out = buffer[: x.shape[0] * self.count * x.shape[2]].view(x.shape[0], self.count, x.shape[2])
            torch.index_select(x, 1, index, out=out)
            self.parts.append((0, self.count, out))

    def scores(self, rows: Tensor, buffer: Tensor) -> Tensor:
        """rows [g, R, D] times every kept key: [g, R, n], written into `buffer`."""
        out = buffer[: rows.shape[0] * rows.shape[1] * self.count].view(rows.shape[0], rows.shape[1], self.count)
        for a, b, part in self.parts:
            torch.bmm(rows, part.transpose(1, 2), out=out[:, :, a:b])
        return out

    def combine(self, weights: Tensor) -> Tensor:
        """weights [g, R, n] times the kept values: [g, R, D]."""
        (a, b, part), *rest = self.parts
        out = torch.bmm(weights[:, :, a:b], part)
        for a, b, part in rest:
            out.baddbmm_(weights[:, :, a:b], part)
        return out

    def scatter(self, weights: Tensor, rows: Tensor, total: Tensor, index: Tensor | None, runs: Any) -> None:
        """Add weights^T rows, [g, n, D], into the kept positions of `total` [g, K, D]."""
        if index is not None:
            total.index_add_(1, index, torch.bmm(weights.transpose(1, 2), rows))
            return
        for (a, b, _), (first, end) in zip(self.parts, runs):
            total[:, first:end].baddbmm_(weights[:, :, a:b].transpose(1, 2), rows)


def _extent(blocks: BlockCSR) -> tuple[int, int]:
    """(keys of the fullest query block, rows of the longest)."""
    rows = [row for head in _rows(blocks) for row in head]
    kept = max(sum(b - a for a, b in runs) for _, _, runs, _ in rows)
    return kept, max(end - first for first, end, _, _ in rows)


def _groups(blocks: BlockCSR, like: Tensor, heads: int) -> list[tuple[list[Any], slice]]:
    """(rows of the mask, slice of the flattened batch x heads) to process together; `like` is [batch * heads, L, D]."""
    rows, total = _rows(blocks), len(like)
    if blocks.mask_heads > 1:
        return [(rows[i % heads], slice(i, i + 1)) for i in range(total)]
    kept, longest = _extent(blocks)
    each = max(1, kept * (longest + 2 * like.shape[-1]) * like.element_size())
    size = max(torch.get_num_threads(), CACHE_BYTES // each, 1)
    return [(rows[0], slice(i, min(i + size, total))) for i in range(0, total, size)]


def _scratch(blocks: BlockCSR, group: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Buffers reused for every query block: two of keys x D, two of rows x keys."""
    kept, rows = _extent(blocks)
    keys = [like.new_empty(group * kept * like.shape[-1]) for _ in range(2)]
    scores = [like.new_empty(group * rows * kept) for _ in range(2)]
    return keys[0], keys[1], scores[0], scores[1]


class _GatherAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: BlockCSR, scale: float) -> tuple[Tensor, Tensor]:
        batch, heads, length, dim = q.shape
        work = torch.float64 if q.dtype == torch.float64 else torch.float32
        qf, kf, vf = (x.to(work).flatten(0, 1) for x in (q, k, v))
        out = torch.zeros(batch * heads, length, dim, dtype=work, device=q.device)
        lse = torch.full((batch * heads, length), -torch.inf, dtype=work, device=q.device)
        groups = _groups(blocks, qf, heads)
        key_buffer, value_buffer, score_buffer, _ = _scratch(blocks, groups[0][1].stop, qf)
        for rows, group in groups:
            qg, kg, vg = qf[group] * scale, kf[group], vf[group]
            for first, end, runs, index in rows:
                if not runs:
                    continue  # an empty row: out 0, lse -inf
                index = None if index is None else index.to(q.device)
                scores = _Keys(kg, runs, index, key_buffer).scores(qg[:, first:end], score_buffer)
                largest = scores.amax(-1, keepdim=True)
                scores.sub_(largest).clamp_(min=LEAST_EXPONENT).exp_()
                total = scores.sum(-1, keepdim=True)
                out[group, first:end] = _Keys(vg, runs, index, value_buffer).combine(scores).div_(total)
                lse[group, first:end] = (largest + total.log()).squeeze(-1)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.blocks, ctx.scale = blocks, scale
        return out.view(q.shape).to(q.dtype), lse.view(q.shape[:3])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        blocks, scale = ctx.blocks, ctx.scale
        heads = q.shape[1]
        qf, kf, vf, df = (x.to(out.dtype).flatten(0, 1) for x in (q, k, v, d_out))
        # dS = P * (dP - delta) with delta = rowsum(dO * O); a gradient on lse adds P * d_lse.
        delta = (df * out).sum(-1, keepdim=True) - d_lse.to(out.dtype).flatten(0, 1).unsqueeze(-1)
        dq, dk, dv = torch.zeros_like(qf), torch.zeros_like(kf), torch.zeros_like(vf)
        groups = _groups(blocks, qf, heads)
        key_buffer, value_buffer, score_buffer, grad_buffer = _scratch(blocks, groups[0][1].stop, qf)
        for rows, group in groups:
            qg, kg, vg, dg = qf[group] * scale, kf[group], vf[group], df[group]
            dkg, dvg = dk[group], dv[group]
            for first, end, runs, index in rows:
                if not runs:
                    continue
                index = None if index is None else index.to(q.device)
                keys, values = _Keys(kg, runs, index, key_buffer), _Keys(vg, runs, index, value_buffer)
                qr, dr = qg[:, first:end], dg[:, first:end]
                weights = keys.scores(qr, score_buffer)
                weights.sub_(lse[group, first:end].unsqueeze(-1)).clamp_(min=LEAST_EXPONENT).exp_()
                values.scatter(weights, dr, dvg, index, runs)
                slope = values.scores(dr, grad_buffer).sub_(delta[group, first:end]).mul_(weights)
                dq[group, first:end] = keys.combine(slope).mul_(scale)
                keys.scatter(slope, qr, dkg, index, runs)
        dq, dk, dv = (g.view(x.shape).to(x.dtype) for g, x in ((dq, q), (dk, k), (dv, v)))
        return dq, dk, dv, None, None


def gather_block_sparse_attention(
    q_BNLD: Tensor, k_BNKD: Tensor, v_BNKD: Tensor, blocks: BlockCSR, scale: float
) -> tuple[Tensor, Tensor]:
    """(out like q, lse float32 [B, N, L] natural log), both differentiable. Half precision is computed in float32:
    it is no slower on a CPU. Any device, any strides."""
    out, lse = _GatherAttention.apply(  # type: ignore[no-untyped-call]
        q_BNLD, k_BNKD, v_BNKD, blocks, scale
    )
    return out, lse
