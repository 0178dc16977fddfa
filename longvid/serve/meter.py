"""Drift and seams of a running session: a few numbers a block, at a small share of the block's own cost.

Shape letters: T video frames, H W pixels.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from longvid.metrics.frames import THUMB_SIDE
from longvid.metrics.report import StreamMetrics

SHOWN = ("brightness", "contrast", "saturation", "sharpness", "start_distance", "identity_drift")


class LiveMeter:
    """Feed it every block's frames. fps: of the video. stride: every so many frames one is measured for drift."""

    def __init__(self, fps: float, stride: int = 4) -> None:
        self._stride = stride
        self._metrics = StreamMetrics(fps / stride, motion=False)
        self._last: np.ndarray | None = None
        self.drift: dict[str, float] = {}
        self.seam: float | None = None

    def update(self, frames_THW3: np.ndarray) -> None:
        """uint8 [T, H, W, 3] of one block."""
        if min(frames_THW3.shape[1:3]) >= THUMB_SIDE:  # smaller pictures have no drift to speak of
            self._measure_drift(frames_THW3)
        self.seam = self._seam(frames_THW3)
        self._last = frames_THW3[-1].copy()

    def _measure_drift(self, frames_THW3: np.ndarray) -> None:
        live = self._metrics.update(np.ascontiguousarray(frames_THW3[:: self._stride]))
        self.drift = {name: float(live[name]) for name in SHOWN if name in live and np.isfinite(live[name])}

    def _seam(self, frames: np.ndarray) -> float | None:
        """Mean change across the border over the median change inside the block; None where either is unknown."""
        if self._last is None or len(frames) < 3:
            return None
        inside = float(np.median([_change(a, b) for a, b in pairwise(frames)]))
        border = _change(self._last, frames[0])
        # Below one grey level on average nothing moves: a ratio of noise says nothing.
        return border / inside if inside >= 1 / 16 else None


def _change(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean())
