"""A display clock: how far a viewer that plays at the video's pace has come, and when the next block is wanted."""

from __future__ import annotations

import math


class Pacer:
    """Keeps generation within a bound of the display clock. Times are seconds of a monotonic clock.

    The clock starts with the first block. When generation falls behind, the clock waits with the viewer (soft
    re-anchoring): after a stall it does not race to catch up.
    """

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self._anchor: float | None = None  # when frame 0 is due

    def made(self, first: int, now: float) -> None:
        """The block that begins with frame `first` is ready; shifts the clock when it is late."""
        if self._anchor is None or now > self._anchor + first / self.fps:
            self._anchor = now - first / self.fps

    def ahead(self, made: int, now: float) -> float:
        """Frames that are made and not yet due, of `made` in all."""
        if self._anchor is None:
            return 0.0
        return max(0.0, made - (now - self._anchor) * self.fps)

    def wait(self, made: int, block: int, blocks: int, now: float) -> float:
        """Seconds until another block of `block` frames stays within `blocks` blocks of the clock; 0 is now."""
        excess = self.ahead(made, now) - (blocks - 1) * block
        return max(0.0, excess / self.fps) if math.isfinite(excess) else 0.0

    def hold(self, seconds: float) -> None:
        """The video stood still for that long (a pause): the clock did too."""
        if self._anchor is not None:
            self._anchor += seconds
