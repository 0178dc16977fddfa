"""Does the scene stay the scene, and the subject itself? Identity drift with the subject left out, and its own colour.

A median image of five seconds (longvid.metrics.identity) still holds a subject that moves slowly, and then counts where
it went as drift. Here the oracle (longvid.metrics.oracle) says where the subject is, and its pixels are left out. What
is left counts as drift only where the world itself stands still (longvid.metrics.oracle.STATIC).

Shapes: T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from longvid.errors import InputError

MARGIN = 1.45  # of the radius: corners of boxes, tips of stars and hearts, and the oracle's own error
CORE = 0.5  # of the radius: inside every shape but the ring
FEWEST = 5  # samples without the subject that a pixel's median needs
EVERY = 2  # frames to a sample


class SceneDrift:
    """Collects segments of a video: median images without the subject, and the subject's colour."""

    def __init__(self, span: int) -> None:
        """``span``: frames of a segment. Raises InputError below 1."""
        if span < 1:
            raise InputError(f"span={span!r}: must be at least 1 frame")
        self._span = span
        self._frames = 0
        self._held: list[np.ndarray] = []
        self._hidden: list[np.ndarray] = []
        self._shades: list[np.ndarray] = []
        self._first: np.ndarray | None = None
        self.drifts: list[float] = []
        """Of each segment after the first: mean |segment - first segment| in grey levels over the pixels known in both,
        NaN where there is none."""
        self.colours: list[np.ndarray] = []
        """Of each segment: median colour of the subject's core, float64 [3] in grey levels, NaN where it was never
        seen."""

    def cut(self) -> None:
        """Drop the unfinished segment: what comes is a new one."""
        self._frames -= self._frames % self._span
        for held in (self._held, self._hidden, self._shades):
            held.clear()

    def update(self, frames: np.ndarray, seen: Mapping[str, np.ndarray]) -> None:
        """Add uint8 frames [T, H, W, 3] and what the oracle read off them: x, y and radius, float [T] in fractions of
        the side, and count, int [T]. Frames without exactly one subject are not sampled."""
        side = frames.shape[1]
        rows, columns = np.mgrid[: frames.shape[1], : frames.shape[2]]
        for place, frame in enumerate(frames):
            if self._frames % EVERY == 0 and seen["count"][place] == 1:
                away = np.hypot(columns - seen["x"][place] * side, rows - seen["y"][place] * side)
                radius = seen["radius"][place] * side
                self._held.append(frame)
                self._hidden.append(away <= MARGIN * radius)
                core = frame[away <= CORE * radius]
                if len(core):
                    self._shades.append(core.mean(axis=0))
            self._frames += 1
            if self._frames % self._span == 0:
                self._close()

    def _close(self) -> None:
        self.colours.append(np.median(self._shades, axis=0) if self._shades else np.full(3, np.nan))
        if self._held:
            middle = median_without(np.stack(self._held), np.stack(self._hidden))
            if self._first is None:
                self._first = middle
            else:
                away = np.abs(middle - self._first)
                self.drifts.append(float(np.nanmean(away)) if np.isfinite(away).any() else float("nan"))
        elif self._first is not None:
            self.drifts.append(float("nan"))
        for held in (self._held, self._hidden, self._shades):
            held.clear()

    def colour_shift(self) -> float:
        """Mean |difference| of the subject's colour, last segment from first, grey levels; NaN below two segments."""
        return float(np.abs(self.colours[-1] - self.colours[0]).mean()) if len(self.colours) > 1 else float("nan")


def median_without(frames: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Lower median over T of uint8 frames [T, H, W, 3] where not hidden [T, H, W]: float32 [H, W, 3], NaN where fewer
    than FEWEST samples are left."""
    known = (~hidden).sum(axis=0)
    ordered = np.sort(np.where(hidden[..., None], np.uint16(999), frames), axis=0)  # hidden ones go last
    places = np.maximum((known - 1) // 2, 0)[None, ..., None]
    middle: np.ndarray = np.take_along_axis(ordered, places, axis=0)[0].astype(np.float32)
    middle[known < FEWEST] = np.nan
    return middle
