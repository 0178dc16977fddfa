"""Participative compression on one layer's tokens: scores answered by the attention, bookkeeping, compaction.

Shape letters: B batch, T tokens in the cache and the new block, L tokens of a call, N heads, D head dim, H choices: one
for all heads (1), or one a head (N). What is known of a token is kept once for each choice, [B, T, H]: after a
compression token t of one head and token t of another need not be the same.
Deep Forcing, arXiv 2512.05081, sec. 4.2, as released.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longvid.kernels.cache_ops import column_scores, gather_head_tokens, gather_tokens, head_scores

from .policies.participative import ParticipativePolicy

if TYPE_CHECKING:
    from .layer_store import CallView, LayerStore


@dataclass(slots=True)
class Selection:
    """What a compression saw and chose: scores [B, T, H] (-inf outside the candidates), the reuse counters before it
    [B, T, H], and the chosen token indices [B, C, H], ascending."""

    scores: Tensor
    counts_before: Tensor
    chosen: Tensor


class TokenSelector:
    """Token bookkeeping of one layer: how many tokens are cached, how often each was chosen, which frame it is from.

    counts int32, frames int64 and places int64 (the place in the frame) are [B, capacity, H]; the first `length` tokens
    count. The sink's and the recent frames' rows are the same for every choice. on_choice: for inspection, is given the
    Selection of every compression; by default it is kept nowhere, being as large as the bookkeeping.
    """

    def __init__(self, policy: ParticipativePolicy, store_keys: Tensor, tokens_per_frame: int) -> None:
        batch, capacity, heads, dim = store_keys.shape
        self.policy, self.tokens_per_frame = policy, tokens_per_frame
        self.choices = heads if policy.per_head else 1
        self.length = 0
        self.shift = 0
        self.origin: int | None = None
        shape, device = (batch, capacity, self.choices), store_keys.device
        self.counts = torch.zeros(shape, dtype=torch.int32, device=device)
        self.frames = torch.full(shape, -1, dtype=torch.int64, device=device)
        places = torch.arange(capacity).remainder(tokens_per_frame).to(device)
        self.places = places[:, None].expand(shape).contiguous()
        self.queries = store_keys.new_zeros(batch, policy.recent * tokens_per_frame, heads, dim)
        self.held = 0
        self.on_choice: Callable[[Selection], None] | None = None
        self._enter(None)

    def _enter(self, block: int | None) -> None:
        """The open block begins at frame `block`, or none is open; what was known of another holds no more."""
        self._block = block
        self._whole: int | None = None

    def reset(self) -> None:
        """Forget everything: a new scene. (The release keeps counters, queries and phase from the video before.)"""
        self.length, self.shift, self.origin, self.held = 0, 0, None, 0
        self._enter(None)

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """All that it has allocated."""
        return self.counts, self.frames, self.places, self.queries

    @property
    def sink_tokens(self) -> int:
        return min(self.policy.sink * self.tokens_per_frame, self.length)

    def read(
        self, store: LayerStore, view: CallView, query_BLND: Tensor, key_BLND: Tensor, value_BLND: Tensor
    ) -> tuple[Tensor, Tensor]:
        self.remember(query_BLND)
        own = key_BLND.shape[1] - view.own
        key, value = key_BLND[:, view.own :], value_BLND[:, view.own :]
        cos, sin = view.cos[view.own :], view.sin[view.own :]
        if self._block != view.start:
            self._enter(view.start)
            if self.policy.triggers(self.length, own, self.tokens_per_frame):
                self._compress(store, view.start, store.rotary.apply(key, cos, sin))
        a, b = self.length, self.length + own
        store.rotary.apply(key, cos, sin, out=store.keys[:, a:b])
        store.values[:, a:b] = value
        if view.raw and store.raw is not None and a < store.raw.shape[1]:
            kept = min(own, store.raw.shape[1] - a)
            store.raw[:, a : a + kept] = key[:, :kept]
        return store.keys[:, :b], store.values[:, :b]

    def remember(self, query_BLND: Tensor) -> None:
        """Append a call's rotated queries; the newest `recent` frames of them stay, whatever block they came from."""
        size, new = self.queries.shape[1], query_BLND.shape[1]
        if new >= size:
            self.queries.copy_(query_BLND[:, new - size :])
        else:
            self.queries[:, : size - new] = self.queries[:, new:].clone()
            self.queries[:, size - new :] = query_BLND
        self.held = min(size, self.held + new)

    def scores(self, keys_BTND: Tensor, queries: int) -> Tensor:
        """Importance of each key to the newest `queries` query tokens: raw dot products summed over heads (unless each
        chooses) and, for "sum", over queries (eq. 7); [B, T, H] float32."""
        newest, fusion = self.queries[:, self.queries.shape[1] - queries :], self.policy.fusion
        if self.policy.per_head:
            return head_scores(newest, keys_BTND, fusion=fusion).transpose(1, 2).contiguous()
        return column_scores(newest, keys_BTND, fusion=fusion).unsqueeze(-1)

    def whole_frames(self) -> int:
        """How many whole frames in their order, up to the open block, the newest cached tokens are.

        Where heads chose for themselves, frames that are whole for every one of them. The tokens are looked at once a
        block, and a GPU waited for: behind its first call nothing moves until it is committed.
        """
        assert self._block is not None
        if self._whole is None:
            self._whole = self._count_whole(self._block)
        return self._whole

    def _count_whole(self, start: int) -> int:
        t = self.tokens_per_frame
        most = min(self.length // t, start)
        if not most:
            return 0
        newest, shape = slice(self.length - most * t, self.length), (-1, most, t, self.choices)
        frames, places = (known[:, newest].reshape(shape) for known in (self.frames, self.places))
        expected = torch.arange(start - most, start, device=frames.device)[:, None, None]
        there = (frames == expected) & (places == torch.arange(t, device=places.device)[:, None])
        return int(there.flatten(2).all(dim=2).all(dim=0).flip(0).long().cumprod(0).sum())

    def _compress(self, store: LayerStore, start: int, new_keys_BLND: Tensor) -> None:
        policy, own = self.policy, new_keys_BLND.shape[1]
        keep = policy.keep(self.length, own, self.held, self.tokens_per_frame)
        batch, device = self.counts.shape[0], store.keys.device
        counts = torch.cat([self.counts[:, : self.length], self.counts.new_zeros(batch, own, self.choices)], dim=1)
        keys = torch.cat([store.keys[:, : self.length], new_keys_BLND], dim=1)
        scores = self.scores(keys, keep.total - keep.recent_start)
        scores[:, : keep.sink] = -math.inf
        scores[:, keep.recent_start :] = -math.inf
        allowed = scores
        if policy.max_reuse:
            allowed = scores.masked_fill(counts >= policy.max_reuse, -math.inf)
        # As many tokens for every sample and choice as the one with the fewest candidates has: they share a storage.
        available = int((allowed[:, keep.sink : keep.recent_start] > -math.inf).sum(dim=1).min())
        top = min(keep.top, available)
        chosen = allowed.topk(top, dim=1).indices.sort(dim=1).values
        if self.on_choice is not None:
            self.on_choice(Selection(scores, counts, chosen))

        # Compact to [sink | chosen | recent]; the sink does not move, the new block is written by the caller.
        recent = torch.arange(keep.recent_start, self.length, device=device)[:, None].expand(batch, -1, self.choices)
        moved = torch.cat([chosen, recent], dim=1)
        end = keep.sink + moved.shape[1]
        if policy.per_head:
            packed = gather_head_tokens(store.keys, store.values, moved)
        else:
            packed = gather_tokens(store.keys, store.values, moved[..., 0])
        store.keys[:, keep.sink : end], store.values[:, keep.sink : end] = packed
        if policy.unify and store.raw is not None:
            index = moved.unsqueeze(-1).expand(-1, -1, *store.raw.shape[2:])
            store.raw[:, keep.sink : end] = store.raw.gather(1, index)
        self.frames[:, keep.sink : end] = self.frames.gather(1, moved)
        self.places[:, keep.sink : end] = self.places.gather(1, moved)
        kept_counts = counts.gather(1, moved)
        kept_counts[:, :top] += 1
        self.counts[:, keep.sink : end] = kept_counts
        self.length = end
        if keep.sink:
            self.shift, self.origin = policy.sink_shift(start, end + own, self.tokens_per_frame, self.origin)
            self.phase_sink(store)
        if policy.unify and top:
            self._unify(
                store, keep.sink, top, start + (own - (keep.total - keep.recent_start)) // self.tokens_per_frame
            )

    def _unify(self, store: LayerStore, first: int, count: int, recent: int) -> None:
        """Read the chosen tokens as consecutive frames that end right before frame `recent` (eq. 10-11): the i-th of
        every choice in the same frame, each at its own place."""
        assert store.raw is not None
        t = self.tokens_per_frame
        frames = -(-count // t)
        index = torch.arange(count, device=store.keys.device).div(t, rounding_mode="floor")[:, None]
        places = self.places[:, first : first + count]
        cos, sin = (
            table.reshape(frames, t, -1)[index.expand_as(places), places]
            for table in store.rotary.at(range(recent - frames, recent))
        )
        store.rotary.apply(store.raw[:, first : first + count], cos, sin, out=store.keys[:, first : first + count])

    def phase_sink(self, store: LayerStore) -> None:
        """Rotate the sink's un-roped keys by their total angle, once: repeated bf16 rotation would rot them."""
        assert store.raw is not None
        sink = self.sink_tokens
        positions = [int(f) + self.shift for f in self.frames[0, : sink : self.tokens_per_frame, 0].tolist()]
        store.rotary.rotate(store.raw[:, :sink], positions, out=store.keys[:, :sink])

    def commit(self, ids: list[int]) -> None:
        """Count the block's tokens as cached; `ids` are its frames."""
        a, s = self.length, self.tokens_per_frame
        for i, frame in enumerate(ids):
            self.frames[:, a + i * s : a + (i + 1) * s] = frame
            self.places[:, a + i * s : a + (i + 1) * s] = torch.arange(s, device=self.places.device)[:, None]
        self.counts[:, a : a + len(ids) * s] = 0
        self.length = a + len(ids) * s
        self._enter(None)

    def abort(self) -> None:
        """Drop the open block; what its first call compressed stays compressed, so a second try gives the same."""
        self._enter(None)

    def begin_recache(self, keep_sink: bool, start: int) -> None:
        """Drop everything but the sink (or everything): its frames are encoded anew under another prompt."""
        self.length = self.sink_tokens if keep_sink else 0
        if not keep_sink:
            self.shift, self.origin = 0, None
        self.held = 0
        self._enter(start)  # a recache pass never compresses

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {
            "counts": self.counts[:, : self.length].clone(),
            "frames": self.frames[:, : self.length].clone(),
            "places": self.places[:, : self.length].clone(),
            "queries": self.queries.clone(),
        }
        return tensors, {"length": self.length, "shift": self.shift, "origin": self.origin, "held": self.held}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.length, self.shift, self.origin, self.held = meta["length"], meta["shift"], meta["origin"], meta["held"]
        for name, own in (("counts", self.counts), ("frames", self.frames), ("places", self.places)):
            # Snapshots from before there were choices have no last axis.
            own[:, : self.length] = tensors[name].reshape(own.shape[0], self.length, self.choices).to(own)
        self.queries.copy_(tensors["queries"])
        self._enter(None)
