"""A bank of finished frames for calls whose own frames always start at position 0 (the windows of a FIFO queue)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .plan import Plan, View
from .sliding import SlidingPolicy


class BankPolicy(SlidingPolicy):
    """``[ first frames | newest frames ]``, read side by side right before frame 0, at positions ``-n .. -1``.

    A window of the queue is at positions 0 .. f-1 however far the video has come, so the bank's frames are never
    further away than the bank is long, and every window of a pass may read the same rotated keys.

    sink: first frames of the video, which never leave. recent: newest finished frames.
    """

    def __init__(self, *, sink: int, recent: int) -> None:
        super().__init__(window=sink + recent + 1, frames_per_block=1, sink=sink, positions="window", name="bank")

    def plan(self, resident: Sequence[int], start: int, frames: int, window: int, memory: Mapping[str, int]) -> Plan:
        plan = super().plan(resident, start, frames, window, memory)
        return Plan(plan.evict, _before_zero(plan.denoise), _before_zero(plan.commit), plan.merge, plan.memory)


def _before_zero(view: View) -> View:
    count = len(view.frames)
    return View(
        view.frames,
        tuple(position - count for position in view.positions),
        tuple(position - count for position in view.own_positions),
    )
