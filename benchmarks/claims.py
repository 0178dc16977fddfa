"""What the papers claim, as comparisons of two entries of the methods table, and whether the figures bear them out.

A claim is *shown* when the paired interval lies wholly on the claimed side, *contradicted* when it lies wholly on the
other, *not shown* in between, and *not run* when an entry is missing. A claim of equality (``within``) is shown when
the whole interval lies inside the margin, and contradicted when it lies wholly outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from longvid.metrics.bootstrap import ENOUGH_PROMPTS, RESAMPLES, Interval, complete_pairs, paired_difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """``entry`` has more (direction +1) or less (-1) of ``metric`` than ``than``, or the same up to ``within`` (0)."""

    text: str
    paper: str
    metric: str
    entry: str
    than: str
    direction: int
    within: float = 0.0

    def __post_init__(self) -> None:
        if self.direction not in (-1, 0, 1) or (self.direction == 0) != (self.within > 0):
            raise ValueError(f"direction={self.direction}, within={self.within}: must be -1 or 1, or 0 with a margin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A claim with its verdict and, where it could be judged, the paired difference entry - than."""

    claim: Claim
    verdict: str
    difference: Interval | None
    why: str = ""


PAPERS: tuple[Claim, ...] = (
    Claim(
        text="An attention sink lowers drift.",
        paper="StreamingLLM (2309.17453)",
        metric="scene_drift",
        entry="streaming-llm",
        than="self-forcing",
        direction=-1,
    ),
    Claim(
        text="A sink of the first block freezes motion.",
        paper="Deep Forcing (2512.05081), on StreamingLLM-style sinks",
        metric="subject_motion",
        entry="streaming-llm",
        than="self-forcing",
        direction=-1,
    ),
    Claim(
        text="A deep, re-aligned sink of half the window leaves more motion than a first-block sink.",
        paper="Deep Forcing (2512.05081)",
        metric="subject_motion",
        entry="deep-sink",
        than="streaming-llm",
        direction=1,
    ),
    Claim(
        text="A deep sink lowers drift.",
        paper="Deep Forcing (2512.05081)",
        metric="scene_drift",
        entry="deep-sink",
        than="self-forcing",
        direction=-1,
    ),
    Claim(
        text="Participative compression lowers drift beyond the deep sink.",
        paper="Deep Forcing (2512.05081)",
        metric="scene_drift",
        entry="deep-forcing",
        than="deep-sink",
        direction=-1,
    ),
    Claim(
        text="Joint denoising of a rolling window suppresses the growth of errors.",
        paper="Rolling Forcing (2509.25161)",
        metric="accuracy_lost",
        entry="rolling-forcing",
        than="self-forcing",
        direction=-1,
    ),
    Claim(
        text="Rolling Forcing drifts less.",
        paper="Rolling Forcing (2509.25161)",
        metric="scene_drift",
        entry="rolling-forcing",
        than="self-forcing",
        direction=-1,
    ),
    Claim(
        text="An EMA sink avoids copying the first frames.",
        paper="Reward Forcing (2512.04678)",
        metric="start_distance",
        entry="reward-forcing",
        than="static-sink",
        direction=1,
    ),
    Claim(
        text="An EMA sink falls back to the first frames less often.",
        paper="Reward Forcing (2512.04678)",
        metric="loop_share",
        entry="reward-forcing",
        than="static-sink",
        direction=-1,
    ),
    Claim(
        text="An EMA sink lowers drift.",
        paper="Reward Forcing (2512.04678)",
        metric="scene_drift",
        entry="reward-forcing",
        than="static-sink",
        direction=-1,
    ),
    Claim(
        text="Reward-weighted distillation (Re-DMD) raises motion, measured by flow.",
        paper="Reward Forcing (2512.04678)",
        metric="motion",
        entry="distilled-reward-forcing",
        than="distilled-ema-sink",
        direction=1,
    ),
    Claim(
        text="Reward-weighted distillation (Re-DMD) raises the subject's motion.",
        paper="Reward Forcing (2512.04678)",
        metric="subject_motion",
        entry="distilled-reward-forcing",
        than="distilled-ema-sink",
        direction=1,
    ),
    Claim(
        text="Coherent tail sampling raises consistency over FIFO.",
        paper="Ouroboros-Diffusion (2501.09019)",
        metric="consistency_10s",
        entry="ouroboros",
        than="fifo",
        direction=1,
    ),
    Claim(
        text="Radial attention loses nothing: shape accuracy within 5 points of dense attention.",
        paper="Radial Attention (2506.19852)",
        metric="shape_last",
        entry="radial",
        than="self-forcing",
        direction=0,
        within=0.05,
    ),
    Claim(
        text="Radial attention drifts as dense attention does, within half a grey level.",
        paper="Radial Attention (2506.19852)",
        metric="scene_drift",
        entry="radial",
        than="self-forcing",
        direction=0,
        within=0.5,
    ),
)
# Our own method, against each of the five: less drift, more motion, and motion as fast as the caption's.
OURS: tuple[Claim, ...] = tuple(
    Claim(
        text=f"longvid {what} than {than}.",
        paper="longvid",
        metric=metric,
        entry="longvid",
        than=than,
        direction=direction,
    )
    for than in ("deep-sink", "deep-forcing", "rolling-forcing", "reward-forcing", "ouroboros", "radial")
    for what, metric, direction in (
        ("drifts less", "scene_drift", -1),
        ("moves more", "subject_motion", 1),
        ("keeps speed better", "speed_error", -1),
    )
)


CLAIMS = PAPERS + OURS


def judge(claim: Claim, tables: Mapping[str, Mapping[str, np.ndarray]], *, resamples: int = RESAMPLES) -> Judged:
    """Judge a claim on ``tables[entry][metric]`` [P, S], NaN where a video has no such score."""
    missing = [name for name in (claim.entry, claim.than) if name not in tables]
    if missing:
        return Judged(claim=claim, verdict="not run", difference=None, why=f"no entry {', '.join(missing)}")
    try:
        pair, _ = complete_pairs({"entry": tables[claim.entry][claim.metric], "than": tables[claim.than][claim.metric]})
    except ValueError as error:
        return Judged(claim=claim, verdict="not run", difference=None, why=str(error))
    found = paired_difference(pair["entry"], pair["than"], resamples=resamples)
    if claim.direction == 0:
        enough = found.prompts >= ENOUGH_PROMPTS
        inside = enough and -claim.within < found.low and found.high < claim.within
        outside = enough and (found.low > claim.within or found.high < -claim.within)
        verdict = "shown" if inside else "contradicted" if outside else "not shown"
    elif not found.clear:
        verdict = "not shown"
    else:
        verdict = "shown" if found.estimate * claim.direction > 0 else "contradicted"
    return Judged(claim=claim, verdict=verdict, difference=found)
