"""The oracle's judgement of a video file of the embedded world, and the caption that a render left beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longvid.errors import InputError
from longvid.metrics.oracle import STATIC, Oracle
from longvid.metrics.reader import VideoReader
from longvid.metrics.trajectory import Trajectory
from longvid.training import world

if TYPE_CHECKING:
    from longvid.training.probe import Probe
    from longvid.training.world import Scene

_BATCH = 64  # frames that the probe reads at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleReport:
    """What the oracle says of one video."""

    scene: Scene
    """What the caption asks for."""
    probe: dict[str, float]
    """The probe's own accuracy on held-out frames of the world: what its word is worth."""
    scores: dict[str, float]
    """By the names of :meth:`longvid.metrics.oracle.Oracle.scores`."""
    drifts: tuple[float, ...]
    """Scene drift in grey levels of every segment after the first; empty for scenes that move."""
    trajectory: Trajectory


def rendered_prompt(video: str | Path) -> str:
    """The prompt that a finished render wrote beside ``video``. Raises InputError when there is no such video or no
    prompt."""
    from longvid.media.journal import read_sidecar, sidecar

    if not Path(video).is_file():
        raise InputError(f"video={str(video)!r}: no such file")
    found = read_sidecar(video)
    prompt = found[0].get("prompt") if found is not None else None
    if not isinstance(prompt, str):
        raise InputError(
            f"video={str(video)!r}: {sidecar(video).name} with the prompt of its render is not beside it; give --world"
        )
    return prompt


def check_size(video: str | Path) -> None:
    """Raise InputError, without decoding a frame, for a file that is no video or has another size than the probe's."""
    reader = VideoReader(video)
    if (reader.width, reader.height) != (world.SIZE, world.SIZE):
        raise InputError(
            f"video={str(video)!r}: {reader.width}x{reader.height} pixels, the probe reads {world.SIZE}x{world.SIZE}; "
            "give a video of the embedded model, or leave --probe out"
        )


def judge_file(video: str | Path, scene: Scene, probe: Probe, held_out: dict[str, float]) -> OracleReport:
    """Read a video of 128 x 128 pixels, a few frames at a time, and judge it by ``scene``.

    ``probe`` and its figures ``held_out`` are those of longvid.training.probe.load_probe. Raises InputError for a file
    that cannot be read, holds no frame, or has another size.
    """
    check_size(video)
    reader = VideoReader(video)
    oracle = Oracle(scene, probe, reader.fps)
    frames = iter(reader)
    while batch := list(islice(frames, _BATCH)):
        oracle.update(np.stack(batch))
    trajectory = oracle.trajectory()
    if trajectory is None:
        raise InputError(f"video={str(video)!r}: holds no frame that can be decoded")
    return OracleReport(
        scene=scene,
        probe=held_out,
        scores=oracle.scores(reader.height),
        drifts=tuple(oracle.drifts()) if scene.background in STATIC else (),
        trajectory=trajectory,
    )


def oracle_rows(report: OracleReport) -> list[tuple[str, str]]:
    """The report's rows of the table of ``longvid eval``: (metric, value with unit)."""
    s, path = report.scores, report.trajectory
    rows = [
        (f"oracle: {title}, first -> last", f"{s[f'{name}_first']:.0%} -> {s[f'{name}_last']:.0%}")
        for name, title in (
            ("colour", f"colour is {report.scene.colour}"),
            ("shape", f"shape is {report.scene.shape}"),
            ("background", f"background is {report.scene.background}"),
            ("one_subject", "exactly one subject"),
        )
    ]
    for name, title, form in (
        ("scene_drift", "oracle: scene drift (grey levels)", "{:.2f}"),
        ("scene_worst", "oracle: scene drift, worst segment", "{:.2f}"),
        ("pattern_kept", "oracle: pattern kept", "{:.0%}"),
        ("subject_colour", "oracle: subject's colour change (grey levels)", "{:.2f}"),
        ("size_change", "oracle: size change (px)", "{:.2f}"),
    ):
        if math.isfinite(s.get(name, math.nan)):
            rows.append((title, form.format(s[name])))
    if math.isfinite(path.speed_ratio):
        rows.append(("oracle: speed / the caption's", f"{path.speed_ratio:.2f}"))
    if path.motion is not None:
        rows.append(
            (f"oracle: motion is {report.scene.motion}", f"{path.motion_right:.0%} of the time (mostly {path.motion})")
        )
    return rows
