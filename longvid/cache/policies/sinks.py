"""Sinks that do more than stay: Deep Forcing's re-aligned deep sink and Reward Forcing's EMA-Sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longvid.errors import InputError

from .plan import Merge, Plan, RecachePlan, Rephase, View, evict_oldest, require
from .sliding import check_commit_window, commit_view, gathered, recache_plan


class DeepSinkPolicy:
    """Deep Sink (Deep Forcing, arXiv 2512.05081, sec. 4.1): a sink of about half the window, whose temporal phase is
    moved along with the window.

    Released code (hole_free=False): the first eviction leaves the sink where it is, every later block moves it by as
    many frames as the video advanced. A hole of one block stays between sink and tail, because the code counts the
    current block as part of the tail's length. The paper's eq. 5-6 places the sink directly before the tail
    (hole_free=True).
    """

    name = "deep-sink"
    merged = 0
    rephase: Rephase = "sink"

    def __init__(
        self, *, window: int, sink: int, frames_per_block: int, hole_free: bool = False, commit_window: int = 0
    ) -> None:
        require(sink >= 1, f"sink={sink}: the deep sink needs at least 1 frame; use policy 'window' for none")
        require(
            window >= sink + frames_per_block,
            f"window={window}: must hold the sink ({sink}) and one block ({frames_per_block}); "
            f"use {sink + frames_per_block} or more",
        )
        check_commit_window(commit_window, frames_per_block)
        self.window, self.sink, self.hole_free, self.commit_window = window, sink, hole_free, commit_window
        self.frames_per_block, self.capacity = frames_per_block, window

    def gathered(self, window: int) -> int:
        return gathered(self.capacity, self.frames_per_block, window, self.commit_window)

    def plan(self, resident: Sequence[int], start: int, frames: int, window: int, memory: Mapping[str, int]) -> Plan:
        evicted, kept = evict_oldest(resident, frames, self.window, self.sink)
        memory = dict(memory)
        if evicted:
            first_roll = memory.setdefault("first_roll", start)
            tail_start = kept[self.sink] if len(kept) > self.sink else start
            memory["sink_shift"] = (tail_start - self.sink - kept[0]) if self.hole_free else start - first_roll
        shift = memory.get("sink_shift", 0)
        positions = tuple(f + shift for f in kept[: self.sink]) + kept[self.sink :]
        denoise = View(kept, positions, tuple(range(start, start + window)))
        return Plan(evicted, denoise, commit_view(denoise, start, frames, self.commit_window), memory=memory)

    def plan_recache(
        self, resident: Sequence[int], newest: Sequence[int], keep_sink: bool, memory: Mapping[str, int]
    ) -> RecachePlan:
        shift = memory.get("sink_shift", 0)
        plan = recache_plan(
            resident,
            newest,
            self.sink if keep_sink else 0,
            window_positions=False,
            memory=memory,
            sink_positions=[f + shift for f in resident[: self.sink]],
        )
        if plan.keep or not newest or newest[0] == resident[0]:
            return plan
        # A rebuilt sink starts a new history of shifts: its frames stand where they were encoded.
        return RecachePlan(plan.keep, plan.kept_positions, plan.store, plan.own_positions, {})


class EmaSinkPolicy:
    """EMA-Sink (Reward Forcing, arXiv 2512.04678, sec. 3.2; released code of 2025-12-15): frames that leave the window
    are averaged into the sink, frame by frame, token by token: ``sink <- a * sink + (1 - a) * evicted``.

    Positions count 0, 1, 2... in the order of the cache. The evicted span must be as long as the averaged part of the
    sink; the release silently overwrites the sink otherwise, we refuse.

    static: the first frames of the sink, which no merge touches; the average stands behind them (ours; 0 is the paper).
    """

    name = "ema-sink"
    rephase: Rephase = "all"

    def __init__(
        self,
        *,
        window: int,
        sink: int,
        frames_per_block: int,
        ema_alpha: float = 0.999,
        static: int = 0,
        commit_window: int = 0,
    ) -> None:
        require(0.0 <= ema_alpha <= 1.0, f"ema_alpha={ema_alpha}: must be in [0, 1]; the release uses 0.999")
        require(
            static >= 0 and static % frames_per_block == 0,
            f"static={static}: must be whole blocks of {frames_per_block} frames, which is how the sink is filled",
        )
        require(
            sink == static + frames_per_block,
            f"sink={sink}: the EMA sink merges one evicted block into it, so behind its {static} static frames it must "
            f"be as long as a block; use sink={static + frames_per_block}",
        )
        require(
            window >= sink + frames_per_block,
            f"window={window}: must hold the sink ({sink}) and one block ({frames_per_block}); "
            f"use {sink + frames_per_block} or more",
        )
        check_commit_window(commit_window, frames_per_block)
        self.window, self.sink, self.ema_alpha, self.commit_window = window, sink, float(ema_alpha), commit_window
        self.static, self.merged = static, sink - static
        self.frames_per_block, self.capacity = frames_per_block, window

    def gathered(self, window: int) -> int:
        return gathered(self.capacity, self.frames_per_block, window, self.commit_window)

    def plan(self, resident: Sequence[int], start: int, frames: int, window: int, memory: Mapping[str, int]) -> Plan:
        evicted, kept = evict_oldest(resident, frames, self.window, self.sink)
        merge = None
        if evicted:
            averaged = tuple(resident[self.static : self.sink])
            if len(evicted) != len(averaged):
                raise InputError(
                    f"window={self.window}: {len(evicted)} frames leave at frame {start}, but the EMA sink holds "
                    f"{len(averaged)}; use a window of {len(resident)} or {len(resident) + frames}"
                )
            merge = Merge(evicted, averaged, self.ema_alpha)
        cached = len(kept)
        denoise = View(kept, tuple(range(cached)), tuple(range(cached, cached + window)))
        return Plan(evicted, denoise, commit_view(denoise, start, frames, self.commit_window), merge, dict(memory))

    def plan_recache(
        self, resident: Sequence[int], newest: Sequence[int], keep_sink: bool, memory: Mapping[str, int]
    ) -> RecachePlan:
        return recache_plan(resident, newest, self.sink if keep_sink else 0, window_positions=True, memory=memory)
