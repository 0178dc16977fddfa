"""The oracle: what the probe of the embedded world reads off a video, against what its caption asked for.

The probe (longvid.training.probe) reads off each frame what a caption fixes (colour, shape, background, one subject),
what only the seed does (pattern, size), and where the subject is. It knows videos of that world alone.

Shapes: T frames, H = W = 128 pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from longvid.metrics.frames import check_fps
from longvid.metrics.scene_drift import SceneDrift
from longvid.metrics.series import SEGMENT_SECONDS
from longvid.metrics.trajectory import Trajectory, measure_trajectory

if TYPE_CHECKING:
    from longvid.training.probe import Probe
    from longvid.training.world import Scene

STATIC = ("sea", "stars", "sunset")
"""Backgrounds whose furniture stands still: only there does a changed median image mean a lost identity."""
LIT = "daynight"
"""There the light changes the subject's colour."""


class Oracle:
    """Collects the probe's readings of a stream. A frame leaves eight numbers; of pixels, one segment is held."""

    def __init__(self, scene: Scene, probe: Probe | None, fps: float) -> None:
        """``scene``: what the caption asks for (longvid.training.describe.scene_of). ``probe``: of
        longvid.training.probe.load_probe; None measures nothing. Raises InputError for an ``fps`` that is none."""
        self._scene, self._probe, self._fps = scene, probe, check_fps(fps)
        self._span = max(1, round(SEGMENT_SECONDS * fps))
        self._seen: list[dict[str, np.ndarray]] = []
        self._drift = SceneDrift(self._span)
        self._frames = 0
        self._cuts: list[int] = []  # the first frames behind a gap

    def cut(self) -> None:
        """Frames are left out before the next one: nothing is measured across the gap."""
        self._cuts.append(self._frames)
        self._drift.cut()

    def update(self, frames: np.ndarray) -> None:
        """Read uint8 frames [T, H, W, 3]. Raises InputError for frames of another size than the probe's."""
        self._frames += len(frames)
        if self._probe is not None:
            from longvid.training.probe import score_frames

            self._seen.append(score_frames(frames, self._probe))
            self._drift.update(frames, self._seen[-1])

    def drifts(self) -> list[float]:
        """Scene drift, in grey levels, of every segment after the first, NaN where the subject was never single.

        Where the scene itself moves they are no drift; :meth:`scores` leaves them out.
        """
        return self._drift.drifts

    def _readings(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate([part[name] for part in self._seen]) for name in self._seen[0]}

    def trajectory(self) -> Trajectory | None:
        """The subject's path against the one that the caption asks for; None when nothing was read."""
        return measure_trajectory(self._readings(), self._scene, self._fps, cuts=self._cuts) if self._seen else None

    def scores(self, side: int) -> dict[str, float]:
        """Numbers by name; ``side`` is the frame's side in pixels. Empty when nothing was read.

        - colour, shape, background ``_first`` and ``_last``: share of the first and last 5 s whose reading is the
          caption's; ``one_subject_*``: with exactly one subject. A video under 10 s is halved.
        - accuracy_lost: the mean of these four, first minus last.
        - scene_drift, scene_worst: mean and worst of :meth:`drifts`; only of scenes that stand still (STATIC).
        - subject_colour: change of the subject's colour, first to last segment, in grey levels; not under LIT.
        - pattern_kept: share of the frames after the start whose pattern is that of the start.
        - size_change: |last - first| median diameter, in pixels.
        - subject_motion: mean step of the single subject, in pixels a frame.
        """
        if not self._seen:
            return {}
        seen = self._readings()
        total = len(seen["count"])
        span = min(self._span, max(1, total // 2))
        ends = {"first": slice(0, span), "last": slice(total - span, total)}
        found: dict[str, float] = {}
        for end, part in ends.items():
            for name in ("colour", "shape", "background"):
                found[f"{name}_{end}"] = float((seen[name][part] == getattr(self._scene, name)).mean())
            found[f"one_subject_{end}"] = float((seen["count"][part] == 1).mean())
        drifts = [d for d in self._drift.drifts if math.isfinite(d)]
        if drifts and self._scene.background in STATIC:
            found |= {"scene_drift": float(np.mean(drifts)), "scene_worst": max(drifts)}
        if self._scene.background != LIT:
            found["subject_colour"] = self._drift.colour_shift()
        judged = ("colour", "shape", "background", "one_subject")
        found["accuracy_lost"] = float(np.mean([found[f"{n}_first"] - found[f"{n}_last"] for n in judged]))
        one = seen["count"] == 1
        pair = one[1:] & one[:-1]
        pair[[frame - 1 for frame in self._cuts if 0 < frame < total]] = False
        step = np.hypot(np.diff(seen["x"]), np.diff(seen["y"])) * side
        found["subject_motion"] = float(step[pair].mean()) if pair.any() else 0.0
        early, late = one[ends["first"]], one.copy()
        late[ends["first"]] = False
        if early.any() and late.any():
            names, counts = np.unique(seen["pattern"][ends["first"]][early], return_counts=True)
            found["pattern_kept"] = float((seen["pattern"][late] == names[counts.argmax()]).mean())
        if early.any() and one[ends["last"]].any():
            sizes = [np.median(seen["radius"][part][one[part]]) for part in ends.values()]
            found["size_change"] = float(abs(sizes[1] - sizes[0]) * 2 * side)
        return found
