"""Rendering to disk: the rollout makes blocks, a thread writes them, a journal makes it safe to be cut off at any time.

    rollout -> decode -> uint8 frames --(queue of 2)--> writer: append to the file, then to the journal
                    now and then: state of rollout and decoder --(same queue)--> snapshot

Whatever stops a render, the file plays up to its last block. ``resume=True`` takes the newest snapshot, makes the
blocks between it and the file's end once more (they must come out with the same MD5s), and goes on behind them.
Snapshots only save time: one that finds no room on the disk is left out, and the render goes on.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from longvid.errors import InputError, OutputError, ResumeError
from longvid.media.journal import (
    BlockRecord,
    RenderJournal,
    Snapshot,
    frame_marks,
    frame_md5s,
    position_after,
    read_sidecar,
    refuse_other,
)
from longvid.media.output import check_output
from longvid.media.writer import Position, VideoWriter, ending_of, length_of, open_writer
from longvid.models.vae_stream import streaming_decoder

from ..cache.snapshot import cpu_copy
from .recipe import render_recipe
from .recorder import Recorder


class RenderProgress(NamedTuple):
    """Where a render is; given to the ``progress`` callback at every step and every block."""

    block: int
    """Blocks done."""
    blocks: int
    step: int
    """Model calls since the last block."""
    steps: int | None
    """Model calls a block, where it is always the same number."""
    frames: int
    """Video frames done, those of an earlier run included."""
    total_frames: int
    video_fps: float
    """Frames a second of the video."""
    fps: float
    """Frames a second that are made, over this run; 0.0 before the first block."""
    eta: float | None
    """Seconds to go."""
    memory: int
    """Bytes of memory in use: of the process, or of the GPU."""


class RenderResult(NamedTuple):
    """A finished render."""

    path: Path
    frames: int
    seconds: float
    """Length of the video."""
    wall: float
    """Seconds that this run took, from the first model call on."""
    first_frame: float | None
    """Seconds until the first new frames were decoded; None when there were none."""
    resumed_blocks: int
    """Blocks that an earlier run had made."""


def render_video(
    pipe: Any,
    prompt: str,
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[RenderProgress], None] | None = None,
    crf: float = 18,
    snapshot_every: int | None = None,
    **arguments: Any,
) -> RenderResult:
    """Render one video straight to ``path`` (.mp4, .gif, .webp, or numbered .png).

    Args:
        pipe: a LongVideoPipeline.
        prompt: text or a prompt schedule.
        path: the output. Nothing stands there before it plays. Its folder must exist.
        seed: of the noise.
        resume: go on with an unfinished render of the same configuration; begin when there is none; do nothing when it
            is finished.
        overwrite: replace what is there.
        progress: called with a RenderProgress.
        crf: quality of H.264, 0 (lossless) to 51.
        snapshot_every: blocks between snapshots; None decides by time.
        arguments: as of ``pipe(...)``: seconds, num_frames, height, width, image, method, ...

    Raises:
        InputError: arguments that cannot be, an output that is in the way or in use, another configuration.
        DiskFullError: no room for the video; the file plays, and ``resume`` goes on. (A snapshot without room is only
            logged as a warning.)
    """
    check_output(path, resume=resume, overwrite=overwrite)
    if not 0 <= crf <= 51:
        raise InputError(f"crf={crf!r}: must be from 0 (lossless) to 51")
    if snapshot_every is not None and snapshot_every < 1:
        raise InputError(f"snapshot_every={snapshot_every!r}: must be 1 or more blocks")
    callback = arguments.pop("callback_on_step_end", None)
    for name, called in (("progress", progress), ("callback_on_step_end", callback)):
        if called is not None and not callable(called):
            raise InputError(f"{name}={called!r}: must be a function, or None")
    meter = _Meter(progress, callback)
    request, rollout = pipe._start(prompt, seed=seed, callback=meter.on_step if meter.listens else None, **arguments)
    if request.batch != 1:
        raise InputError(f"prompt: {request.batch} videos asked for; a file holds one")
    given = {name: arguments.get(name) for name in ("image", "video", "latents", "attention")}
    output = {"ending": ending_of(path)} | ({"crf": crf} if ending_of(path) == ".mp4" else {})
    recipe = render_recipe(pipe, request, prompt, given, output)

    journal = RenderJournal(path)
    try:
        check_output(path, resume=resume, overwrite=overwrite)  # again, now that nobody else can write it
        records = _begin(journal, path, recipe, resume)
        if records is None:
            return RenderResult(Path(path), request.frames, request.frames / request.fps, 0.0, None, 0)
        decoder = streaming_decoder(pipe.vae)
        job = _Job(pipe, request, rollout, decoder, journal, records, meter, snapshot_every)
        writer = open_writer(
            path,
            width=request.width,
            height=request.height,
            fps=request.fps,
            crf=crf,
            at=Position(request.frames, length_of(path) or 0) if journal.whole else position_after(records),
        )
        try:
            if not journal.whole:
                job.run(writer)
                journal.mark_whole()
            writer.finish()
        finally:
            writer.close()
        journal.finish()
    finally:
        journal.release()
    pipe.maybe_free_model_hooks()
    return RenderResult(
        Path(path), request.frames, request.frames / request.fps, meter.elapsed, meter.first_frame, len(records)
    )


def _begin(
    journal: RenderJournal, path: str | os.PathLike[str], recipe: dict[str, Any], resume: bool
) -> list[BlockRecord] | None:
    """The blocks that are already in the file; None when the whole render is there."""
    if not (resume and journal.begun):
        if resume and length_of(path) is not None:
            done = read_sidecar(path)
            if done is None:
                raise OutputError(f"out={os.fspath(path)!r}: has no .frames_md5 beside it, so it cannot be resumed; "
                                  "use overwrite=True (--overwrite)")  # fmt: skip
            refuse_other(done[0], recipe)
            return None
        journal.begin(recipe)
        return []
    records = journal.resume(recipe)
    length = length_of(path)
    if records and length is None:
        raise OutputError(f"out={os.fspath(path)!r}: the journal knows {len(records)} blocks, but the file is gone; "
                          "bring it back, or use overwrite=True (--overwrite)")  # fmt: skip
    if journal.whole:
        return records
    there = [record for record in records if record.bytes <= (length or 0)]
    if len(there) < len(records):  # somebody cut the file
        journal.keep(there)
    return there


class _Job:
    """One run: from the newest snapshot to the last block."""

    def __init__(
        self,
        pipe: Any,
        request: Any,
        rollout: Any,
        decoder: Any,
        journal: RenderJournal,
        records: list[BlockRecord],
        meter: _Meter,
        snapshot_every: int | None,
    ) -> None:
        self.pipe, self.request, self.rollout, self.decoder = pipe, request, rollout, decoder
        self.journal, self.records, self.meter = journal, records, meter
        self.snapshot_every = snapshot_every

    def run(self, writer: VideoWriter) -> None:
        from .output import to_uint8

        request, records = self.request, self.records
        index = self._restore()
        self.meter.start(request, position_after(records).frames, index)
        recorder = Recorder(writer, self.journal)
        try:
            for block, video in self.pipe.decoded(self.rollout, request.frames, self.decoder):
                frames_THWC = to_uint8(video)[0]
                if index < len(records):
                    self._compare(index, frames_THWC)
                else:
                    stride = self.pipe._facts.temporal
                    marks = frame_marks(len(frames_THWC), new_scene=block.new_scene, temporal_stride=stride)
                    recorder.block(index, frames_THWC, marks)
                index += 1
                self.meter.block(index, len(frames_THWC) if index > len(records) else 0)
                every = self.snapshot_every
                if index > len(records) and (recorder.rested if every is None else index % every == 0):
                    recorder.snapshot(functools.partial(self._state, index))
                del block, video
        finally:
            recorder.close()  # what was queued is written, whatever stopped us

    def _restore(self) -> int:
        """Load the newest snapshot into rollout and decoder; the number of blocks that it stands behind."""
        snapshot = self.journal.latest_snapshot(len(self.records)) if self.records else None
        if snapshot is None:
            return 0
        parts: dict[str, dict[str, Tensor]] = {"rollout": {}, "decoder": {}}
        for name, tensor in snapshot.tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        self.rollout.load_state_dict(parts["rollout"], snapshot.meta)
        self.decoder.load_state_dict(
            {name: tensor.to(self.pipe.vae.device) for name, tensor in parts["decoder"].items()}
        )
        return snapshot.blocks

    def _state(self, blocks: int) -> Snapshot:
        tensors, meta = self.rollout.state_dict()
        named = {f"rollout/{name}": tensor for name, tensor in tensors.items()}
        # Copied: the next block changes the decoder's tensors while this one is being written.
        named |= {f"decoder/{name}": cpu_copy(tensor) for name, tensor in self.decoder.state_dict().items()}
        return Snapshot(blocks, named, meta)

    def _compare(self, index: int, frames_THWC: np.ndarray) -> None:
        if frame_md5s(frames_THWC) != self.records[index].md5:
            raise ResumeError(
                f"resume: block {index} came out different from the one in the file, so this machine or its libraries "
                f"compute differently now; use overwrite=True (--overwrite)"
            )


class _Meter:
    """Turns blocks and steps into RenderProgress."""

    def __init__(self, progress: Callable[[RenderProgress], None] | None, callback: Callable[..., Any] | None) -> None:
        self._progress, self._callback = progress, callback
        self.listens = progress is not None or callback is not None
        self.first_frame: float | None = None
        self._begun: float | None = None
        self._process = psutil.Process()

    @property
    def elapsed(self) -> float:
        return 0.0 if self._begun is None else time.perf_counter() - self._begun

    def start(self, request: Any, frames: int, blocks: int) -> None:
        self._begun = time.perf_counter()
        self._request, self._frames, self._new, self._blocks, self._step = request, frames, 0, blocks, 0
        self._total_blocks = request.blocks
        schedule = request.method.schedule
        self._steps = None if schedule.kind == "fifo" else len(request.sigmas) if schedule.kind == "chunk" else 1

    def block(self, blocks: int, new_frames: int) -> None:
        self._blocks, self._step = blocks, 0
        self._frames, self._new = self._frames + new_frames, self._new + new_frames
        if new_frames and self.first_frame is None:
            self.first_frame = self.elapsed
        self._tell()

    def on_step(self, pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> Any:
        """A diffusers callback_on_step_end; the user's own, if there is one, decides what it returns."""
        self._step += 1
        self._tell()
        return None if self._callback is None else self._callback(pipe, step, timestep, tensors)

    def _tell(self) -> None:
        if self._progress is None:
            return
        request, elapsed = self._request, self.elapsed
        fps = self._new / elapsed if self._new and elapsed else 0.0
        on_gpu = torch.cuda.is_available() and torch.cuda.memory_allocated() > 0
        self._progress(
            RenderProgress(
                block=self._blocks,
                blocks=self._total_blocks,
                step=self._step,
                steps=self._steps,
                frames=self._frames,
                total_frames=request.frames,
                video_fps=request.fps,
                fps=fps,
                eta=(request.frames - self._frames) / fps if fps else None,
                memory=torch.cuda.memory_allocated() if on_gpu else self._process.memory_info().rss,
            )
        )
