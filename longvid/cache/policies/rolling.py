"""Rolling Forcing's cache rule: sink + recent frames + the joint window (arXiv 2509.25161, sec. 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .plan import Plan, RecachePlan, Rephase, View, evict_oldest, newest, require
from .sliding import recache_plan


class RollingPolicy:
    """``[ sink | r recent frames | frames of the call ]``, at most `window` frames in attention.

    Denoise view of a call of q frames that starts at frame s: r = min(window - q - sink, s - sink) newest cached
    frames, and the sink read at positions s - r - sink ... s - r - 1, directly before them. Commit view: the newest
    `window` frames of the cache including the committed block, at their own positions; once s + block > window the
    sink has left this view.

    cache_frames: frames that are stored, the committed block included (the release: window + one block).
    """

    name = "rolling"
    merged = 0
    rephase: Rephase = "sink"

    def __init__(self, *, window: int, sink: int, frames_per_block: int, cache_frames: int | None = None) -> None:
        cache_frames = window + frames_per_block if cache_frames is None else cache_frames
        require(sink >= 1, f"sink={sink}: rolling needs at least 1 sink frame; the release keeps the first block")
        require(
            window >= sink + frames_per_block,
            f"window={window}: must hold the sink ({sink}) and one block ({frames_per_block}); "
            f"use {sink + frames_per_block} or more",
        )
        require(
            cache_frames >= sink + frames_per_block,
            f"cache_frames={cache_frames}: must hold the sink ({sink}) and one block ({frames_per_block})",
        )
        self.window, self.sink, self.capacity = window, sink, cache_frames

    def gathered(self, window: int) -> int:
        return max(self.window, self.sink + window)

    def plan(self, resident: Sequence[int], start: int, frames: int, window: int, memory: Mapping[str, int]) -> Plan:
        evicted, kept = evict_oldest(resident, frames, self.capacity, self.sink)
        own = tuple(range(start, start + window))
        if not kept:
            denoise = View((), (), own)
        else:
            sink, past = kept[: self.sink], kept[self.sink :]
            recent = newest(past, self.window - window - len(sink))
            first = start - len(recent) - len(sink)
            denoise = View(sink + recent, tuple(range(first, first + len(sink))) + recent, own)
        seen = newest(kept, self.window - frames)
        return Plan(evicted, denoise, View(seen, seen, own[:frames]), memory=dict(memory))

    def plan_recache(
        self, resident: Sequence[int], newest: Sequence[int], keep_sink: bool, memory: Mapping[str, int]
    ) -> RecachePlan:
        return recache_plan(resident, newest, self.sink if keep_sink else 0, window_positions=False, memory=memory)
