"""What a session has cost and shown so far: the numbers behind ``stats``."""

from __future__ import annotations

from collections import deque
from statistics import median

import numpy as np

from .messages import BlockTimes

_RECENT_BLOCKS = 8


class Tally:
    """Counts blocks and frames. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self.frames = 0
        self.blocks = 0
        """Index behind the last block."""
        self.first_frame_seconds: float | None = None
        """From the session's start to its first frame on the wire."""
        self._seconds: deque[float] = deque(maxlen=100)
        self._made_at: deque[tuple[float, int]] = deque(maxlen=_RECENT_BLOCKS + 1)

    def add(self, index: int, frames: int, seconds: float, now: float) -> None:
        """A block of `frames` frames came out after `seconds` of model time."""
        self.frames += frames
        self.blocks = index + 1
        self._seconds.append(seconds)
        self._made_at.append((now, frames))

    @property
    def fps(self) -> float | None:
        """Frames a second over the last blocks, waiting included; None before the second block."""
        if len(self._made_at) < 2:
            return None
        span = self._made_at[-1][0] - self._made_at[0][0]
        frames = sum(count for _, count in list(self._made_at)[1:])
        return frames / span if span > 0 else None

    @property
    def block_times(self) -> BlockTimes:
        """In milliseconds, over the last 100 blocks. After the first block only."""
        times = [1000 * seconds for seconds in self._seconds]
        return BlockTimes(last=times[-1], median=median(times), p95=float(np.percentile(times, 95)))
