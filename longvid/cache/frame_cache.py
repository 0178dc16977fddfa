"""FrameKVCache: the one place where keys and values of past frames live.

::

    storage of a layer, in frame slots          what a call attends to
    [ sink | recent frames (ring) | block ]     denoise view or commit view, as the policy planned

    begin(start, frames) -> policy plans: evict, merge, read positions
       denoise calls     -> LayerStore.read: own tokens into the block's slots, attention over the view
    commit()             -> the block's frames are resident        (abort(): they never were)

Attention does not care for the order of keys, so frames stay in the slot where they were written and a new block takes
the slots of those that left: nothing is shifted. Keys of frames that a policy reads at changing positions are kept
un-roped beside the rotated copy, which is renewed once a block by one rotation of the total angle. Storage is allocated
once. Shape letters: B batch, T tokens, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from longvid.kernels.cache_ops import ema_merge

from .layer_store import CallView, LayerStore, Rotary, Scratch
from .policies.participative import ParticipativePolicy, view_of
from .policies.plan import Plan, Policy, RecachePlan, View, outlasts
from .selection import TokenSelector
from .slots import ordered_runs, runs
from .snapshot import check_integrity, restore_snapshot, take_snapshot
from .stats import CacheStats
from .storage import allocate, pieces

Kind = Literal["denoise", "commit"]
Phase = int | float | None


class FrameKVCache:
    """Keys and values of the resident frames of all layers, under one policy.

    policy: decides what stays and where it is read. layers, batch, heads, head_dim: the model's. rotary: position
    tables of the frame size (gives tokens_per_frame). dtype, device: of the storage; on "meta" it takes no memory, and
    `nbytes` says what it would take. window: frames of a model call at most, when it carries more than a block.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        layers: int,
        batch: int,
        heads: int,
        head_dim: int,
        rotary: Rotary,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        window: int = 0,
    ) -> None:
        self.policy, self.rotary = policy, rotary
        self.tokens_per_frame = s = rotary.tokens_per_frame
        self.batch = batch
        tokens = policy.capacity * s
        raw_tokens = {"none": 0, "sink": policy.sink * s, "all": tokens}[policy.rephase]
        shape = (layers, batch, tokens, heads, head_dim)
        self._keys, self._values = allocate(shape, dtype, device), allocate(shape, dtype, device)
        raw_shape = (layers, batch, raw_tokens, heads, head_dim)
        self._raw = allocate(raw_shape, dtype, device) if raw_tokens else None
        # An EMA in half precision loses steps below 2 % of a value: merged sinks have a float32 master.
        self._masters: tuple[Tensor, ...] = ()
        if policy.merged:
            merged_shape = (layers, batch, policy.merged * s, heads, head_dim)
            self._masters = tuple(allocate(merged_shape, torch.float32, device) for _ in range(2))
        self._scratch = Scratch(self._keys[0], policy.gathered(window) * s)
        self._compress = isinstance(policy, ParticipativePolicy)
        self._selectors, self.layers = [], []
        for i in range(layers):
            selector = None
            if isinstance(policy, ParticipativePolicy):
                selector = TokenSelector(policy, self._keys[i], s)
                self._selectors.append(selector)
            raw = None if self._raw is None else self._raw[i]
            self.layers.append(LayerStore(self._keys[i], self._values[i], raw, rotary, self._scratch, selector))
        self.stats = CacheStats()
        self._clear()

    def _clear(self) -> None:
        self._order: list[int] = []
        self._slots: dict[int, int] = {}
        self._phases: list[Phase] = [None] * self.policy.capacity
        self._memory: dict[str, int] = {}
        self._plan: Plan | None = None
        self._recache: RecachePlan | None = None
        self._open: tuple[int, ...] = ()
        self._own_slots: tuple[int, ...] = ()
        self._window = 0
        self._views: dict[str, CallView] = {}
        self._merged: tuple[int, ...] = ()

    # ---------------------------------------------------------------- what is there

    @property
    def resident(self) -> tuple[int, ...]:
        """Ids of the committed frames, oldest first (token-level policies: of the frames that still have a token)."""
        if self._compress:
            selector = self._selectors[0]
            return tuple(torch.unique(selector.frames[0, : selector.length]).tolist())
        return tuple(self._order)

    @property
    def resident_frames(self) -> int:
        """How many whole frames of committed tokens there are."""
        if self._compress:
            return min(selector.length for selector in self._selectors) // self.tokens_per_frame
        return len(self._order)

    def slot(self, frame: int) -> int:
        """The slot of a resident frame (frame-level policies)."""
        return self._slots[frame]

    @property
    def open_block(self) -> tuple[int, ...]:
        """Frames of the block that was begun and not yet committed."""
        return self._open

    @property
    def nbytes(self) -> int:
        """Bytes of everything that it holds, which is allocated when it is made."""
        tensors = [self._keys, self._values, *self._masters, *self._scratch.buffers]
        tensors += [] if self._raw is None else [self._raw]
        tensors += [buffer for selector in self._selectors for buffer in selector.buffers]
        return sum(tensor.nbytes for tensor in tensors)

    def role(self, frame: int) -> str:
        """'sink', 'merged' (a sink that evicted frames were averaged into), 'selected' or 'recent'."""
        resident = self.resident
        if frame not in resident:
            raise ValueError(f"frame={frame}: not resident; resident are {list(resident)}")
        index = resident.index(frame)
        if index < self.policy.sink:
            return "merged" if frame in self._merged else "sink"
        if self._compress and frame not in range(resident[-1] - self.policy.recent + 1, resident[-1] + 1):  # type: ignore[attr-defined]
            return "selected"
        return "recent"

    # ---------------------------------------------------------------- begin / commit / abort

    def begin(self, start: int, frames: int, window: int | None = None) -> None:
        """Open the block of frames [start, start + frames); model calls carry `window` >= frames frames from `start`.

        Evicts and merges as planned. Calling it again for the block that is open only changes the window.
        Raises ValueError when another block is open, or when the block does not follow what is resident.
        """
        ids = tuple(range(start, start + frames))
        if self._open and self._open != ids:
            raise ValueError(f"start={start}: block {list(self._open)} is open; commit or abort it first")
        window = frames if window is None else window
        if self._open and window == self._window:
            return  # the same call again: what was planned and resolved holds
        self._views.clear()
        self._window = window
        if self._compress:
            self._open = ids
            return
        if not self._open and self._order and start <= self._order[-1]:
            raise ValueError(f"start={start}: frame {self._order[-1]} is resident; blocks come in order")
        plan = self.policy.plan(tuple(self._order), start, frames, window, self._memory)
        if plan.merge is not None:
            self._merge(plan.merge.evicted, plan.merge.into, plan.merge.alpha)
        for frame in plan.evict:
            self._order.remove(frame)
            self._phases[self._slots.pop(frame)] = None
        if not self._open:
            self._own_slots = self._free(frames)
        self._memory, self._plan, self._open = dict(plan.memory), plan, ids

    def view(self, kind: Kind) -> CallView:
        """The resolved view for the next model call of the open block (or of the open recache)."""
        found = self._views.get(kind)
        if found is not None:
            return found
        self._views.clear()  # the other view may have read the same frames at other positions
        if self._recache is not None:
            view = self._resolve_recache(self._recache)
        elif not self._open:
            raise ValueError(f"view={kind!r}: no block is open; call begin() first")
        elif self._compress:
            own = view_of(self._open[0], self._window if kind == "denoise" else len(self._open)).own_positions
            cos, sin = self.rotary.at(own)
            view = CallView(cos, sin, raw=kind == "commit", start=self._open[0], tokens=True, own_frames=own)
        else:
            assert self._plan is not None
            plan = self._plan.denoise if kind == "denoise" else self._plan.commit
            view = self._resolve(plan, stored=kind == "commit" or self._window == len(self._open), raw=kind == "commit")
        self._views[kind] = view
        return view

    def commit(self) -> None:
        """The commit call is done: the block's frames are resident from now on."""
        if not self._open:
            raise ValueError("commit(): no block is open; call begin() first")
        if self._compress:
            for selector in self._selectors:
                selector.commit(list(self._open))
        else:
            assert self._plan is not None
            positions = self._plan.commit.own_positions
            for frame, slot, position in zip(self._open, self._own_slots, positions, strict=True):
                self._order.append(frame)
                self._slots[frame] = slot
                self._phases[slot] = position
        self._close()
        self.stats.blocks += 1

    def reads_again(self, frames: int) -> bool:
        """Whether what the open block's commit call writes is kept or merged when one of ``frames`` frames follows."""
        return self._compress or outlasts(self.policy, self._order, self._open, frames, self._memory)

    def abort(self) -> None:
        """Forget the open block. Frames that its plan evicted or merged stay so: beginning it again gives the same."""
        for selector in self._selectors:
            selector.abort()
        self._close()

    def reset(self) -> None:
        """A new scene: nothing is resident, nothing of the old one is remembered. Storage stays."""
        self._clear()
        for selector in self._selectors:
            selector.reset()

    def _close(self) -> None:
        self._plan, self._recache, self._open, self._own_slots = None, None, (), ()
        self._views.clear()

    # ---------------------------------------------------------------- KV-recache at a prompt switch

    def begin_recache(self, newest: Sequence[int], keep_sink: bool) -> None:
        """Open a re-encoding of the clean frames `newest`; run one "commit" call that carries them all, then
        `commit_recache()`. keep_sink: sinks keep the old prompt's keys and values once the history outgrew the window.
        """
        if self._open:
            raise ValueError(f"begin_recache(): block {list(self._open)} is open; commit or abort it first")
        newest = tuple(newest)
        if not newest or len(newest) > self.policy.capacity:
            raise ValueError(f"newest={list(newest)}: give 1 to {self.policy.capacity} frames")
        self._views.clear()
        if self._compress:
            sink = self.policy.sink if keep_sink and newest[0] != 0 else 0
            self._recache = RecachePlan(tuple(range(sink)), (), tuple(range(sink, len(newest))), newest)
            for selector in self._selectors:
                selector.begin_recache(keep_sink=sink > 0, start=newest[0])
            self._open = newest
            return
        plan = self.policy.plan_recache(tuple(self._order), newest, keep_sink, self._memory)
        for frame in self._order:
            if frame not in plan.keep:
                self._phases[self._slots.pop(frame)] = None
        self._order = list(plan.keep)
        if not plan.keep:
            self._merged = ()
        self._own_slots = self._free(len(plan.store))
        self._memory, self._recache, self._open = dict(plan.memory), plan, newest

    def commit_recache(self) -> None:
        """The re-encoded frames are resident."""
        plan = self._recache
        if plan is None:
            raise ValueError("commit_recache(): no recache is open; call begin_recache() first")
        if self._compress:
            for selector in self._selectors:
                selector.commit([self._open[i] for i in plan.store])
        else:
            for offset, slot in zip(plan.store, self._own_slots, strict=True):
                frame = self._open[offset]
                self._order.append(frame)
                self._slots[frame] = slot
                self._phases[slot] = plan.own_positions[offset]
        self._close()

    def _resolve_recache(self, plan: RecachePlan) -> CallView:
        if self._compress:
            cos, sin = self.rotary.at(plan.own_positions)
            skip = plan.store[0] * self.tokens_per_frame
            return CallView(cos, sin, own=skip, raw=True, start=self._open[0], tokens=True, own_frames=self._open)
        view = View(plan.keep, plan.kept_positions, plan.own_positions)
        return self._resolve(view, stored=True, raw=True, skip=plan.store[0])

    # ---------------------------------------------------------------- slots

    def _free(self, frames: int) -> tuple[int, ...]:
        used = set(self._slots.values())
        free = [slot for slot in range(self.policy.capacity) if slot not in used][:frames]
        if len(free) < frames:
            raise RuntimeError(f"frames={frames}: only {len(free)} of {self.policy.capacity} slots are free")
        return tuple(free)

    def _resolve(self, view: View, *, stored: bool, raw: bool, skip: int = 0) -> CallView:
        """Frame ids to token ranges; cached keys are brought to the positions of the view."""
        s = self.tokens_per_frame
        slots = [self._slots[frame] for frame in view.frames]
        self._rephase(slots, view.positions)
        cos, sin = self.rotary.at(view.own_positions)
        spans = runs(slots)
        own_slots = self._own_slots if stored else ()
        writes, offset = [], skip
        for first, count in ordered_runs(own_slots):
            writes.append((first * s, offset * s, count * s))
            offset += count
        # Keys in storage order, for attention that needs to know which frame a key is of.
        by_slot = dict(zip(slots, view.frames, strict=True))
        own_frames = tuple(range(self._open[0], self._open[0] + len(view.own_positions)))
        own = own_frames[skip:]
        lo, hi = 0, -1
        if stored and len(own_slots) == len(own):
            together = sorted([*slots, *own_slots])
            if together[-1] - together[0] + 1 == len(together):
                lo, hi = together[0] * s, (together[-1] + 1) * s
                by_slot |= dict(zip(own_slots, own, strict=True))
        key_frames = tuple(by_slot[slot] for slot in sorted(by_slot)) + (() if hi >= 0 else own)
        return CallView(
            cos,
            sin,
            lo=lo,
            hi=hi,
            spans=tuple((a * s, (a + n) * s) for a, n in spans),
            writes=tuple(writes),
            own=skip * s,
            raw=raw,
            start=self._open[0],
            own_frames=own_frames,
            key_frames=key_frames,
        )

    def _rephase(self, slots: Sequence[int], positions: Sequence[Phase]) -> None:
        wanted = {s: p for s, p in zip(slots, positions, strict=True) if self._phases[s] != p}
        if not wanted:
            return
        t = self.tokens_per_frame
        if self._raw is None or max(wanted) >= self._raw.shape[2] // t:
            raise RuntimeError(f"cache: frames in slots {sorted(wanted)} cannot be read at another position")
        for first, count in runs(list(wanted)):
            run = [wanted[slot] for slot in range(first, first + count)]
            a, b = first * t, (first + count) * t
            for store in self.layers:
                assert store.raw is not None
                self.rotary.rotate(store.raw[:, a:b], run, out=store.keys[:, a:b])
            for slot, position in zip(range(first, first + count), run, strict=True):
                self._phases[slot] = position
            self.stats.rephased_frames += count

    def _merge(self, evicted: Sequence[int], into: Sequence[int], alpha: float) -> None:
        """sink <- alpha * sink + (1 - alpha) * evicted on un-roped keys and on values, in float32."""
        assert self._raw is not None
        t = self.tokens_per_frame
        slots = [self._slots[f] for f in into]
        first = slots[0] * t
        if slots != list(range(slots[0], slots[0] + len(slots))):
            raise RuntimeError(f"cache: sink frames {list(into)} are in slots {slots}, not side by side")
        if not self._merged:
            sink = slice(first, first + len(slots) * t)
            self.set_masters(into, self._raw[:, :, sink], self._values[:, :, sink])
        for i, frame in enumerate(evicted):
            a, part = self._slots[frame] * t, slice(i * t, (i + 1) * t)
            for master, storage in zip(self._masters, (self._raw, self._values), strict=True):
                leaving, merged = (pieces(storage[:, :, b : b + t]) for b in (a, first + i * t))
                ema_merge(pieces(master[:, :, part]), leaving, alpha, out=merged)  # all layers: one launch a frame
        for slot in slots:
            self._phases[slot] = None
        self.stats.merged_frames += len(evicted)

    def set_masters(self, frames: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """Merged sink frames, their un-roped keys and values [layers, B, T, N, D], in float32 from now on."""
        for master, now in zip(self._masters, (keys, values), strict=True):
            master.copy_(now)
        self._merged = tuple(frames)

    # ---------------------------------------------------------------- integrity, snapshot

    def check_integrity(self) -> None:
        """Raise RuntimeError when the bookkeeping contradicts itself or a resident value is not finite."""
        check_integrity(self)

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that is resident, as safetensors-ready CPU tensors and JSON-able facts. Exact. Between blocks only."""
        return take_snapshot(self)

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Become what `snapshot` saw. Raises InputError when it came from another policy or size."""
        restore_snapshot(self, tensors, meta)
