"""Full history, sliding window, and sink + window (Self-Forcing's and StreamingLLM's rules)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from .plan import Plan, RecachePlan, Rephase, View, evict_oldest, newest, require

Positions = Literal["absolute", "window"]


class SlidingPolicy:
    """``[ sink | newest frames | current block ]``, `window` frames in all.

    positions="absolute": every frame keeps the position of its place in the video (Self-Forcing, LongLive: the sink
    grows ever more distant). positions="window": frames are counted 0, 1, 2... in the order of the cache, as
    StreamingLLM does (Xiao et al. 2024, sec. 3.2), so that no distance ever exceeds the window.

    commit_window: frames, current block included, that the commit call reads: the newest ones, whatever their role
    (the Commit-Forcing rule). 0: the same view as the denoise calls.
    """

    merged = 0

    def __init__(
        self,
        *,
        window: int,
        frames_per_block: int,
        sink: int = 0,
        positions: Positions = "absolute",
        commit_window: int = 0,
        name: str = "sink",
    ) -> None:
        require(positions in ("absolute", "window"), f"positions={positions!r}: must be 'absolute' or 'window'")
        require(sink >= 0, f"sink={sink}: must be 0 or more frames")
        require(
            window >= sink + frames_per_block,
            f"window={window}: must hold the sink ({sink}) and one block ({frames_per_block}); "
            f"use {sink + frames_per_block} or more",
        )
        check_commit_window(commit_window, frames_per_block)
        self.name, self.window, self.sink, self.commit_window = name, window, sink, commit_window
        self.positions: Positions = positions
        self.frames_per_block, self.capacity = frames_per_block, window
        self.rephase: Rephase = "all" if positions == "window" else "none"

    def gathered(self, window: int) -> int:
        return gathered(self.capacity, self.frames_per_block, window, self.commit_window)

    def plan(self, resident: Sequence[int], start: int, frames: int, window: int, memory: Mapping[str, int]) -> Plan:
        evicted, kept = evict_oldest(resident, frames, self.window, self.sink)
        if self.positions == "window":
            positions, own = tuple(range(len(kept))), tuple(range(len(kept), len(kept) + window))
        else:
            positions, own = kept, tuple(range(start, start + window))
        denoise = View(kept, positions, own)
        return Plan(evicted, denoise, commit_view(denoise, start, frames, self.commit_window), memory=dict(memory))

    def plan_recache(
        self, resident: Sequence[int], newest: Sequence[int], keep_sink: bool, memory: Mapping[str, int]
    ) -> RecachePlan:
        return recache_plan(
            resident, newest, self.sink if keep_sink else 0, window_positions=self.positions == "window", memory=memory
        )


def check_commit_window(commit_window: int, frames_per_block: int) -> None:
    require(
        commit_window == 0 or commit_window >= frames_per_block,
        f"commit_window={commit_window}: must be 0 (same view as denoising) or at least one block ({frames_per_block})",
    )


def commit_view(denoise: View, start: int, frames: int, commit_window: int) -> View:
    """The commit call's view: the denoise view, or under the commit rule only the frames just before the block."""
    own = denoise.own_positions[:frames]
    if not commit_window:
        return View(denoise.frames, denoise.positions, own)
    first = start - (commit_window - frames)  # a sink that was left behind is not among them
    count = sum(frame >= first for frame in denoise.frames)
    return View(newest(denoise.frames, count), newest(denoise.positions, count), own)


def gathered(capacity: int, frames_per_block: int, window: int, commit_window: int) -> int:
    """`Policy.gathered` where a block takes the place of as many frames as leave, so that all of the storage is read.

    Apart are a joint window's own frames, most of which have no slot yet, and the newest few frames of a ring.
    """
    joint = capacity - frames_per_block + window if window > frames_per_block else 0
    return max(joint, min(commit_window, capacity) if commit_window > frames_per_block else 0)


def recache_plan(
    resident: Sequence[int],
    fresh: Sequence[int],
    sink: int,
    *,
    window_positions: bool,
    memory: Mapping[str, int],
    sink_positions: Sequence[int] | None = None,
) -> RecachePlan:
    """LongLive's recache: while all history fits the window everything is encoded anew, the sink included; later the
    sink's old keys and values stay and the oldest re-encoded frames only act as queries."""
    whole_history = bool(resident) and resident[0] == fresh[0]
    kept = () if whole_history else tuple(resident[:sink])
    skip = len(kept)
    own = tuple(range(len(fresh))) if window_positions else tuple(fresh)
    positions = tuple(sink_positions or ()) if sink_positions is not None else kept
    return RecachePlan(
        keep=kept,
        kept_positions=tuple(range(skip)) if window_positions else tuple(positions[:skip]),
        store=tuple(range(skip, len(fresh))),
        own_positions=own,
        memory=dict(memory),
    )
