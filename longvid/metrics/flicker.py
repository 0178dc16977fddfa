"""Flicker: VBench's temporal flickering, and the flutter of a video's brightness.

VBench's formula cannot tell motion from flicker and is meant for still clips: read it beside motion. The luminance
flutter sees only what changes the whole picture's brightness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longvid.metrics.frames import View, check_frames, mean_abs_diff


@dataclass(frozen=True, slots=True, kw_only=True)
class Flicker:
    """Flicker of a video."""

    score: float
    """VBench's temporal_flickering, (255 - mean |I_t - I_{t+1}|) / 255 over RGB: 1 is a still picture."""
    luminance: float
    """Standard deviation of the step in mean luma after taking out its mean (a steady fade): grey levels, 0 is none."""


class FlickerMeter:
    """Online flicker; keeps one frame."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None
        self._last_luma = 0.0
        self._pairs = 0
        self._difference = self._step_mean = self._step_square = 0.0

    def update(self, view: View) -> tuple[float, float] | None:
        """Add one frame; mean |difference| from the previous one and step in mean luma, or None for the first."""
        y, pair = float(view.luma.mean(dtype=np.float64)), None
        if self._last is not None:
            pair = mean_abs_diff(self._last, view.full), y - self._last_luma
            self._pairs += 1
            self._difference += pair[0]
            away = pair[1] - self._step_mean  # Welford's running variance
            self._step_mean += away / self._pairs
            self._step_square += away * (pair[1] - self._step_mean)
        self._last, self._last_luma = view.full, y
        return pair

    def cut(self) -> None:
        """Nothing is measured between the frames so far and those to come."""
        self._last = None

    def result(self) -> Flicker:
        """Raises ValueError for fewer than 2 frames."""
        if not self._pairs:
            raise ValueError(f"frames: got {0 if self._last is None else 1}, flicker needs at least 2")
        return Flicker(
            score=(255 - self._difference / self._pairs) / 255,
            luminance=float(np.sqrt(self._step_square / self._pairs)),
        )


def measure_flicker(frames: np.ndarray) -> Flicker:
    """Flicker of uint8 frames [T, H, W, 3]. Raises ValueError under 2 frames."""
    meter = FlickerMeter()
    for frame in check_frames(frames, least=2):
        meter.update(View(frame))
    return meter.result()
