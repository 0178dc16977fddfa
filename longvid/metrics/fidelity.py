"""How close one rendering of a video is to another of the same seed: a fast path against the reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from longvid.errors import InputError
from longvid.metrics.consistency import similarity
from longvid.metrics.frames import View, check_frames

DIVERGED_DB = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """A video against its reference, frame by frame."""

    frames: int
    identical: int
    """Frames at the start that are equal bit for bit."""
    max_abs: int
    """Largest difference of any channel value, 0-255."""
    psnr: float
    """Mean PSNR in dB over the frames that differ; infinite when none does."""
    similarity: float
    """Mean SSIM of 32 x 32 luma thumbnails."""
    diverged_at: int | None
    """First frame under 30 dB, None when there is none."""


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 arrays of one shape, in dB; infinite when they are equal."""
    error = float(np.mean(np.square(a.astype(np.float32) - b), dtype=np.float64))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def compare(frames: Iterable[np.ndarray], reference: Iterable[np.ndarray]) -> Fidelity:
    """Compare two streams of uint8 frames [H, W, 3] pair by pair; raises InputError if sizes or lengths differ."""
    count = identical = largest = differing = 0
    alike = decibels = 0.0
    diverged: int | None = None
    for a, b in zip_longest(frames, reference):
        if a is None or b is None:
            shorter = "frames" if a is None else "reference"
            raise InputError(f"{shorter}: ends after {count} frames, the other goes on; both must be equally long")
        check_frames(a[None], "frames")
        if a.shape != b.shape or b.dtype != a.dtype:
            raise InputError(f"frames {a.dtype} {list(a.shape)}, reference {b.dtype} {list(b.shape)}: must be alike")
        value = psnr(a, b)
        if np.isinf(value):
            identical += identical == count
        else:
            differing, decibels = differing + 1, decibels + value
            largest = max(largest, int(np.max(np.maximum(a, b) - np.minimum(a, b))))
            if diverged is None and value < DIVERGED_DB:
                diverged = count
        alike += similarity(View(a), View(b))
        count += 1
    if count == 0:
        raise InputError("frames: got 0, a comparison needs at least 1")
    return Fidelity(
        frames=count,
        identical=identical,
        max_abs=largest,
        psnr=decibels / differing if differing else float("inf"),
        similarity=alike / count,
        diverged_at=diverged,
    )
