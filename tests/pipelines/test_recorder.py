"""The thread that writes: what snapshots cost, one at a time, and which full disk stops a render."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from longvid.errors import DiskFullError
from longvid.media.journal import BlockRecord, RenderJournal, Snapshot, journal_folder
from longvid.media.writer import Position
from longvid.pipelines import recorder as module
from longvid.pipelines.recorder import Recorder
from longvid.pipelines.render import RenderProgress

FRAMES = np.zeros((1, 2, 2, 3), np.uint8)


class Disk:
    """A writer and a journal in one; ``on_block`` and ``on_snapshot`` are what happens while they write."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.snapshots: list[int] = []
        self.on_block: Callable[[], object] = lambda: None
        self.on_snapshot: Callable[[], object] = lambda: None
        self._written = threading.Semaphore(0)

    def append(self, frames_THWC: np.ndarray) -> Position:
        self.on_block()
        return Position(1, 1)

    def record(self, record: BlockRecord) -> None:
        self.blocks.append(record.block)
        self._written.release()

    def snapshot(self, snapshot: Snapshot) -> None:
        self.on_snapshot()
        self.snapshots.append(snapshot.blocks)

    def catch_up(self, recorder: Recorder) -> None:
        """Return when everything that was queued is written."""
        recorder.block(len(self.blocks), FRAMES, ("-",))
        assert self._written.acquire(timeout=60)


class Clock:
    """The recorder's clock, which goes on only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


@pytest.fixture
def disk() -> Disk:
    return Disk()


def recording(disk: Any) -> Recorder:
    return Recorder(disk, disk)


def state(blocks: int = 1) -> Snapshot:
    return Snapshot(blocks, {"keys": torch.zeros(4)}, {})


def full() -> None:
    raise DiskFullError(errno.ENOSPC, "no room on the disk for 'clip.mp4'; what was rendered before is kept")


def test_a_rest_follows_by_what_copying_and_writing_took(clock: Clock, disk: Disk) -> None:
    recorder = recording(disk)
    assert not recorder.rested
    clock.pass_by(16)
    assert recorder.rested

    def take() -> Snapshot:
        clock.pass_by(1)
        return state()

    disk.on_snapshot = lambda: clock.pass_by(3)
    recorder.snapshot(take)
    disk.catch_up(recorder)
    for _ in range(8):  # 20 times the 4 seconds
        assert not recorder.rested
        clock.pass_by(10)
    clock.pass_by(1)
    assert recorder.rested
    recorder.close()


def test_a_snapshot_that_found_no_room_has_cost_time_too(clock: Clock, disk: Disk) -> None:
    def fill() -> None:
        clock.pass_by(3)
        full()

    recorder = recording(disk)
    clock.pass_by(16)
    disk.on_snapshot = fill
    recorder.snapshot(state)
    disk.catch_up(recorder)
    clock.pass_by(59)
    assert not recorder.rested
    clock.pass_by(2)
    assert recorder.rested
    recorder.close()


def test_no_snapshot_is_due_while_one_is_on_its_way(clock: Clock, disk: Disk) -> None:
    go_on = threading.Event()
    disk.on_snapshot = lambda: go_on.wait(60)
    recorder = recording(disk)
    clock.pass_by(1000)
    recorder.snapshot(state)
    clock.pass_by(1000)
    assert not recorder.rested
    go_on.set()
    disk.catch_up(recorder)
    clock.pass_by(20_001)
    assert recorder.rested
    recorder.close()


def test_the_next_snapshot_is_copied_when_the_one_before_is_written(disk: Disk) -> None:
    second = threading.Event()
    disk.on_snapshot = lambda: second.wait(0.3)  # time enough to copy the next one, if that did not wait
    recorder = recording(disk)
    written = []

    def take() -> Snapshot:
        written.append(len(disk.snapshots))
        if len(written) == 2:
            second.set()
        return state()

    for _ in range(3):
        recorder.snapshot(take)
    recorder.close()
    assert written == [0, 1, 2]


def test_a_disk_without_room_for_snapshots_is_told_once_and_takes_the_video(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.on_snapshot = full
    recorder = recording(disk)
    with caplog.at_level(logging.WARNING, "longvid"):
        for index in range(3):
            recorder.block(index, FRAMES, ("-",))
            recorder.snapshot(state)
        recorder.close()
    assert disk.blocks == [0, 1, 2]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("no room on the disk for a snapshot of 0.00 GB (No space left on device)")
    assert "resume would make again" in caplog.messages[0]


def test_a_disk_without_room_for_the_video_stops_the_render(disk: Disk) -> None:
    disk.on_block = full
    recorder = recording(disk)
    recorder.block(0, FRAMES, ("-",))
    with pytest.raises(DiskFullError, match=r"no room on the disk for 'clip\.mp4'"):
        recorder.close()


@pytest.mark.parametrize("failing", ["on_block", "on_snapshot"])
def test_nothing_waits_for_a_thread_that_has_failed(disk: Disk, failing: str) -> None:
    def fail() -> None:
        raise OSError("unplugged")

    setattr(disk, failing, fail)
    recorder = recording(disk)

    def render() -> None:
        for index in range(10):
            recorder.block(index, FRAMES, ("-",))
            recorder.snapshot(state)

    with pytest.raises(module._Stopped):
        render()
    with pytest.raises(OSError, match="unplugged"):
        recorder.close()


def test_a_disk_that_is_too_full_for_snapshots_stops_nothing(
    make_tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first snapshot still finds room, later ones do not."""
    straight, path = tmp_path / "straight.mp4", tmp_path / "clip.mp4"
    make_tiny_pipe().render("a red ball bounces", straight, seconds=4)

    def stop(progress: RenderProgress) -> None:
        if progress.block == 4:
            raise KeyboardInterrupt

    save_file, tries = safetensors.torch.save_file, []

    def fill(tensors: Any, part: Path, metadata: Any) -> None:
        tries.append(part.name)
        save_file(tensors, part, metadata)
        if len(tries) > 1:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", fill)
        with pytest.raises(KeyboardInterrupt):
            make_tiny_pipe().render("a red ball bounces", path, seconds=4, snapshot_every=1, progress=stop)
    assert len(tries) == 3
    assert [entry.name for entry in journal_folder(path).glob("snapshot*")] == ["snapshot-000001.safetensors"]
    assert [text[:35] for text in caplog.messages] == ["no room on the disk for a snapshot "]
    make_tiny_pipe().render("a red ball bounces", path, seconds=4, resume=True)
    assert path.read_bytes() == straight.read_bytes()


def test_snapshots_come_by_themselves_as_the_writer_rests(
    make_tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rested, written = iter([False, True, False, True, False, False]), []
    monkeypatch.setattr(Recorder, "rested", property(lambda self: next(rested)))
    monkeypatch.setattr(RenderJournal, "snapshot", lambda self, snapshot: written.append(snapshot.blocks))
    make_tiny_pipe().render("a red ball bounces", tmp_path / "clip.mp4", seconds=4)
    assert written == [2, 4]
