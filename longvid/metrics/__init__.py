"""What a long video suffers from, measured without downloaded weights: drift, seams, motion, flicker, faults.

Every metric is a pure function of uint8 frames [T, H, W, 3] and a small accumulator that gives the same number online.

    from longvid.metrics import StreamMetrics, evaluate_file
    report = evaluate_file("clip.mp4")
    print(report.identity, report.motion)

Names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "StreamMetrics": "report",
    "VideoReport": "report",
    "evaluate": "report",
    "evaluate_file": "report",
    "VideoReader": "reader",
    "measure_motion": "motion",
    "measure_flicker": "flicker",
    "hue_drift": "colour",
    "measure_seams": "seams",
    "block_boundaries": "seams",
    "measure_consistency": "consistency",
    "loop_back": "consistency",
    "identity_drift": "identity",
    "find_faults": "faults",
    "non_finite_frames": "frames",
    "Oracle": "oracle",
    "SceneDrift": "scene_drift",
    "measure_trajectory": "trajectory",
    "judge_file": "oracle_file",
    "compare": "fidelity",
    "psnr": "fidelity",
    "Interval": "bootstrap",
    "mean_interval": "bootstrap",
    "paired_difference": "bootstrap",
    "paired_ratio": "bootstrap",
    "judge_drift": "bootstrap",
    "MissingExtraError": "extras",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
