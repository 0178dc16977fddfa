"""How alike frames stay as time passes: similarity against time lag, and falls back to the start of the video.

Both work on 32 x 32 luma thumbnails, so that a minute of them fits in two megabytes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from longvid.metrics.frames import THUMB_SIDE, View, check_fps, check_frames
from longvid.metrics.series import Bins

LAGS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)  # seconds
SAMPLE_RATE = 8.0  # thumbnails a second that the lag curve compares
_BLOCK = 8
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # SSIM's constants


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """Mean similarity of frames that lie a lag apart (1: the same picture). Lags longer than the video are left out."""

    lags: tuple[float, ...]
    """Seconds."""
    similarity: tuple[float, ...]
    pairs: tuple[int, ...]
    """How many pairs of frames each mean is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopBack:
    """Falls back to the start: the video becomes, for a while, what its first seconds were."""

    events: int
    at: tuple[float, ...]
    """Seconds at which the events begin (the first 100 of them)."""
    share: float
    """Share of the video after its start that is spent back at the start."""
    closest: float
    """Smallest distance to the start over the usual one after it: near 0 is a copy, 1 no approach, NaN undefined."""


class Thumbs:
    """Thumbnails cut into blocks, with the means and variances that SSIM needs: a ring of ``capacity`` of them."""

    def __init__(self, capacity: int) -> None:
        blocks = (THUMB_SIDE // _BLOCK) ** 2
        self._pixels = np.zeros((capacity, blocks, _BLOCK * _BLOCK), dtype=np.float32)
        self._mean = np.zeros((capacity, blocks), dtype=np.float32)
        self._var = np.zeros((capacity, blocks), dtype=np.float32)
        self.count = 0

    def add(self, thumb: np.ndarray) -> None:
        at = self.count % len(self._pixels)
        pixels = _blocks(thumb)
        mean = pixels.mean(axis=-1)
        self._pixels[at], self._mean[at] = pixels - mean[:, None], mean
        self._var[at] = self._pixels[at].var(axis=-1)
        self.count += 1

    def back(self, lags: np.ndarray) -> np.ndarray:
        """Similarity of the newest thumbnail with those added ``lags`` [n] before it: [n]."""
        capacity = len(self._pixels)
        if lags.size and (lags.max() >= capacity or lags.max() >= self.count):
            raise ValueError(f"lags up to {lags.max()}: only {min(capacity, self.count)} thumbnails are held")
        now, then = (self.count - 1) % capacity, (self.count - 1 - lags) % capacity
        covariance = (self._pixels[then] * self._pixels[now]).mean(axis=-1)
        mean, other = self._mean[then], self._mean[now]
        luminance = (2 * mean * other + _C1) / (mean**2 + other**2 + _C1)
        structure = (2 * covariance + _C2) / (self._var[then] + self._var[now] + _C2)
        alike: np.ndarray = (luminance * structure).mean(axis=-1)
        return alike


def _blocks(thumb: np.ndarray) -> np.ndarray:
    n = THUMB_SIDE // _BLOCK
    return thumb.reshape(n, _BLOCK, n, _BLOCK).transpose(0, 2, 1, 3).reshape(n * n, _BLOCK * _BLOCK)


def similarity(a: View, b: View) -> float:
    """SSIM (Wang et al. 2004, eq. 13) of two thumbnails over 16 disjoint 8 x 8 blocks of equal weight."""
    thumbs = Thumbs(2)
    thumbs.add(a.thumb)
    thumbs.add(b.thumb)
    return float(thumbs.back(np.array([1]))[0])


class ConsistencyMeter:
    """Online lag curve: a ring of thumbnails as long as the longest lag, sampled at 8 Hz."""

    def __init__(self, fps: float, *, lags: tuple[float, ...] = LAGS) -> None:
        self._step = max(1, round(check_fps(fps) / SAMPLE_RATE))
        rate = fps / self._step
        self._samples = np.unique(np.maximum(1, np.round(np.array(lags) * rate).astype(int)))
        self._lags = self._samples / rate
        self._thumbs = Thumbs(int(self._samples.max()) + 1)
        self._sum = np.zeros(len(self._samples))
        self._pairs = np.zeros(len(self._samples), dtype=int)
        self._frames = 0

    def update(self, view: View) -> None:
        """Add one frame."""
        if self._frames % self._step == 0:
            self._thumbs.add(view.thumb)
            known = int(np.searchsorted(self._samples, self._thumbs.count))
            if known:
                self._sum[:known] += self._thumbs.back(self._samples[:known])
                self._pairs[:known] += 1
        self._frames += 1

    def cut(self) -> None:
        """Frames to come are not compared with those so far."""
        self._thumbs.count = 0

    def result(self) -> Consistency:
        """Raises ValueError when the video is shorter than the shortest lag."""
        n = int(np.count_nonzero(self._pairs))
        if n == 0:
            raise ValueError(f"frames: got {self._frames}, the shortest lag is {self._lags[0]:.2f} s")
        return Consistency(
            lags=tuple(float(v) for v in self._lags[:n]),
            similarity=tuple(float(v) for v in self._sum[:n] / self._pairs[:n]),
            pairs=tuple(int(v) for v in self._pairs[:n]),
        )


class LoopMeter:
    """Watches the distance to the start: mean |thumbnail - nearest of the first ``start_seconds``|, in grey levels.

    A loop-back is a stretch of at least ``hold_seconds`` whose distance is under ``near`` of the usual one, the median
    after the start. Being relative, it is silent on a scene that never left its start: where the usual distance is
    under ``still`` grey levels there is nothing to fall back from; and the video must first have been half the usual
    distance away, so that its start may go on. ``near`` lets ordinary periodic motion pass (a seventh of the
    usual distance). A scene that repeats exactly cannot be told from a loop: compare with real video of it.
    """

    def __init__(
        self,
        fps: float,
        *,
        start_seconds: float = 4.0,
        hold_seconds: float = 0.5,
        near: float = 0.12,
        still: float = 2.0,
    ) -> None:
        self._fps, self._near, self._still = check_fps(fps), near, still
        self._start = max(1, round(start_seconds * fps))
        self._every = -(-self._start // 64)  # at most 64 thumbnails of the start
        self._early = np.zeros((-(-self._start // self._every), THUMB_SIDE**2), dtype=np.int16)
        self._hold: deque[float] = deque(maxlen=max(1, round(hold_seconds * fps)))
        self._bins = Bins(1, self._hold.maxlen or 1, reduce="min")
        self._usual = Bins(1, self._hold.maxlen or 1)
        self._frames = 0

    def update(self, view: View) -> float | None:
        """Add one frame; its distance to the start in grey levels, or None while the start lasts."""
        distance, thumb = None, np.rint(view.thumb).astype(np.int16).ravel()  # small integers: four times as fast
        if self._frames < self._start:
            if self._frames % self._every == 0:
                self._early[self._frames // self._every] = thumb
        else:
            distance = float(np.abs(self._early - thumb).sum(axis=1, dtype=np.int32).min() / thumb.size)
            self._hold.append(distance)
            self._usual.update(np.array([distance]))
            # The mean over the hold must be small, so that one frame passing by is no event.
            full = len(self._hold) == self._hold.maxlen
            self._bins.update(np.array([sum(self._hold) / len(self._hold) if full else np.nan]))
        self._frames += 1
        return distance

    def result(self) -> LoopBack:
        """No events and NaN for ``closest`` when the video ends within a hold of its start or never left it."""
        nothing = LoopBack(events=0, at=(), share=0.0, closest=float("nan"))
        if len(self._hold) < (self._hold.maxlen or 1):
            return nothing
        nearest, usual = self._bins.values()[:, 0], float(np.nanmedian(self._usual.values()))
        if usual < self._still:
            return nothing
        left = np.maximum.accumulate(nearest > 0.5 * usual)  # NaN compares as False
        back = left & (nearest < self._near * usual)
        begins = np.flatnonzero(back & ~np.concatenate([[False], back[:-1]]))
        # A bin holds means over the hold that ended in it, so the fall began a hold earlier, give or take one.
        seconds = (self._start + begins * self._bins.width - (len(self._hold) - 1)) / self._fps
        return LoopBack(
            events=len(begins),
            at=tuple(float(s) for s in seconds[:100]),
            share=float(back.mean()),
            closest=float(np.nanmin(nearest) / usual),
        )


def measure_consistency(frames: np.ndarray, fps: float, *, lags: tuple[float, ...] = LAGS) -> Consistency:
    """Similarity against time lag of uint8 frames [T, H, W, 3]."""
    meter = ConsistencyMeter(fps, lags=lags)
    for frame in check_frames(frames, least=2):
        meter.update(View(frame))
    return meter.result()


def loop_back(frames: np.ndarray, fps: float) -> LoopBack:
    """Falls back to the start of uint8 frames [T, H, W, 3], with the meter's defaults."""
    meter = LoopMeter(fps)
    for frame in check_frames(frames):
        meter.update(View(frame))
    return meter.result()
