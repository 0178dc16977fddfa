"""Seams: does the picture jump where one generated block meets the next, more than it does elsewhere?

We know where the blocks meet, so the jump at those transitions is compared with the jump at all the others, by the same
statistic on both sides (medians, and means, which also see a seam at only some boundaries). A video autoencoder that
compresses time has joints of its own between the latent frames inside a block; ``latent_ratio`` compares a block
boundary with those joints alone, so that the autoencoder is not mistaken for the rollout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longvid.metrics.flicker import FlickerMeter
from longvid.metrics.frames import View, check_frames
from longvid.metrics.motion import MotionMeter

QUANTITIES = ("difference", "luma", "lab", "flow")
# Added to both sides of a ratio: below these (grey levels, grey levels, CIE76, pixels) nothing is visible.
_FLOOR = {"difference": 0.05, "luma": 0.05, "lab": 0.05, "flow": 0.05}
_CAPACITY = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Seam:
    """One quantity at block boundaries against elsewhere. A ratio of 1 means no seam."""

    boundary: float
    """Median over the transitions into a new block."""
    elsewhere: float
    """Median over all other transitions."""
    ratio: float
    low: float
    high: float
    """``boundary / elsewhere`` and its 95 % bootstrap interval (transitions resampled on either side)."""
    mean_ratio: float
    """The same ratio of means: rises when only some boundaries are seams."""
    latent_ratio: float
    """``boundary`` against the joints between latent frames inside blocks; NaN when they are not known."""


class Reservoir:
    """A uniform random sample of ``capacity`` numbers of a stream (Vitter 1985, algorithm R); exact below it."""

    def __init__(self, capacity: int = _CAPACITY, *, seed: int = 0) -> None:
        self._values = np.zeros(capacity)
        self._rng = np.random.default_rng(seed)
        self.seen = 0

    def add(self, value: float) -> None:
        at = self.seen if self.seen < len(self._values) else int(self._rng.integers(self.seen + 1))
        if at < len(self._values):
            self._values[at] = value
        self.seen += 1

    def values(self) -> np.ndarray:
        return self._values[: min(self.seen, len(self._values))]


class SeamMeter:
    """Collects transitions, each told apart as a block boundary, a joint of latent frames, or neither."""

    def __init__(self) -> None:
        self._at = {kind: {q: Reservoir() for q in QUANTITIES} for kind in ("boundary", "joint", "inside")}

    def update(self, *, boundary: bool, joint: bool = False, **values: float) -> None:
        """Add the transition into a frame: ``boundary`` if it begins a block, ``joint`` if it begins a latent frame.

        ``values`` are among :data:`QUANTITIES`; those left out or NaN are not collected.
        """
        unknown = set(values) - set(QUANTITIES)
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))}: not one of {', '.join(QUANTITIES)}")
        kind = "boundary" if boundary else "joint" if joint else "inside"
        for name, value in values.items():
            if np.isfinite(value):
                self._at[kind][name].add(value)

    def result(self, *, resamples: int = 2000) -> dict[str, Seam]:
        """Seams by quantity; only quantities with a transition on both sides. Empty when no boundary was seen."""
        seams = {}
        for name in QUANTITIES:
            boundary = self._at["boundary"][name].values()
            joint, inside = self._at["joint"][name].values(), self._at["inside"][name].values()
            elsewhere = np.concatenate([joint, inside])
            if len(boundary) and len(elsewhere):
                seams[name] = _seam(boundary, elsewhere, joint, floor=_FLOOR[name], resamples=resamples)
        return seams


def _seam(boundary: np.ndarray, elsewhere: np.ndarray, joint: np.ndarray, *, floor: float, resamples: int) -> Seam:
    def ratio(top: float, bottom: float) -> float:
        return float((top + floor) / (bottom + floor))

    rng = np.random.default_rng(0)
    b, e = (_resampled_medians(side, resamples, rng) for side in (boundary, elsewhere))
    low, high = np.quantile((b + floor) / (e + floor), [0.025, 0.975])
    return Seam(
        boundary=float(np.median(boundary)),
        elsewhere=float(np.median(elsewhere)),
        ratio=ratio(np.median(boundary), np.median(elsewhere)),
        low=float(low),
        high=float(high),
        mean_ratio=ratio(boundary.mean(), elsewhere.mean()),
        latent_ratio=ratio(np.median(boundary), np.median(joint)) if len(joint) else float("nan"),
    )


def _resampled_medians(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Medians of bootstrap samples, drawn through the median's rank: the k-th smallest of n draws is Beta-distributed.

    The k-th smallest of n uniform numbers is Beta(k, n - k + 1) (David & Nagaraja 2003, section 2.1), and the next one
    above it is the least of n - k uniform in what remains: no n x resamples table, whatever n is.
    """
    n = len(values)
    k = (n + 1) // 2
    at = rng.beta(k, n - k + 1, resamples)
    ordered = np.sort(values)

    def pick(share: np.ndarray) -> np.ndarray:
        chosen: np.ndarray = ordered[np.minimum((share * n).astype(int), n - 1)]
        return chosen

    if n % 2:
        return pick(at)
    above = at + (1 - at) * (1 - rng.uniform(size=resamples) ** (1 / (n - k)))
    middle: np.ndarray = (pick(at) + pick(above)) / 2
    return middle


def block_boundaries(
    frames: int, *, frames_per_block: int, temporal_stride: int, first_block: int | None = None
) -> list[int]:
    """Video frames at which blocks begin, the first block (frame 0) left out.

    A causal video autoencoder turns latent frame 0 into one video frame and every later one into ``temporal_stride``.
    Blocks hold ``frames_per_block`` latent frames, the first one ``first_block`` of them if that is given. ``frames``
    is the length of the video.
    """
    first = frames_per_block if first_block is None else first_block
    if frames_per_block < 1 or temporal_stride < 1 or first < 1:
        raise ValueError(
            f"frames_per_block={frames_per_block}, first_block={first}, temporal_stride={temporal_stride}: must be >= 1"
        )
    step = frames_per_block * temporal_stride
    return list(range(1 + (first - 1) * temporal_stride, frames, step))


def is_joint(frame: int, temporal_stride: int) -> bool:
    """Whether ``frame`` is the first video frame of a latent frame (of any but the very first)."""
    return frame >= 1 and (frame - 1) % temporal_stride == 0


def measure_seams(
    frames: np.ndarray, boundaries: list[int], *, fps: float, temporal_stride: int | None = None
) -> dict[str, Seam]:
    """Seams of uint8 frames [T, H, W, 3] whose blocks begin at ``boundaries``, by quantity.

    difference: mean |RGB step| in grey levels. luma: |step of mean luma|. lab: CIE76 distance of the mean colours.
    flow: mean optical flow in pixels (needs OpenCV). Raises ValueError for boundaries outside 1 .. T - 1.
    """
    check_frames(frames, least=3)
    wrong = [b for b in boundaries if not 1 <= b < len(frames)]
    if wrong:
        raise ValueError(f"boundaries={wrong}: a block of these {len(frames)} frames begins at 1 .. {len(frames) - 1}")
    meter, pairs, flow, at = SeamMeter(), FlickerMeter(), MotionMeter(fps), set(boundaries)
    lab = None
    for index, frame in enumerate(frames):
        view = View(frame)
        pair, moved = pairs.update(view), flow.update(view)
        if pair is not None and moved is not None and lab is not None:
            meter.update(
                boundary=index in at,
                joint=temporal_stride is not None and is_joint(index, temporal_stride),
                difference=pair[0],
                luma=abs(pair[1]),
                lab=float(np.linalg.norm(view.lab - lab)),
                flow=moved.mean,
            )
        lab = view.lab
    return meter.result()
