"""How the pictures of a running session fare: a few numbers a block, at a small share of the block's own cost.

Shape letters: T video frames, H W pixels.
"""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np

from longvid.metrics.extras import MissingExtraError
from longvid.metrics.frames import THUMB_SIDE, mean_abs_diff
from longvid.metrics.report import StreamMetrics

SHOWN = ("brightness", "contrast", "saturation", "sharpness", "motion", "start_distance", "identity_drift", "frozen")
SPARSE = 4
"""One frame in so many is measured, which is enough for a gauge: optical flow of each would cost a third of a block."""

logger = logging.getLogger("longvid.serve")


class LiveMeter:
    """Feed it every block's frames. fps: of the video.

    drift: by name, means over the last block: brightness and contrast (0-255), saturation (0-1), sharpness, motion
    (top-5 % flow, pixels a frame; needs OpenCV), flicker (VBench's score, 1 is none), start_distance and identity_drift
    (grey levels), frozen (1: nothing has moved for a second, else 0). What is not known yet is left out.
    seam: the change across the block's border over the median change inside it; None where either is unknown.
    """

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._metrics: StreamMetrics | None = None
        self._frames = 0
        self._last: np.ndarray | None = None
        self.drift: dict[str, float] = {}
        self.seam: float | None = None

    def update(self, frames_THW3: np.ndarray) -> None:
        """uint8 [T, H, W, 3] of one block."""
        drift = dict(self.drift)
        if min(frames_THW3.shape[1:3]) >= THUMB_SIDE:  # smaller pictures have no drift to speak of
            drift |= self._measured(frames_THW3)
        inside = [mean_abs_diff(a, b) for a, b in pairwise(frames_THW3)]
        border = None if self._last is None else mean_abs_diff(self._last, frames_THW3[0])
        self.seam = self._seam(inside, border)
        steps = inside if border is None else [border, *inside]
        if steps:
            drift["flicker"] = 1 - sum(steps) / len(steps) / 255
        self.drift = drift  # at once: another thread reads it
        self._frames += len(frames_THW3)
        self._last = frames_THW3[-1].copy()

    def _measured(self, frames_THW3: np.ndarray) -> dict[str, float]:
        if self._metrics is None:
            self._metrics = _stream_metrics(self._fps / SPARSE)
        chosen = frames_THW3[-self._frames % SPARSE :: SPARSE]
        if not len(chosen):
            return {}
        live = self._metrics.update(np.ascontiguousarray(chosen))
        if "motion" in live:
            live["motion"] /= SPARSE  # from one measured frame to the next
        return {name: float(live[name]) for name in SHOWN if name in live and np.isfinite(live[name])}

    @staticmethod
    def _seam(inside: list[float], border: float | None) -> float | None:
        if border is None or len(inside) < 2:
            return None
        usual = float(np.median(inside))
        # Below one grey level on average nothing moves: a ratio of noise says nothing.
        return border / usual if usual >= 1 / 16 else None


def _stream_metrics(fps: float) -> StreamMetrics:
    """With motion where OpenCV is installed: a server can do without, and says so in its log."""
    try:
        return StreamMetrics(fps)
    except MissingExtraError as error:
        logger.warning("stats without motion: %s", error)
        return StreamMetrics(fps, motion=False)
