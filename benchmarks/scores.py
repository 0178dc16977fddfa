"""What benchmarks/methods.py reports of one video: the library's metrics and the oracle's judgement, as flat numbers.

The oracle is the probe of the embedded world (longvid.training.probe): it reads off each frame what a caption fixes
(colour, shape, background, one subject) and what only the seed does (pattern, size), and where the subject is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.scene_drift import SceneDrift

SEGMENT_SECONDS = 5.0
# Backgrounds whose furniture stands still: only there does a changed median image mean a lost identity.
STATIC = ("sea", "stars", "sunset")
LIT = "daynight"  # there the light changes the subject's colour


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """How a number is shown and which way is good: -1 lower, +1 higher, 0 neither."""

    title: str
    good: int
    digits: int = 2


METRICS: dict[str, Metric] = {
    "scene_drift": Metric(title="scene drift (grey levels, still scenes, subject left out)", good=-1),
    "scene_worst": Metric(title="scene drift, worst segment", good=-1),
    "identity_drift": Metric(title="identity drift (grey levels, still scenes)", good=-1),
    "identity_worst": Metric(title="identity drift, worst segment", good=-1),
    "motion": Metric(title="motion (top-5 % flow, px/frame)", good=0),
    "subject_motion": Metric(title="subject motion (oracle, px/frame)", good=0),
    "speed_error": Metric(title="subject's speed off the real one's (octaves)", good=-1),
    "dynamic_degree": Metric(title="dynamic degree", good=0),
    "smoothness": Metric(title="smoothness", good=1, digits=4),
    "luma_flutter": Metric(title="luma flutter (grey levels)", good=-1),
    "seam": Metric(title="seam: difference at blocks / elsewhere", good=-1),
    "seam_latent": Metric(title="seam against latent joints", good=-1),
    "consistency_1s": Metric(title="similarity after 1 s", good=0, digits=3),
    "consistency_10s": Metric(title="similarity after 10 s", good=1, digits=3),
    "brightness_change": Metric(title="brightness change", good=-1),
    "contrast_change": Metric(title="contrast change", good=-1),
    "saturation_change": Metric(title="saturation change", good=-1, digits=3),
    "sharpness_change": Metric(title="sharpness change (octaves)", good=-1),
    "colour_shift": Metric(title="colour shift (CIE76)", good=-1),
    "start_distance": Metric(title="distance to the start (grey levels)", good=0),
    "loop_share": Metric(title="time fallen back to the start", good=-1, digits=3),
    "frozen": Metric(title="time frozen", good=-1, digits=3),
    "colour_first": Metric(title="colour right, first 5 s", good=1, digits=3),
    "colour_last": Metric(title="colour right, last 5 s", good=1, digits=3),
    "shape_first": Metric(title="shape right, first 5 s", good=1, digits=3),
    "shape_last": Metric(title="shape right, last 5 s", good=1, digits=3),
    "background_first": Metric(title="background right, first 5 s", good=1, digits=3),
    "background_last": Metric(title="background right, last 5 s", good=1, digits=3),
    "one_subject_first": Metric(title="exactly one subject, first 5 s", good=1, digits=3),
    "one_subject_last": Metric(title="exactly one subject, last 5 s", good=1, digits=3),
    "accuracy_lost": Metric(title="oracle accuracy lost, first to last 5 s", good=-1, digits=3),
    "pattern_kept": Metric(title="subject's pattern kept", good=1, digits=3),
    "subject_colour": Metric(title="subject's colour change (grey levels)", good=-1),
    "size_change": Metric(title="subject's size change (px)", good=-1),
}


SLOWEST = 0.05  # px/frame: a subject below it stands still, and is this many octaves off


def speed_error(subject_motion: np.ndarray, world: np.ndarray) -> np.ndarray:
    """|log2(speed / the same scene's in real video)| of subject speeds in px/frame, NaN where either is."""
    error: np.ndarray = np.abs(np.log2(np.maximum(subject_motion, SLOWEST) / np.maximum(world, SLOWEST)))
    return error


class Oracle:
    """Collects the probe's reading of a stream; without a probe every score is NaN."""

    def __init__(self, scene: Any, probe: Any, fps: float) -> None:
        self._scene, self._probe = scene, probe
        self._span = round(SEGMENT_SECONDS * fps)
        self._seen: list[dict[str, np.ndarray]] = []
        self._drift = SceneDrift(self._span)
        self._frames = 0
        self._cuts: list[int] = []  # the first frames behind a gap

    def cut(self) -> None:
        """Frames are left out before the next one."""
        self._cuts.append(self._frames)
        self._drift.cut()

    def update(self, frames: np.ndarray) -> None:
        """Read uint8 frames [T, H, W, 3]."""
        self._frames += len(frames)
        if self._probe is not None:
            from longvid.training.probe import score_frames

            self._seen.append(score_frames(frames, self._probe))
            self._drift.update(frames, self._seen[-1])

    def drifts(self) -> list[float]:
        """Scene drift of every segment after the first, NaN where the subject was never single."""
        return self._drift.drifts

    def scores(self, side: int) -> dict[str, float]:
        """The oracle's part of METRICS; ``side`` is the frame's side in pixels."""
        if not self._seen:
            return {}
        seen = {name: np.concatenate([part[name] for part in self._seen]) for name in self._seen[0]}
        total = len(seen["count"])
        span = min(self._span, max(1, total // 2))
        ends = {"first": slice(0, span), "last": slice(total - span, total)}
        found: dict[str, float] = {}
        for end, part in ends.items():
            for name in ("colour", "shape", "background"):
                found[f"{name}_{end}"] = float((seen[name][part] == getattr(self._scene, name)).mean())
            found[f"one_subject_{end}"] = float((seen["count"][part] == 1).mean())
        drifts = [d for d in self._drift.drifts if math.isfinite(d)]
        if drifts:
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


class VideoScore:
    """Scores one video, chunk by chunk."""

    def __init__(self, fps: float, *, scene: Any, probe: Any, temporal_stride: int | None) -> None:
        """``probe=None`` leaves the oracle's scores out."""
        from longvid.metrics import StreamMetrics

        self._scene, self._side, self._next = scene, 0, 0
        self._meter, self._oracle = StreamMetrics(fps, temporal_stride=temporal_stride), Oracle(scene, probe, fps)

    def update(self, chunk: Any) -> None:
        """Add a VideoChunk. Each is a block of its own, so its first frame is a boundary; frames left out before it are
        a gap that nothing is measured across."""
        if chunk.start_frame != self._next:
            self._meter.cut()
            self._oracle.cut()
        self._meter.update(chunk.frames, new_block=True)
        self._oracle.update(chunk.frames)
        self._side, self._next = chunk.frames.shape[1], chunk.start_frame + len(chunk.frames)

    def result(self) -> dict[str, float]:
        """By the names of METRICS; what could not be measured is NaN."""
        scores = dict.fromkeys(METRICS, math.nan) | flatten(self._meter.report()) | self._oracle.scores(self._side)
        if self._scene.background not in STATIC:
            scores |= dict.fromkeys(("scene_drift", "scene_worst", "identity_drift", "identity_worst"), math.nan)
        return scores

    def drifts(self) -> list[float]:
        """Scene drift of every segment after the first; empty without a probe and for scenes that move."""
        return self._oracle.drifts() if self._scene.background in STATIC else []


def flatten(report: Any) -> dict[str, float]:
    """The metrics' part of METRICS, from a VideoReport."""
    found: dict[str, float] = {"frozen": report.faults.frozen}
    if report.identity is not None:
        found |= {"identity_drift": report.identity.mean, "identity_worst": report.identity.worst}
    if report.motion is not None:
        found |= {
            "motion": report.motion.top5,
            "dynamic_degree": report.motion.dynamic_degree,
            "smoothness": report.motion.smoothness,
        }
    if report.flicker is not None:
        found["luma_flutter"] = report.flicker.luminance
    if "difference" in report.seams:
        seam = report.seams["difference"]
        found |= {"seam": seam.ratio, "seam_latent": seam.latent_ratio}
    if report.consistency is not None:
        curve = dict(zip(report.consistency.lags, report.consistency.similarity, strict=True))
        found |= {f"consistency_{lag:g}s": curve[lag] for lag in (1.0, 10.0) if lag in curve}
    for name in ("brightness", "contrast", "saturation"):
        if name in report.drift:
            found[f"{name}_change"] = abs(report.drift[name].change)
    if "sharpness" in report.drift and min(report.drift["sharpness"].first, report.drift["sharpness"].last) > 0:
        found["sharpness_change"] = abs(math.log2(report.drift["sharpness"].last / report.drift["sharpness"].first))
    if report.hue is not None:
        found["colour_shift"] = report.hue.delta_e
    if "start_distance" in report.curves:
        found["start_distance"] = float(np.nanmean(report.curves["start_distance"].values))
    if report.loop_back is not None:
        found["loop_share"] = report.loop_back.share
    return found
