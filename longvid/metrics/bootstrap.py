"""Intervals for scores over prompts and seeds, one method at a time and paired between two.

Scores form a table [P, S]: P prompts, S seeds of each. Methods rendered the same prompts with the same seeds, so they
are compared pair by pair. Prompts are what the claim generalises over: a resample draws prompts with replacement and
keeps each prompt's seeds together (Davison & Hinkley 1997, section 3.8: resample the clusters only; drawing seeds again
inside them counts their variance twice). The intervals are bias-corrected and accelerated (BCa, Efron 1987), and
widened for few prompts, where a resample varies less than a sample (Hesterberg 2015, The American Statistician 69:371).
A bootstrap of fewer than six prompts knows nothing: there the interval is Student's t, and nothing is called clear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from longvid.metrics.extras import require

RESAMPLES = 9999
ENOUGH_PROMPTS = 6  # that all of five prompts agree happens by chance once in 16 times: too often to call it clear


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its bootstrap interval."""

    estimate: float
    low: float
    high: float
    level: float
    prompts: int
    """How many prompts it stands on."""

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out, and stands on enough prompts for that to mean something."""
        return self.prompts >= ENOUGH_PROMPTS and (self.low > 0 or self.high < 0)

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        return f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def score_table(scores: np.ndarray, name: str = "scores") -> np.ndarray:
    """Check a table [P, S] (or [P], one seed each) of finite numbers of at least 2 prompts: float64 [P, S]."""
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or table.shape[0] < 2 or table.shape[1] < 1:
        raise ValueError(f"{name}: got shape {list(np.shape(scores))}, must be [prompts >= 2, seeds]")
    if not np.isfinite(table).all():
        p, s = np.argwhere(~np.isfinite(table))[0]
        raise ValueError(f"{name}: prompt {p}, seed {s} is {table[p, s]}; leave that pair out of both methods")
    return table


def mean_interval(scores: np.ndarray, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of scores [P, S] with its interval over prompts. Raises ValueError for bad tables (:func:`score_table`)."""
    return _interval(score_table(scores).mean(axis=1), level, resamples, seed)


def paired_difference(
    scores: np.ndarray, baseline: np.ndarray, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean of ``scores - baseline``, both [P, S] over the same prompts and seeds, with its interval over prompts."""
    a, b = score_table(scores), score_table(baseline, "baseline")
    if a.shape != b.shape:
        raise ValueError(f"scores {list(a.shape)}, baseline {list(b.shape)}: must be over the same prompts and seeds")
    return _interval((a - b).mean(axis=1), level, resamples, seed)


def paired_ratio(
    scores: np.ndarray, baseline: np.ndarray, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """``mean(scores) / mean(baseline)``, a ratio of means, prompts resampled in pairs (percentile interval).

    Raises ValueError unless every baseline score is positive: a denominator near zero has no useful interval.
    """
    a, b = score_table(scores), score_table(baseline, "baseline")
    if a.shape != b.shape:
        raise ValueError(f"scores {list(a.shape)}, baseline {list(b.shape)}: must be over the same prompts and seeds")
    if (b <= 0).any():
        raise ValueError(f"baseline: smallest score is {b.min():g}, a ratio needs positive ones; use paired_difference")
    a, b = a.mean(axis=1), b.mean(axis=1)
    drawn = np.random.default_rng(seed).integers(0, len(a), (resamples, len(a)))
    wide = _widened(level, len(a))
    low, high = np.quantile(a[drawn].mean(axis=1) / b[drawn].mean(axis=1), [(1 - wide) / 2, (1 + wide) / 2])
    return Interval(estimate=float(a.mean() / b.mean()), low=float(low), high=float(high), level=level, prompts=len(a))


def _interval(values: np.ndarray, level: float, resamples: int, seed: int) -> Interval:
    """BCa interval of the mean of values [P], or Student's where P is too small."""
    wide = _widened(level, len(values))
    estimate = float(values.mean())
    if np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())):  # BCa is undefined without any spread
        return Interval(estimate=estimate, low=estimate, high=estimate, level=level, prompts=len(values))
    stats = require("scipy.stats", "a bootstrap interval")
    reach = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    low, high = estimate - reach, estimate + reach
    if len(values) >= ENOUGH_PROMPTS:
        low, high = _bca(values, wide, resamples, seed)
    return Interval(estimate=estimate, low=low, high=high, level=level, prompts=len(values))


def _bca(values: np.ndarray, level: float, resamples: int, seed: int) -> tuple[float, float]:
    stats = require("scipy.stats", "a bootstrap interval")
    found = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=resamples,
        method="BCa",
        rng=np.random.default_rng(seed),
        batch=max(1, 4_000_000 // len(values)),
    ).confidence_interval
    return float(found.low), float(found.high)


def _widened(level: float, n: int) -> float:
    """The level to read a bootstrap interval of n values at, so that it covers ``level`` (Hesterberg 2015)."""
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must lie between 0 and 1, such as 0.95")
    stats = require("scipy.stats", "a bootstrap interval")
    return float(2 * stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 + level) / 2, n - 1)) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftVerdict:
    """Whether one method drifts less than another without buying it by standing still."""

    drift: Interval
    """Difference in drift, method minus baseline; negative is better."""
    motion: Interval
    """Ratio of motion, method over baseline."""
    least_motion: float
    verdict: str
    """``better``, ``worse``, ``no clear difference``, ``bought with motion``, or ``motion unclear``: less drift, and
    neither shown to keep its motion nor to lose some."""


def judge_drift(
    drift: np.ndarray,
    baseline_drift: np.ndarray,
    motion: np.ndarray,
    baseline_motion: np.ndarray,
    *,
    least_motion: float = 0.9,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> DriftVerdict:
    """Compare drift, all tables [P, S], and refuse a win that comes with less motion.

    ``better`` needs a drift difference whose interval lies below zero and a motion ratio whose interval's low end
    reaches ``least_motion``: the method must be shown to keep its motion, not merely fail to be shown to lose it. With
    a ratio wholly under 1 the drift is ``bought with motion``, else it is left open (``motion unclear``).
    """
    change = paired_difference(drift, baseline_drift, level=level, resamples=resamples, seed=seed)
    kept = paired_ratio(motion, baseline_motion, level=level, resamples=resamples, seed=seed)
    if not change.clear:
        verdict = "no clear difference"
    elif change.low > 0:
        verdict = "worse"
    elif kept.low >= least_motion:
        verdict = "better"
    else:
        verdict = "bought with motion" if kept.high < 1 else "motion unclear"
    return DriftVerdict(drift=change, motion=kept, least_motion=least_motion, verdict=verdict)


def complete_pairs(tables: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Drop every prompt for which any method lacks a score (NaN): the tables [P', S] left and the prompts kept [P'].

    Raises ValueError when the tables' shapes differ or fewer than 2 prompts are left.
    """
    shapes = {name: np.shape(table) for name, table in tables.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"tables: shapes differ ({shapes}); every method must cover the same prompts and seeds")
    stacked = {name: np.atleast_2d(np.asarray(table, dtype=np.float64).T).T for name, table in tables.items()}
    kept = np.all([np.isfinite(table).all(axis=1) for table in stacked.values()], axis=0)
    if kept.sum() < 2:
        raise ValueError(f"tables: {int(kept.sum())} prompts are complete for every method, at least 2 are needed")
    return {name: table[kept] for name, table in stacked.items()}, np.flatnonzero(kept)
