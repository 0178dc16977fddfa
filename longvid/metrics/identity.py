"""Identity drift: does the scene stay the scene it was, where only the model's memory holds it?

The median image of a few seconds is the scene without what moves through it. Its distance to the median image of the
first seconds is how much of the scene's identity has gone. A frozen video would score zero, so the drift never comes
alone: every result carries the share of frozen time, and ``IdentityDrift.counts`` is false for a video that froze.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longvid.metrics.faults import FaultMeter
from longvid.metrics.frames import View, check_fps, check_frames
from longvid.metrics.motion import Motion, MotionMeter
from longvid.metrics.series import SEGMENT_SECONDS, Bins

SAMPLES_A_SEGMENT = 40  # frames that a median image is over; 5 s at 8 Hz
FROZEN_LIMIT = 0.1  # share of frozen time above which a small drift is no merit


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityDrift:
    """Mean |median image of a segment - median image of the first| over all pixels and channels, in grey levels."""

    mean: float
    """Over the segments after the first."""
    last: float
    worst: float
    worst_at: float
    """Seconds at which the worst segment begins."""
    segments: tuple[float, ...]
    """Each segment after the first, in order; neighbours are averaged in videos of hours."""
    segment_seconds: float
    motion: float
    """Top-5 % flow in pixels a frame (:class:`Motion` ``.top5``); NaN when motion was not measured."""
    frozen: float
    """Share of the video's frames in frozen stretches."""

    @property
    def counts(self) -> bool:
        """Whether the drift may be compared: false for a video that stands still for more than a tenth of its time."""
        return self.frozen <= FROZEN_LIMIT


class IdentityMeter:
    """Online identity drift: holds the frames of one segment (at most 40, at working size) and one median image."""

    def __init__(self, fps: float, *, segment_seconds: float = SEGMENT_SECONDS) -> None:
        self._fps = check_fps(fps)
        self._span = max(1, round(segment_seconds * fps))
        self._every = -(-self._span // SAMPLES_A_SEGMENT)
        self._samples = -(-self._span // self._every)
        self._held: np.ndarray | None = None  # [h, w, 3, samples]: a pixel's samples lie together, for the median
        self._first: np.ndarray | None = None
        self._drifts = Bins(1, 1)
        self._frames = 0
        self.latest: float | None = None
        """Drift of the last finished segment, None before the second one is finished."""

    def update(self, view: View) -> None:
        """Add one frame; the median is taken when a segment is complete."""
        within = self._frames % self._span
        if self._held is None:
            self._held = np.zeros((*view.rgb.shape, self._samples), dtype=np.uint8)
        if within % self._every == 0:
            self._held[..., within // self._every] = view.rgb
        self._frames += 1
        if within == self._span - 1:
            middle = median_image(self._held)
            if self._first is None:
                self._first = middle
            else:
                self.latest = float(np.abs(middle - self._first).mean(dtype=np.float64))
                self._drifts.update(np.array([self.latest]))

    def cut(self) -> None:
        """Drop the unfinished segment: frames to come begin a new one, compared with the first as before."""
        self._frames -= self._frames % self._span

    def result(self, *, frozen: float, motion: float = float("nan")) -> IdentityDrift:
        """The drift, with what it must be read beside. Raises ValueError for a video shorter than two segments."""
        seconds = self._span / self._fps
        if self.latest is None:
            raise ValueError(
                f"video: {self._frames / self._fps:.1f} s, an identity drift needs two segments of {seconds:.1f} s"
            )
        values = self._drifts.values()[:, 0]
        worst = int(np.argmax(values))
        return IdentityDrift(
            mean=float(values.mean()),
            last=self.latest,
            worst=float(values[worst]),
            worst_at=float((1 + worst * self._drifts.width) * seconds),
            segments=tuple(float(v) for v in values),
            segment_seconds=seconds,
            motion=motion,
            frozen=frozen,
        )


def median_image(frames: np.ndarray) -> np.ndarray:
    """Median over the last axis of uint8 [..., n] (the two middle ones averaged for even n): float32 [...]."""
    n = frames.shape[-1]
    low, high = (n - 1) // 2, n // 2
    ordered = np.partition(frames, (low, high) if low != high else low, axis=-1)
    return (ordered[..., low].astype(np.float32) + ordered[..., high]) / 2


def identity_drift(frames: np.ndarray, fps: float, *, segment_seconds: float = SEGMENT_SECONDS) -> IdentityDrift:
    """Identity drift of uint8 frames [T, H, W, 3], with the motion (needs OpenCV) and the frozen share beside it."""
    meter, moved, faults = IdentityMeter(fps, segment_seconds=segment_seconds), MotionMeter(fps), FaultMeter(fps)
    for frame in check_frames(frames, least=3):
        view = View(frame)
        meter.update(view)
        moved.update(view)
        faults.update(view)
    motion: Motion = moved.result()
    return meter.result(frozen=faults.result().frozen, motion=motion.top5)
