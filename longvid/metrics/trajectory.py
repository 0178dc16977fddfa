"""The subject's path on the embedded world: is it as fast as the caption asks, and is it that kind of motion?

The probe says where the subject is (x, y, fractions of the frame's side). Its speed is compared with the world's for
the same motion and speed word. Its kind is told window by window: shape features of the path, and a Gaussian a motion
over them (quadratic discriminant analysis), fitted to paths of longvid.training.world under the probe's noise and under
slow wobbles: a generated subject circles without being on the world's circle to the pixel. Nothing is stored.

Shapes: T frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from longvid.metrics.frames import check_fps
from longvid.metrics.series import SEGMENT_SECONDS
from longvid.training import world

if TYPE_CHECKING:
    from longvid.training.world import Scene

STILL = "still"
"""Told of a window whose subject stays in one place; no motion of the world does."""
STILL_EXTENT = 0.03  # of the side; half the slowest drift covers 0.045 in five seconds; the probe is off by 0.005
SHORTEST_SECONDS = 2.0  # of a window: below, a slow drift is a straight line
LEAST_SEEN = 0.75  # of a window's frames with exactly one subject; those between are interpolated
NOISE = 0.004  # standard deviation of the probe's error from frame to frame, fractions of the side
WOBBLE, WOBBLE_SECONDS = 0.02, (10.0, 5.0, 2.5)  # standard deviation of the amplitude, and periods, of three sines
SMOOTH_SECONDS = 0.2
SPEEDS_TOLD = (0.3, 3.2)  # times normal: half of slow to twice fast, so that a wrong speed is no wrong kind
PATHS = 150  # a motion, to calibrate on
REFERENCE_SEEDS, REFERENCE_SECONDS = 32, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """The subject's path against the caption's. NaN is what could not be measured."""

    speed: float
    """Median speed of the single subject, in sides of the frame a second."""
    speed_ratio: float
    """``speed`` / the world's for this motion and speed word: 1 is as asked, 0 stands still, 2 is twice as fast."""
    told: tuple[str, ...]
    """Kind of motion of each window that could be judged, one of the world's MOTIONS or ``STILL``."""
    motion: str | None
    """The kind told most often; None without a window."""
    motion_right: float
    """Share of the windows that are told as the caption's motion."""


def measure_trajectory(
    seen: Mapping[str, np.ndarray], scene: Scene, fps: float, *, cuts: Iterable[int] = ()
) -> Trajectory:
    """Judge a path by the probe's reading of each frame: x and y, float [T] in fractions of the side, count, int [T].

    ``cuts``: frames that do not follow the one before. Windows are 5 s long; a run that is shorter is one window if it
    has 2 s, and what is left at the end of a run is not judged, nor is a window in which less than three quarters of
    the frames show exactly one subject. Raises InputError for an ``fps`` that is none.
    """
    check_fps(fps)
    total = len(seen["count"])
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < total}), total]
    speeds, told = [], []
    span, shortest = round(SEGMENT_SECONDS * fps), max(4, round(SHORTEST_SECONDS * fps))
    for start, stop in pairwise(bounds):
        run = {name: seen[name][start:stop] for name in ("x", "y", "count")}
        one = run["count"] == 1
        speeds.append(_speeds(run["x"], run["y"], fps, one))
        window = min(span, stop - start)
        if window < shortest:
            continue
        for first in range(0, stop - start - window + 1, window):
            part = slice(first, first + window)
            if one[part].mean() >= LEAST_SEEN:
                at, known = np.arange(window), np.flatnonzero(one[part])
                x, y = (np.interp(at, known, run[name][part][known]) for name in ("x", "y"))
                told.append(tell_motion(x, y, fps))
    known_speeds = np.concatenate(speeds)
    speed = float(np.median(known_speeds)) if len(known_speeds) else float("nan")
    return Trajectory(
        speed=speed,
        speed_ratio=speed / world_speed(scene.motion, scene.speed, float(fps)),
        told=tuple(told),
        motion=Counter(told).most_common(1)[0][0] if told else None,
        motion_right=told.count(scene.motion) / len(told) if told else float("nan"),
    )


def _speeds(x: np.ndarray, y: np.ndarray, fps: float, one: np.ndarray) -> np.ndarray:
    """Sides a second, between single subjects: over a step near the world's own, or noise would grow with fps."""
    step = max(1, round(fps / world.FPS))
    pair = one[step:] & one[:-step]
    away: np.ndarray = np.hypot(x[step:] - x[:-step], y[step:] - y[:-step])[pair] * (fps / step)
    return away


@lru_cache
def world_speed(motion: str, speed: str, fps: float) -> float:
    """Median speed of the world's subject in sides a second, as seen at ``fps``: mean over 32 seeds, a minute each."""
    scene = world.Scene(colour="red", shape="ball", background="sea", motion=motion, speed=speed)
    seconds = np.arange(round(REFERENCE_SECONDS * fps)) / fps
    medians = []
    for seed in range(REFERENCE_SEEDS):
        x, y, _ = world.trajectory(scene, world.identity(scene, seed), seconds)
        medians.append(np.median(_speeds(x, y, fps, np.ones(len(x), bool))))
    return float(np.mean(medians))


def tell_motion(x: np.ndarray, y: np.ndarray, fps: float) -> str:
    """Which of the world's MOTIONS a path is, or ``STILL``: x and y, float [T], one window of at least 2 s."""
    if max(np.ptp(x), np.ptp(y)) < STILL_EXTENT:
        return STILL
    found = _features(x, y, fps)
    scores = []
    for mean, inverse, log_determinant in _gaussians(len(x), float(fps)):
        away = found - mean
        scores.append(-away @ inverse @ away - log_determinant)
    return world.MOTIONS[int(np.argmax(scores))]


@lru_cache(maxsize=8)
def _gaussians(frames: int, fps: float) -> tuple[tuple[np.ndarray, np.ndarray, float], ...]:
    """Mean, inverse covariance and its log determinant of the features of each motion's paths of ``frames``."""
    rng = np.random.default_rng(0)
    fitted = []
    for motion in world.MOTIONS:
        scene = world.Scene(colour="red", shape="ball", background="sea", motion=motion)
        rows = []
        for _ in range(PATHS):
            ident = world.identity(scene, int(rng.integers(2**31)))
            speed = np.exp(rng.uniform(*np.log(SPEEDS_TOLD)))
            x, y, _ = world.trajectory(scene, ident, speed * (rng.uniform(0, 300) + np.arange(frames) / fps))
            x, y = (wobbled(v, fps, rng) for v in (x, y))
            rows.append(_features(x, y, fps))
        table = np.array(rows)
        covariance = np.cov(table.T) + 1e-6 * np.eye(table.shape[1])  # a feature may be constant for a motion
        fitted.append((table.mean(axis=0), np.linalg.inv(covariance), float(np.linalg.slogdet(covariance)[1])))
    return tuple(fitted)


def wobbled(places: np.ndarray, fps: float, rng: np.random.Generator) -> np.ndarray:
    """Places [T] with the probe's noise and the slow wobble that a generated path may have and stay its kind."""
    seconds = np.arange(len(places)) / fps
    waves = [WOBBLE * rng.normal() * np.sin(2 * np.pi * (seconds / p + rng.uniform())) for p in WOBBLE_SECONDS]
    moved: np.ndarray = places + np.sum(waves, axis=0) + NOISE * rng.standard_normal(len(places))
    return moved


def _features(x: np.ndarray, y: np.ndarray, fps: float) -> np.ndarray:
    """Float64 [17]: where the path is, how wide, which way it bends, and how evenly it is run through."""
    width = round(SMOOTH_SECONDS * fps) | 1
    x, y = (np.convolve(v, np.full(width, 1 / width), "valid") for v in (x, y))
    dx, dy = np.diff(x), np.diff(y)
    speed = np.hypot(dx, dy)
    length = speed.sum() + 1e-6
    from_middle = np.hypot(x - 0.5, y - 0.5)
    swept = (x[:-1] - 0.5) * dy - (y[:-1] - 0.5) * dx
    u, v = x - x.mean(), y - y.mean()
    su, sv = x.std() + 1e-4, y.std() + 1e-4
    return np.array(
        [
            *(np.ptp(x), np.ptp(y), x.mean(), y.mean(), y.min(), y.max()),
            (u * v).mean() / (su * sv),
            (v**3).mean() / sv**3,  # bounces hang at the top, hops rest at the bottom
            ((u**2 - su**2) * v).mean() / (su**2 * sv),  # a swing's arc
            swept.sum() / (np.abs(swept).sum() + 1e-6),  # a circle goes one way round the middle
            *(np.abs(dx).sum() / length, np.abs(dy).sum() / length),
            (speed < 0.35 * np.median(speed)).mean(),
            speed.std() / (speed.mean() + 1e-6),
            *(from_middle.mean(), from_middle.std()),
            np.log(length),
        ]
    )
