"""What a number does over a video: bins of bounded memory, first against last, worst segment, slope per minute.

A single first-minus-last delta hides a video that collapses in the middle and recovers, and the frames of a video are
far from independent. So a quantity is kept as means over short bins; a drift names the first, the last and the worst
segment, and the slope's interval is widened by the autocorrelation of the bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longvid.metrics.extras import require

BIN_SECONDS = 0.5
SEGMENT_SECONDS = 5.0
_BATCHES = 24


class Bins:
    """Rows of K numbers, reduced over ``width`` updates a bin; when ``capacity`` bins are full, pairs are merged.

    Memory is fixed: a video of any length ends with between capacity / 2 and capacity bins, of equal width.
    NaN entries are left out of a mean (and of a minimum); a bin without any number is NaN.
    """

    def __init__(self, columns: int, width: int, *, capacity: int = 2048, reduce: str = "mean") -> None:
        if reduce not in ("mean", "min"):
            raise ValueError(f"reduce={reduce!r}: must be 'mean' or 'min'")
        if width < 1 or capacity < 2 or capacity % 2:
            raise ValueError(f"width={width}, capacity={capacity}: need width >= 1 and an even capacity >= 2")
        self.width, self.reduce = width, reduce
        self._empty = 0.0 if reduce == "mean" else np.inf
        self._total = np.full((capacity, columns), self._empty)
        self._count = np.zeros((capacity, columns))
        self._rows = 0  # updates that have gone into the last bin
        self._bins = 0  # bins begun

    def update(self, values: np.ndarray) -> None:
        """Add one row [K]."""
        if self._bins == 0 or self._rows == self.width:
            if self._bins == len(self._total):
                self._merge()
            self._bins, self._rows = self._bins + 1, 0
        row = np.asarray(values, dtype=np.float64)
        known = np.isfinite(row)
        at = self._bins - 1
        if self.reduce == "mean":
            self._total[at] += np.where(known, row, 0.0)
        else:
            self._total[at] = np.minimum(self._total[at], np.where(known, row, np.inf))
        self._count[at] += known
        self._rows += 1

    def _merge(self) -> None:
        half = len(self._total) // 2
        merge = np.add if self.reduce == "mean" else np.minimum
        self._total[:half] = merge(self._total[0::2], self._total[1::2])
        self._count[:half] = self._count[0::2] + self._count[1::2]
        self._total[half:], self._count[half:] = self._empty, 0
        self._bins, self.width = half, 2 * self.width

    def values(self) -> np.ndarray:
        """Reduced bins [n, K] in order; a last bin under half full is left out unless it is the only one."""
        n = self._bins
        if n > 1 and 2 * self._rows < self.width:
            n -= 1
        count = self._count[:n]
        with np.errstate(invalid="ignore", divide="ignore"):
            reduced = self._total[:n] / count if self.reduce == "mean" else self._total[:n]
        return np.where(count > 0, reduced, np.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """A straight line's slope with its confidence interval, both per minute of video."""

    per_minute: float
    low: float
    high: float
    level: float
    effective_samples: float
    """How many independent samples the bins are worth, after their autocorrelation."""

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How one quantity of a video moves from its first segment on."""

    first: float
    last: float
    worst: float
    """Mean of the segment that lies farthest from the first."""
    worst_at: float
    """Seconds into the video at which the worst segment begins."""
    spread: float
    """Standard deviation over the segments (the definition of "drift" in Reward Forcing, with their quality model)."""
    segment_seconds: float
    slope: Slope

    @property
    def change(self) -> float:
        """Last minus first."""
        return self.last - self.first

    @property
    def worst_change(self) -> float:
        """Worst minus first."""
        return self.worst - self.first


def slope(minutes: np.ndarray, values: np.ndarray, *, level: float = 0.95) -> Slope:
    """Least-squares slope of values [n] over minutes [n] with an interval that holds for autocorrelated residuals.

    Long series are first averaged over batches of neighbours, 24 to 47 of them.
    The standard error and the degrees of freedom use the effective sample size n (1 - r) / (1 + r) with r the lag-one
    autocorrelation of the residuals (Santer et al. 2000, J. Geophys. Res. 105, eqs. 3-6), r corrected for its bias in
    short series (Kendall 1954) and never taken below zero. Raises ValueError for fewer than 4 finite values.
    """
    stats = require("scipy.stats", "a slope's confidence interval")
    x, y = np.asarray(minutes, dtype=np.float64), np.asarray(values, dtype=np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) < 4:
        raise ValueError(f"values: {len(x)} finite samples, a slope with an interval needs at least 4")
    # Means over batches first: they leave little of the autocorrelation for the correction to estimate.
    batch = max(1, len(x) // _BATCHES)
    x, y = (side[: len(x) // batch * batch].reshape(-1, batch).mean(axis=1) for side in (x, y))
    n = len(x)
    dx = x - x.mean()
    sxx = float(dx @ dx)
    b = float(dx @ (y - y.mean())) / sxx
    residual = y - y.mean() - b * dx
    power = float(residual @ residual)
    if power <= 1e-18 * max(1.0, float(y @ y)):  # an exact line, up to rounding
        return Slope(per_minute=b, low=b, high=b, level=level, effective_samples=float(n))
    r = float(residual[1:] @ residual[:-1]) / power
    r = min(max(r + (1 + 4 * r) / n, 0.0), 0.999)
    effective = max(n * (1 - r) / (1 + r), 3.0)
    error = np.sqrt(power / (effective - 2) / sxx)
    reach = float(stats.t.ppf(0.5 + level / 2, effective - 2) * error)
    return Slope(per_minute=b, low=b - reach, high=b + reach, level=level, effective_samples=float(effective))


class Series:
    """Named numbers a frame, kept in bounded memory, asked afterwards how they drifted."""

    def __init__(self, names: tuple[str, ...], fps: float, *, bin_seconds: float = BIN_SECONDS) -> None:
        self.names, self.fps = names, fps
        self._bins = Bins(len(names), max(1, round(bin_seconds * fps)))
        self.frames = 0

    def update(self, **values: float) -> None:
        """Add one frame's numbers; a name that is not given is NaN for that frame."""
        unknown = set(values) - set(self.names)
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))}: not one of {', '.join(self.names)}")
        self._bins.update(np.array([values.get(name, np.nan) for name in self.names]))
        self.frames += 1

    @property
    def bin_seconds(self) -> float:
        return self._bins.width / self.fps

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Seconds at the middle of each bin [n] and the mean of ``name`` over it [n]."""
        values = self._bins.values()[:, self.names.index(name)]
        return (np.arange(len(values)) + 0.5) * self.bin_seconds, values

    def drift(self, name: str, *, segment_seconds: float = SEGMENT_SECONDS, level: float = 0.95) -> Drift:
        """First, last and worst segment and the slope of ``name``.

        Segments are ``segment_seconds`` long, or a third of a video that is shorter than three of them. Raises
        ValueError for a video under 4 bins (2 s).
        """
        seconds, values = self.curve(name)
        n = len(values)
        if n < 4:
            raise ValueError(f"video: {self.frames / self.fps:.1f} s, a drift needs {4 * self.bin_seconds:.1f} s")
        per = max(1, min(round(segment_seconds / self.bin_seconds), n // 3))
        starts = np.union1d(np.arange(0, n - per + 1, per), [n - per])  # the last one ends with the video
        with np.errstate(invalid="ignore"):
            means = np.array([_mean(values[s : s + per]) for s in starts])
        away = np.where(np.isfinite(means), np.abs(means - means[0]), -1.0)
        worst = int(np.argmax(away))
        return Drift(
            first=float(means[0]),
            last=float(means[-1]),
            worst=float(means[worst]),
            worst_at=float(starts[worst] * self.bin_seconds),
            spread=float(np.std(means[np.isfinite(means)])),
            segment_seconds=per * self.bin_seconds,
            slope=slope(seconds / 60, values, level=level),
        )


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
