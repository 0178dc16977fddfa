"""All metrics of one video at once: online, chunk by chunk, or from a file; and the report they end in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from longvid.errors import InputError
from longvid.metrics.blocks import RenderedBlocks, rendered_blocks
from longvid.metrics.colour import LOOKS, HueDrift, HueMeter, looks
from longvid.metrics.consistency import Consistency, ConsistencyMeter, LoopBack, LoopMeter
from longvid.metrics.faults import FaultMeter, Faults
from longvid.metrics.flicker import Flicker, FlickerMeter
from longvid.metrics.frames import View, check_fps, check_frames
from longvid.metrics.identity import IdentityDrift, IdentityMeter
from longvid.metrics.motion import Motion, MotionMeter
from longvid.metrics.reader import VideoReader
from longvid.metrics.seams import Seam, SeamMeter, is_joint
from longvid.metrics.series import Drift, Series

TRACKED = (*LOOKS, "motion", "difference", "start_distance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A quantity over time: means over bins."""

    seconds: tuple[float, ...]
    """The middle of each bin."""
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoReport:
    """Everything measured on one video. What the video was too short for is None or absent; ``skipped`` says why."""

    frames: int
    fps: float
    seconds: float
    height: int
    width: int
    faults: Faults
    motion: Motion | None = None
    flicker: Flicker | None = None
    identity: IdentityDrift | None = None
    drift: dict[str, Drift] = field(default_factory=dict)
    """By quantity: brightness, contrast, saturation, sharpness, detail, clipped, blockiness, lab_l, lab_a, lab_b
    (:func:`longvid.metrics.colour.looks`), motion (top-5 % flow, pixels a frame), difference (mean |step|, grey
    levels), start_distance (grey levels to the nearest of the first seconds)."""
    hue: HueDrift | None = None
    seams: dict[str, Seam] = field(default_factory=dict)
    """Empty when no block boundaries were given or noted beside the file."""
    consistency: Consistency | None = None
    loop_back: LoopBack | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    truncated: bool = False
    """Whether the file ended in damaged data; the numbers are those of the frames before."""
    skipped: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts, lists and numbers for JSON; what is not a finite number becomes None."""
        plain = to_plain(self)
        assert isinstance(plain, dict)
        return plain


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and NumPy scalars as JSON's own types; NaN and infinities as None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class StreamMetrics:
    """Every metric of a stream, in memory that does not grow with it (about 6 MB at 128 x 128).

    ``update`` takes the frames as they come and returns the numbers to show live; ``report`` may be called at any time.
    """

    def __init__(self, fps: float, *, motion: bool = True, temporal_stride: int | None = None) -> None:
        """``motion=False`` leaves out what needs OpenCV, and says so in the report; otherwise a missing OpenCV raises
        MissingExtraError here. ``temporal_stride``, the video frames to a latent frame, tells seams from the joints
        between latent frames inside a block.
        """
        self.fps = check_fps(fps)
        self._stride = temporal_stride
        self._motion = MotionMeter(fps) if motion else None
        self._flicker, self._hue, self._seams = FlickerMeter(), HueMeter(fps), SeamMeter()
        self._consistency, self._loop = ConsistencyMeter(fps), LoopMeter(fps)
        self._identity, self._faults = IdentityMeter(fps), FaultMeter(fps)
        self._series = Series(TRACKED, fps)
        self._lab: np.ndarray | None = None
        self._size: tuple[int, int] | None = None
        self._scene = 0  # first frame of the scene: latent frames are counted from it
        self.frames = 0

    def update(self, frames: np.ndarray, *, new_block: bool = False) -> dict[str, float | bool]:
        """Add uint8 frames [T, H, W, 3], of the size of the first ones; the first begins a block if ``new_block``.

        Returns means over these frames, by name: brightness, contrast, saturation, sharpness, and where known motion
        (pixels a frame), difference, start_distance, identity_drift (last finished segment), and whether the video is
        frozen now.
        """
        check_frames(frames)
        size = frames.shape[1], frames.shape[2]
        if self._size is not None and self._size != size:
            raise ValueError(f"frames: {size[1]}x{size[0]}, this video began as {self._size[1]}x{self._size[0]}")
        self._size = size
        rows = [self._add(frame, new_block and i == 0 and self.frames > 0) for i, frame in enumerate(frames)]
        live: dict[str, float | bool] = {}
        for name in ("brightness", "contrast", "saturation", "sharpness", "motion", "difference", "start_distance"):
            known = [row[name] for row in rows if name in row]
            if known:
                live[name] = sum(known) / len(known)
        if self._identity.latest is not None:
            live["identity_drift"] = self._identity.latest
        live["frozen"] = self._faults.frozen_now
        return live

    def _add(self, frame: np.ndarray, boundary: bool) -> dict[str, float]:
        view = View(frame)
        row = looks(view)
        transition: dict[str, float] = {}
        pair = self._flicker.update(view)
        if pair is not None and self._lab is not None:
            row["difference"] = pair[0]
            lab = float(np.linalg.norm(view.lab - self._lab))
            transition = {"difference": pair[0], "luma": abs(pair[1]), "lab": lab}
        moved = self._motion.update(view) if self._motion else None
        if moved is not None:
            row["motion"], transition["flow"] = moved.top5, moved.mean
        distance = self._loop.update(view)
        if distance is not None:
            row["start_distance"] = distance
        for meter in (self._hue, self._consistency, self._identity, self._faults):
            meter.update(view)
        if transition:
            joint = self._stride is not None and is_joint(self.frames - self._scene, self._stride)
            self._seams.update(boundary=boundary, joint=joint, **transition)
        self._series.update(**row)
        self._lab = view.lab
        self.frames += 1
        return row

    def cut(self, *, new_scene: bool = False) -> None:
        """Say that the next frame does not follow the last: a cut that was asked for, or frames that were left out.

        Nothing is measured across it; drift, identity and falls back are still told from the video's first seconds.
        ``new_scene``: the decoder began anew, too, as it does at a hard cut of a prompt schedule, so that latent frames
        are counted from here.
        """
        self._lab = None
        if new_scene:
            self._scene = self.frames
        meters = (self._flicker, self._consistency, self._identity, self._faults)
        for meter in (*meters, self._motion) if self._motion else meters:
            meter.cut()

    def report(self, *, truncated: bool = False) -> VideoReport:
        """Everything so far. Raises ValueError before the first frame."""
        if self._size is None:
            raise InputError("frames: got 0, a report needs at least 1")
        skipped: dict[str, str] = {}

        def attempt(name: str, measure: Callable[[], Any]) -> Any:
            try:
                return measure()
            except ValueError as error:
                skipped[name] = str(error)
                return None

        faults = self._faults.result()
        motion = attempt("motion", self._motion.result) if self._motion else None
        if self._motion is None:
            skipped["motion"] = "not asked for (motion=False)"
        top5 = motion.top5 if motion else float("nan")
        drifts, curves = {}, {}
        for name in TRACKED:
            seconds, values = self._series.curve(name)
            if not np.isfinite(values).any():
                continue
            curves[name] = Curve(seconds=tuple(seconds.tolist()), values=tuple(values.tolist()))
            found = attempt(f"drift.{name}", lambda name=name: self._series.drift(name))  # type: ignore[misc]
            if found is not None:
                drifts[name] = found
        return VideoReport(
            frames=self.frames,
            fps=self.fps,
            seconds=self.frames / self.fps,
            height=self._size[0],
            width=self._size[1],
            faults=faults,
            motion=motion,
            flicker=attempt("flicker", self._flicker.result),
            identity=attempt("identity", lambda: self._identity.result(frozen=faults.frozen, motion=top5)),
            drift=drifts,
            hue=attempt("hue", self._hue.result),
            seams=self._seams.result(),
            consistency=attempt("consistency", self._consistency.result),
            loop_back=self._loop.result(),
            curves=curves,
            truncated=truncated,
            skipped=skipped,
        )


def evaluate(
    frames: Iterable[np.ndarray],
    fps: float,
    *,
    boundaries: Iterable[int] = (),
    temporal_stride: int | None = None,
    motion: bool = True,
) -> VideoReport:
    """Measure frames [H, W, 3], an array [T, H, W, 3] or any iterable of them, one at a time.

    ``boundaries``: the frames at which generated blocks begin (:func:`longvid.metrics.seams.block_boundaries`).
    """
    meter, starts = StreamMetrics(fps, motion=motion, temporal_stride=temporal_stride), set(boundaries)
    for index, frame in enumerate(frames):
        meter.update(np.asarray(frame)[None], new_block=index in starts)
    return meter.report()


def evaluate_file(
    path: str | Path,
    *,
    boundaries: Iterable[int] | Callable[[int], bool] | None = None,
    temporal_stride: int | None = None,
    motion: bool = True,
    on_frame: Callable[[int], None] | None = None,
) -> VideoReport:
    """Measure a video file without ever holding more of it than a few frames.

    ``boundaries`` as in :func:`evaluate`, or a function that tells whether a frame begins a block, for a length that is
    not known beforehand. None: as the render noted them beside the file, with its hard cuts and temporal stride
    (:func:`longvid.metrics.blocks.rendered_blocks`); where its notes are another video's, ``skipped`` says so.
    ``on_frame`` is called with the number of frames done. Raises InputError for a file that cannot be read and for a
    ``temporal_stride`` without boundaries; a damaged end is reported as ``truncated``.
    """
    if boundaries is None and temporal_stride is not None:
        raise InputError(f"temporal_stride={temporal_stride}: needs boundaries; leave both out or give both")
    reader = VideoReader(path)
    noted: RenderedBlocks | None = None
    skipped: dict[str, str] = {}
    if boundaries is None:
        try:
            noted = rendered_blocks(reader)
        except InputError as error:
            skipped["seams"] = str(error)
        boundaries = noted.boundaries if noted else ()
        temporal_stride = noted.temporal_stride if noted else None
    meter = StreamMetrics(reader.fps, motion=motion, temporal_stride=temporal_stride)
    begins = boundaries if callable(boundaries) else set(boundaries).__contains__
    for index, frame in enumerate(reader):
        if noted and index in noted.cuts:
            meter.cut(new_scene=True)
        meter.update(frame[None], new_block=begins(index))
        if on_frame is not None:
            on_frame(index + 1)
    if meter.frames == 0:
        raise InputError(f"video={str(path)!r}: holds no frame that can be decoded")
    report = meter.report(truncated=reader.truncated)
    return replace(report, skipped=report.skipped | skipped)
