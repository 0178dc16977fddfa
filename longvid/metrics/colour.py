"""Colour, brightness, contrast and sharpness of frames, and how far their hues move from start to end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longvid.metrics.frames import View, check_fps, check_frames, hue, saturation
from longvid.metrics.series import SEGMENT_SECONDS

HUE_BINS = 180
SAMPLE_RATE = 4.0  # hue histograms a second
LOOKS = (
    "brightness",
    "contrast",
    "saturation",
    "sharpness",
    "detail",
    "clipped",
    "blockiness",
    "lab_l",
    "lab_a",
    "lab_b",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HueDrift:
    """Hue histograms of the first against the last seconds of a video."""

    similarity: float
    """100 (1 - |h_first - h_last|_1 / 2), 180 HSV bins: "Colour Drift" of ID-Forcing, 100 is unchanged."""
    degrees: float
    """Mean turn of the hue (circular earth mover's distance, pixels weighted by saturation): 0 is none, 180 the most.

    A tint of two degrees moves every pixel of a flat picture into the next bin and takes ``similarity`` from 100 to 0;
    here it is 2. Grey pixels, whose hue is noise, count nothing here.
    """
    delta_e: float
    """CIE76 distance of the mean L*a*b* colours."""
    seconds: float
    """Length of the first and of the last stretch."""


def looks(view: View) -> dict[str, float]:
    """The numbers of one frame that :data:`LOOKS` names.

    brightness: mean luma, 0-255. contrast: its standard deviation (RMS contrast). saturation: mean HSV saturation, 0-1.
    sharpness: variance of the 4-neighbour Laplacian of luma, taken at full resolution on a grid of ``view.factor``
    pixels, so that a blur finer than the working size shows. detail: sharpness over the variance of luma, which a mere
    loss of contrast leaves alone. clipped: share of channel values at 0 or 255. blockiness: mean luma step across the
    edges of an 8-pixel grid over the mean step elsewhere (1 is none). lab_l, lab_a, lab_b: mean CIE L*a*b*.
    """
    y = view.luma
    variance = float(y.var())
    sharp = float(laplacian(view).var())
    values = view.rgb
    lab = view.lab
    return {
        "brightness": float(y.mean(dtype=np.float64)),
        "contrast": variance**0.5,
        "saturation": float(saturation(values).mean(dtype=np.float64)),
        "sharpness": sharp,
        "detail": sharp / variance if variance > 0.25 else float("nan"),  # under half a grey level there is no picture
        "clipped": float(np.count_nonzero((values == 0) | (values == 255)) / values.size),
        "blockiness": blockiness(view),
        "lab_l": float(lab[0]),
        "lab_a": float(lab[1]),
        "lab_b": float(lab[2]),
    }


def laplacian(view: View) -> np.ndarray:
    """4-neighbour Laplacian of full-resolution luma, at every ``view.factor``-th pixel of every such row: float32."""
    k = view.factor
    height, width = view.full.shape[:2]

    def at(row: int, col: int) -> np.ndarray:
        return view.luma_at(slice(1 + row, height - 1 + row, k), slice(1 + col, width - 1 + col, k))

    curvature: np.ndarray = at(-1, 0) + at(1, 0) + at(0, -1) + at(0, 1) - 4 * at(0, 0)
    return curvature


def blockiness(view: View, grid: int = 8) -> float:
    """Mean absolute luma step across the edges of a ``grid``-pixel lattice over the mean step elsewhere.

    Rows and columns are read at full resolution, every ``view.factor``-th of them. 1 means no lattice, and is what a
    flat frame gives.
    """
    thin, whole = slice(None, None, view.factor), slice(None)
    edge, other, edges, others = 0.0, 0.0, 0, 0
    for rows in (view.luma_at(thin, whole), view.luma_at(whole, thin).T):
        step = np.abs(np.diff(rows, axis=1)).sum(axis=0, dtype=np.float64)
        on = np.arange(1, len(step) + 1) % grid == 0
        edge, other = edge + step[on].sum(), other + step[~on].sum()
        edges, others = edges + on.sum() * len(rows), others + (~on).sum() * len(rows)
    floor = 0.01  # grey levels: keeps a flat frame at 1
    return float((edge / max(edges, 1) + floor) / (other / others + floor))


class HueMeter:
    """Hue histograms of the first ``seconds`` of a stream and of its last, taken 4 times a second; keeps no more."""

    def __init__(self, fps: float, *, seconds: float = SEGMENT_SECONDS) -> None:
        self._step = max(1, round(check_fps(fps) / SAMPLE_RATE))
        self._rate = fps / self._step
        self._span = max(1, round(seconds * self._rate))
        # Per frame: the plain histogram, the saturation-weighted one, and the mean Lab.
        self._ring = np.zeros((self._span, 2 * HUE_BINS + 3))
        self._head = np.zeros_like(self._ring)  # the first of them, which the ring forgets
        self._frames = self._samples = 0

    def update(self, view: View) -> None:
        """Add one frame."""
        self._frames += 1
        if (self._frames - 1) % self._step:
            return
        weights = saturation(view.rgb)
        index = np.minimum((hue(view.rgb).ravel() * (HUE_BINS / 360)).astype(np.intp), HUE_BINS - 1)
        row = self._ring[self._samples % self._span]
        row[:HUE_BINS] = np.bincount(index, minlength=HUE_BINS) / index.size
        row[HUE_BINS:-3] = np.bincount(index, weights=weights.ravel(), minlength=HUE_BINS) / index.size
        row[-3:] = view.lab
        if self._samples < self._span:
            self._head[self._samples] = row
        self._samples += 1

    def result(self) -> HueDrift:
        """Compare the first with the last seconds, or with the last third of a video shorter than three such stretches.

        Raises ValueError under two samples.
        """
        if self._samples < 2:
            raise ValueError(f"frames: got {self._frames}, a hue drift needs two that are {self._step} apart")
        n = min(self._span, max(1, self._samples // 3))
        order = np.arange(self._samples - n, self._samples) % self._span
        last = self._ring[order].mean(axis=0)
        first = self._head[:n].mean(axis=0)
        plain = np.abs(first[:HUE_BINS] - last[:HUE_BINS]).sum()
        return HueDrift(
            similarity=float(100 * (1 - plain / 2)),
            degrees=hue_distance(first[HUE_BINS:-3], last[HUE_BINS:-3]),
            delta_e=float(np.linalg.norm(first[-3:] - last[-3:])),
            seconds=n / self._rate,
        )


def hue_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Circular earth mover's distance of two histograms over the hue circle, in degrees (Werman et al. 1985).

    Each is scaled to sum to one; two empty (grey) ones are at 0, an empty one is at 0 of any, having no hue to turn.
    """
    if a.sum() <= 1e-9 or b.sum() <= 1e-9:
        return 0.0
    gap = np.cumsum(a / a.sum() - b / b.sum())
    return float(np.abs(gap - np.median(gap)).sum() * 360 / len(a))


def hue_drift(frames: np.ndarray, fps: float, *, seconds: float = SEGMENT_SECONDS) -> HueDrift:
    """Hue drift of uint8 frames [T, H, W, 3], first against last ``seconds``."""
    meter = HueMeter(fps, seconds=seconds)
    for frame in check_frames(frames, least=2):
        meter.update(View(frame))
    return meter.result()
