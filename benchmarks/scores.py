"""What benchmarks/methods.py reports of one video: the library's metrics and the oracle's judgement, as flat numbers.

The oracle is longvid.metrics.oracle; its trajectory is not among these numbers, which recorded rows do not have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from longvid.metrics.oracle import STATIC, Oracle

SCORING = 1
"""To be raised when a score changes its meaning: videos that were scored under another number are rendered again."""


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
    "consistency_10s": Metric(title="similarity after 10 s", good=0, digits=3),
    # Neither way is better: of all scenes, and in those of day and night real video changes, too.
    "brightness_change": Metric(title="brightness change", good=0),
    "contrast_change": Metric(title="contrast change", good=0),
    "saturation_change": Metric(title="saturation change", good=0, digits=3),
    "sharpness_change": Metric(title="sharpness change (octaves)", good=0),
    "colour_shift": Metric(title="colour shift (CIE76)", good=0),
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
