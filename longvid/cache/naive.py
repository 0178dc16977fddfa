"""The truth beside FrameKVCache: concatenate, roll by clone, rotate everything again on every call.

Same verbs and same policies, so it can take FrameKVCache's place under a Denoiser; nothing is preallocated, nothing is
remembered between calls but un-roped keys and values in temporal order. Rotation is written out once more, with complex
numbers in float64 as the published implementations have it, so that it shares nothing with what it judges. Slow on
purpose: tests compare against it, and benchmarks measure what the real cache saves.

Shape letters: B batch, T cached tokens, L tokens of a call, N heads, D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .policies.participative import ParticipativePolicy
from .policies.plan import Plan, Policy, RecachePlan, View


@dataclass(slots=True)
class NaiveView:
    """A view as planned, with the tables of the call's own tokens."""

    view: View
    cos: Tensor
    sin: Tensor
    start: int
    skip: int = 0


def rotate_tokens(x_BTND: Tensor, frames: Tensor, places: Tensor, rotary: Any) -> Tensor:
    """RoPE of single tokens, each at its frame's position [T] or [B, T] and its place in the frame.

    Adjacent pairs are complex numbers, multiplied by exp(i angle); the head's pairs are split into time, row and column
    as Wan splits them (rotary: rows, columns and head_dim of the model).
    """
    pairs = x_BTND.shape[-1] // 2
    side = pairs // 3
    angles = []
    for position, count in (
        (frames, pairs - 2 * side),
        (places.div(rotary.columns, rounding_mode="floor"), side),
        (places.remainder(rotary.columns), side),
    ):
        frequencies = 10000.0 ** (-torch.arange(count, dtype=torch.float64, device=x_BTND.device) / count)
        angles.append(position.to(x_BTND.device, torch.float64)[..., None, None] * frequencies)
    turn = torch.cat(angles, dim=-1)
    x = torch.view_as_complex(x_BTND.double().reshape(*x_BTND.shape[:-1], pairs, 2))
    return torch.view_as_real(x * torch.polar(torch.ones_like(turn), turn)).flatten(-2).to(x_BTND.dtype)


def _frames(positions: Sequence[float], tokens: int) -> Tensor:
    return torch.tensor(positions, dtype=torch.float64).repeat_interleave(tokens)


def _places(frames: int, tokens: int) -> Tensor:
    return torch.arange(tokens).repeat(frames)


class NaiveLayer:
    """Un-roped keys and values of one layer, [B, T, N, D], in temporal order."""

    def __init__(self, cache: NaiveCache) -> None:
        self.cache = cache
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.pending: tuple[Tensor, Tensor] | None = None

    def read(self, view: NaiveView, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        t = self.cache.rotary.tokens_per_frame
        self.pending = (key[:, view.skip * t :].clone(), value[:, view.skip * t :].clone())
        keys, values, positions = [], [], list(view.view.positions) + list(view.view.own_positions[view.skip :])
        for frame in view.view.frames:
            at = self.cache.order.index(frame) * t
            assert self.keys is not None
            assert self.values is not None
            keys.append(self.keys[:, at : at + t].clone())
            values.append(self.values[:, at : at + t].clone())
        joined = torch.cat([*keys, self.pending[0]], dim=1)
        return rotate_tokens(joined, _frames(positions, t), _places(len(positions), t), self.cache.rotary), torch.cat(
            [*values, self.pending[1]], dim=1
        )

    def keep(self, frames: Sequence[int]) -> None:
        """Roll by clone: only the frames at these places of the order stay."""
        if self.keys is None or self.values is None:
            return
        t = self.cache.rotary.tokens_per_frame
        self.keys = torch.cat([self.keys[:, f * t : (f + 1) * t].clone() for f in frames] or [self.keys[:, :0]], dim=1)
        self.values = torch.cat(
            [self.values[:, f * t : (f + 1) * t].clone() for f in frames] or [self.values[:, :0]], dim=1
        )

    def append(self, frames: int) -> None:
        assert self.pending is not None
        tokens = frames * self.cache.rotary.tokens_per_frame
        key, value = (x[:, :tokens] for x in self.pending)
        self.keys = key if self.keys is None else torch.cat([self.keys, key], dim=1)
        self.values = value if self.values is None else torch.cat([self.values, value], dim=1)


class NaiveCache:
    """Stands in for FrameKVCache (same constructor)."""

    def __init__(self, policy: Policy, *, layers: int, batch: int, rotary: Any, **_: Any) -> None:
        self.policy, self.batch, self.rotary = policy, batch, rotary
        self.tokens_per_frame = rotary.tokens_per_frame
        self.compress = isinstance(policy, ParticipativePolicy)
        self.layers: list[Any] = [(NaiveTokens if self.compress else NaiveLayer)(self) for _ in range(layers)]
        self.order: list[int] = []
        self.memory: dict[str, int] = {}
        self.open_block: tuple[int, ...] = ()
        self._plan: Plan | None = None
        self._recache: RecachePlan | None = None

    @property
    def resident(self) -> tuple[int, ...]:
        return tuple(self.order)

    @property
    def resident_frames(self) -> int:
        return len(self.order)

    def begin(self, start: int, frames: int, window: int | None = None) -> None:
        window = frames if window is None else window
        if not self.compress:
            plan = self.policy.plan(self.order, start, frames, window, self.memory)
            if plan.merge is not None:
                self._merge(plan)
            keep = [i for i, frame in enumerate(self.order) if frame not in plan.evict]
            for layer in self.layers:
                layer.keep(keep)
            self.order = [self.order[i] for i in keep]
            self.memory, self._plan = dict(plan.memory), plan
        self.open_block = tuple(range(start, start + frames))

    def _merge(self, plan: Plan) -> None:
        t, merge = self.tokens_per_frame, plan.merge
        assert merge is not None
        for layer in self.layers:
            for x in (layer.keys, layer.values):
                for evicted, sink in zip(merge.evicted, merge.into, strict=True):
                    a, b = self.order.index(evicted) * t, self.order.index(sink) * t
                    x[:, b : b + t] = merge.alpha * x[:, b : b + t] + (1 - merge.alpha) * x[:, a : a + t]

    def view(self, kind: str) -> NaiveView:
        if self._recache is not None:
            plan = self._recache
            view = View(plan.keep, plan.kept_positions, plan.own_positions)
            cos, sin = self.rotary.at(view.own_positions)
            return NaiveView(view, cos, sin, start=self.open_block[0], skip=plan.store[0])
        if self.compress:
            view = View((), (), self.open_block)
        else:
            assert self._plan is not None
            view = self._plan.denoise if kind == "denoise" else self._plan.commit
        cos, sin = self.rotary.at(view.own_positions)
        return NaiveView(view, cos, sin, start=self.open_block[0])

    def commit(self) -> None:
        for layer in self.layers:
            layer.append(len(self.open_block))
        self.order += list(self.open_block)
        self.open_block = ()

    def reads_again(self, frames: int) -> bool:
        """Every block is committed, whether or not it is read."""
        return True

    def abort(self) -> None:
        self.open_block = ()

    def reset(self) -> None:
        self.__init__(  # type: ignore[misc]
            self.policy, layers=len(self.layers), batch=self.batch, rotary=self.rotary
        )

    def begin_recache(self, newest: Sequence[int], keep_sink: bool) -> None:
        if self.compress:
            raise NotImplementedError("the naive twin re-encodes whole frames only")
        plan = self.policy.plan_recache(self.order, newest, keep_sink, self.memory)
        keep = [i for i, frame in enumerate(self.order) if frame in plan.keep]
        for layer in self.layers:
            layer.keep(keep)
        self.order, self.memory = list(plan.keep), dict(plan.memory)
        self._recache, self.open_block = plan, tuple(newest)

    def commit_recache(self) -> None:
        assert self._recache is not None
        for layer in self.layers:
            layer.append(len(self._recache.store))
        self.order += [self.open_block[i] for i in self._recache.store]
        self.open_block, self._recache = (), None


class NaiveTokens:
    """Participative compression on plain lists of tokens, one sample after the other.

    Each token remembers its un-roped key, value, place in the frame, reuse count, and the position that it is read at.
    Where every head chooses for itself, a head is a sample of its own, with one head: nothing else is different.
    """

    def __init__(self, cache: NaiveCache) -> None:
        self.cache, self.policy = cache, cache.policy
        assert isinstance(self.policy, ParticipativePolicy)
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.positions: Tensor | None = None
        self.places: Tensor | None = None
        self.counts: Tensor | None = None
        self.queries: Tensor | None = None
        self.shift = 0
        self.origin: int | None = None
        self.block: int | None = None
        self.pending: tuple[Tensor, Tensor] | None = None

    def read(self, view: NaiveView, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self.policy, ParticipativePolicy)
        if not self.policy.per_head:
            return self._read(view, query, key, value)
        heads = key.shape[2]
        alone = (x.transpose(1, 2).flatten(0, 1).unsqueeze(2) for x in (query, key, value))  # [B N, L, 1, D]
        keys, values = self._read(view, *alone)
        shape = (-1, heads, *keys.shape[1::2])
        return keys.reshape(shape).transpose(1, 2), values.reshape(shape).transpose(1, 2)

    def _read(self, view: NaiveView, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        policy, t = self.policy, self.cache.rotary.tokens_per_frame
        assert isinstance(policy, ParticipativePolicy)
        if self.positions is None or self.places is None or self.counts is None:
            self.positions, self.places, self.counts = torch.zeros(3, key.shape[0], 0, dtype=torch.long)
        self.pending = (key.clone(), value.clone())
        limit = policy.recent * t
        self.queries = query if self.queries is None else torch.cat([self.queries, query], dim=1)
        self.queries = self.queries[:, -limit:].clone()
        own = key.shape[1]
        positions = view.start + torch.arange(own).div(t, rounding_mode="floor").expand(key.shape[0], -1)
        places = torch.arange(own).remainder(t).expand(key.shape[0], -1)
        cached = self.positions.shape[1]
        keys = key if self.keys is None else torch.cat([self.keys, key], dim=1)
        values = value if self.values is None else torch.cat([self.values, value], dim=1)
        positions, places = torch.cat([self.positions, positions], dim=1), torch.cat([self.places, places], dim=1)
        if view.start != self.block and policy.triggers(cached, own, t):
            rotated = rotate_tokens(keys, positions, places, self.cache.rotary)
            keep = policy.keep(cached, own, self.queries.shape[1], t)
            counts = torch.cat([self.counts, torch.zeros(key.shape[0], own, dtype=torch.long)], dim=1)
            ranked = [self._rank(rotated[b], counts[b], b, keep) for b in range(key.shape[0])]
            top = min(keep.top, *(len(best) for best in ranked))  # all keep as many
            newest = range(keep.recent_start, keep.total)
            kept = torch.tensor([[*range(keep.sink), *sorted(best[:top]), *newest] for best in ranked])
            chosen = slice(keep.sink, kept.shape[1] - (keep.total - keep.recent_start))
            counts = counts.gather(1, kept)
            counts[:, chosen] += 1
            keys, values = (x.gather(1, kept[..., None, None].expand(-1, -1, *x.shape[2:])) for x in (keys, values))
            positions, places = positions.gather(1, kept), places.gather(1, kept)
            if keep.sink:
                shift, self.origin = policy.sink_shift(view.start, kept.shape[1], t, self.origin)
                positions[:, : keep.sink] += shift - self.shift
                self.shift = shift
            chosen_count = chosen.stop - chosen.start
            if policy.unify and chosen_count:
                recent = int(view.start) + (own - (keep.total - keep.recent_start)) // t
                first = recent - -(-chosen_count // t)
                positions[:, chosen] = first + torch.arange(chosen_count).div(t, rounding_mode="floor")
            old = kept.shape[1] - own
            self.keys, self.values = keys[:, :old], values[:, :old]
            self.positions, self.places, self.counts = positions[:, :old], places[:, :old], counts[:, :old]
        self.block = view.start
        return rotate_tokens(keys, positions, places, self.cache.rotary), values

    def _rank(self, rotated: Tensor, counts: Tensor, sample: int, keep: Any) -> list[int]:
        """The candidates below the reuse limit, best first."""
        policy = self.policy
        assert isinstance(policy, ParticipativePolicy)
        assert self.queries is not None
        queries = self.queries[sample][-(keep.total - keep.recent_start) :]
        dots = torch.einsum("qnd,tnd->qt", queries, rotated) / (math.sqrt(rotated.shape[-1]) * rotated.shape[1])
        scores = dots.sum(0) if policy.fusion == "sum" else dots.amax(0)
        candidates = [
            i for i in range(keep.sink, keep.recent_start) if not policy.max_reuse or int(counts[i]) < policy.max_reuse
        ]
        return sorted(candidates, key=lambda i: float(scores[i]), reverse=True)

    def append(self, frames: int) -> None:
        assert self.pending is not None
        assert self.positions is not None
        assert self.places is not None
        assert self.counts is not None
        key, value = self.pending
        t, batch = self.cache.rotary.tokens_per_frame, key.shape[0]
        labels = torch.tensor(self.cache.open_block).repeat_interleave(t).expand(batch, -1)
        self.keys = key if self.keys is None else torch.cat([self.keys, key], dim=1)
        self.values = value if self.values is None else torch.cat([self.values, value], dim=1)
        self.positions = torch.cat([self.positions, labels], dim=1)
        self.places = torch.cat([self.places, torch.arange(t).repeat(frames).expand(batch, -1)], dim=1)
        self.counts = torch.cat([self.counts, torch.zeros(batch, frames * t, dtype=torch.long)], dim=1)
        self.block = None
