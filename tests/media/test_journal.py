"""The render journal: exact records, refused recipes, one writer."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tracemalloc
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longvid.errors import DiskFullError, OutputError, OutputLockedError, ResumeError
from longvid.media.journal import (
    BlockRecord,
    RenderJournal,
    Snapshot,
    frame_marks,
    frame_md5s,
    journal_folder,
    read_marks,
    read_sidecar,
    refuse_other,
)

RECIPE = {"prompt": "a red ball", "seed": 0, "method": {"cache": {"window": 21}, "steps": [1000.0, 500.0]}}


def records(blocks: int) -> list[BlockRecord]:
    return [BlockRecord(i, 3 * (i + 1), 1000 * (i + 1), tuple(f"{i}{j}" for j in range(3))) for i in range(blocks)]


def test_records_come_back(tmp_path: Path) -> None:
    journal = RenderJournal(tmp_path / "clip.mp4")
    assert not journal.begun
    journal.begin(RECIPE)
    for record in records(4):
        journal.record(record)
    journal.release()
    again = RenderJournal(tmp_path / "clip.mp4")
    assert again.begun
    assert again.resume(RECIPE) == records(4)
    again.record(BlockRecord(4, 15, 5000, ("a", "b", "c")))
    again.finish()
    assert not journal_folder(tmp_path / "clip.mp4").exists()
    recipe, md5s = read_sidecar(tmp_path / "clip.mp4") or ({}, [])
    assert recipe == RECIPE
    assert md5s == [md5 for record in records(4) for md5 in record.md5] + ["a", "b", "c"]


def test_marks_tell_scenes_blocks_and_latent_frames() -> None:
    assert frame_marks(6, new_scene=True, temporal_stride=4) == ("scene", "latent", "-", "-", "-", "latent")
    assert frame_marks(6, new_scene=False, temporal_stride=4) == ("block", "-", "-", "-", "latent", "-")
    assert frame_marks(3, new_scene=True, temporal_stride=1) == ("scene", "latent", "latent")


def test_marks_are_read_beside_the_finished_video(tmp_path: Path) -> None:
    journal = RenderJournal(tmp_path / "clip.mp4")
    journal.begin(RECIPE)
    for record in records(2):
        marks = frame_marks(3, new_scene=record.block == 0, temporal_stride=2)
        journal.record(record._replace(marks=marks))
    journal.finish()
    assert read_marks(tmp_path / "clip.mp4") == (RECIPE, ["scene", "latent", "-", "block", "-", "latent"])
    assert read_sidecar(tmp_path / "clip.mp4") == (RECIPE, [md5 for record in records(2) for md5 in record.md5])


def test_a_journal_from_before_there_were_marks_goes_on(tmp_path: Path) -> None:
    journal = RenderJournal(tmp_path / "clip.mp4")
    journal.begin(RECIPE)
    lines = [json.dumps([r.block, r.frames, r.bytes, list(r.md5)]) for r in records(2)]
    (journal.folder / "blocks.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert journal.resume(RECIPE) == records(2)
    journal.record(records(3)[2]._replace(marks=("block", "-", "-")))
    journal.finish()
    assert len((read_sidecar(tmp_path / "clip.mp4") or ({}, []))[1]) == 9
    assert read_marks(tmp_path / "clip.mp4") is None, "half of them would be taken for all"


@pytest.mark.parametrize("cut", range(1, 30, 3))
def test_a_torn_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    journal = RenderJournal(tmp_path / "clip.mp4")
    journal.begin(RECIPE)
    for record in records(3):
        journal.record(record)
    journal.release()
    lines = journal.folder / "blocks.jsonl"
    lines.write_bytes(lines.read_bytes()[:-cut])
    again = RenderJournal(tmp_path / "clip.mp4")
    assert again.resume(RECIPE) == records(2)
    again.record(records(3)[2])
    again.release()
    third = RenderJournal(tmp_path / "clip.mp4")
    assert third.resume(RECIPE) == records(3)
    third.release()


def test_snapshots_are_exact_and_the_newest_two_are_kept(tmp_path: Path) -> None:
    journal = RenderJournal(tmp_path / "clip.mp4")
    journal.begin(RECIPE)
    for blocks in (2, 4, 6):
        tensors = {"k": torch.full((2, 3), float(blocks)).to(torch.bfloat16), "t": torch.arange(6).view(2, 3).T}
        journal.snapshot(Snapshot(blocks, tensors, {"positions": [1, 2], "blocks": blocks}))
    assert [path.name for path in sorted(journal.folder.glob("snapshot*"))] == [
        "snapshot-000004.safetensors",
        "snapshot-000006.safetensors",
    ]
    newest = journal.latest_snapshot(99)
    assert newest is not None
    assert newest.blocks == 6
    assert newest.meta == {"positions": [1, 2], "blocks": 6}
    assert newest.tensors["k"].dtype == torch.bfloat16
    assert torch.equal(newest.tensors["t"], torch.arange(6).view(2, 3).T)
    older = journal.latest_snapshot(5)
    assert older is not None
    assert older.blocks == 4
    assert journal.latest_snapshot(3) is None
    # a damaged snapshot is stepped over
    path = journal.folder / "snapshot-000006.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    fallback = journal.latest_snapshot(99)
    assert fallback is not None
    assert fallback.blocks == 4
    journal.release()


MEGABYTE = 1 << 20


def snapshot(blocks: int, *, megabytes: int = 1) -> Snapshot:
    return Snapshot(blocks, {"keys": torch.full((megabytes, MEGABYTE), blocks, dtype=torch.uint8)}, {"blocks": blocks})


def names(journal: RenderJournal) -> list[str]:
    return sorted(path.name for path in journal.folder.iterdir())


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can become longer than ``size`` bytes: what writes more is told that there is no room."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_snapshot_is_written_without_its_bytes_in_memory(tmp_path: Path) -> None:
    journal = RenderJournal(tmp_path / "clip.mp4")
    journal.begin(RECIPE)
    journal.snapshot(snapshot(1))  # with the imports
    large = snapshot(2, megabytes=8)
    tracemalloc.start()
    try:
        journal.snapshot(large)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEGABYTE
    found = journal.latest_snapshot(2)
    assert found is not None
    assert torch.equal(found.tensors["keys"], large.tensors["keys"])
    journal.release()


def test_no_more_than_two_snapshots_are_on_the_disk_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    journal = RenderJournal(tmp_path / "clip.mp4")
    journal.begin(RECIPE)
    save_file, meanwhile = safetensors.torch.save_file, []

    def look(*args: Any, **kwargs: Any) -> None:
        save_file(*args, **kwargs)
        meanwhile.append([name.removeprefix("snapshot-") for name in names(journal) if name.startswith("snapshot-")])

    monkeypatch.setattr(safetensors.torch, "save_file", look)
    for blocks in (1, 2, 3):
        journal.snapshot(snapshot(blocks))
    assert meanwhile == [
        ["000001.safetensors.part"],
        ["000001.safetensors", "000002.safetensors.part"],
        ["000002.safetensors", "000003.safetensors.part"],
    ]
    journal.release()


@pytest.mark.parametrize("newest", ["damaged", "of blocks that the file has lost"])
def test_the_snapshot_that_a_run_went_on_from_stays_until_there_is_another(tmp_path: Path, newest: str) -> None:
    journal = RenderJournal(tmp_path / "clip.mp4")
    journal.begin(RECIPE)
    for blocks in (4, 8):
        journal.snapshot(snapshot(blocks))
    if newest == "damaged":
        path = journal.folder / "snapshot-000008.safetensors"
        path.write_bytes(path.read_bytes()[:40])
    journal.release()
    again = RenderJournal(tmp_path / "clip.mp4")
    blocks = 9 if newest == "damaged" else 5
    found = again.latest_snapshot(blocks)
    assert found is not None
    assert found.blocks == 4
    with room_for(MEGABYTE // 2), pytest.raises(DiskFullError):
        again.snapshot(snapshot(blocks + 1))
    again.release()
    assert names(again) == ["lock", "recipe.json", "snapshot-000004.safetensors"]


@pytest.mark.parametrize("seen", ["before", "on the way"])
def test_a_full_disk_leaves_the_snapshot_before_and_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    journal = RenderJournal(tmp_path / "clip.mp4")
    journal.begin(RECIPE)
    journal.snapshot(snapshot(1))
    before = names(journal)
    with monkeypatch.context() as patch, room_for(MEGABYTE if seen == "on the way" else 1 << 30):
        if seen == "before":
            usage = namedtuple("usage", "total used free")
            patch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 3 * MEGABYTE - 1))
        with pytest.raises(DiskFullError, match="no room on the disk"):
            journal.snapshot(snapshot(2, megabytes=3))
    assert names(journal) == before
    found = journal.latest_snapshot(2)
    assert found is not None
    assert found.blocks == 1
    journal.snapshot(snapshot(2, megabytes=3))  # room again
    found = journal.latest_snapshot(2)
    assert found is not None
    assert found.blocks == 2
    journal.release()


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    """Really killed, by the system, in the middle of a snapshot's bytes."""
    output = tmp_path / "clip.mp4"
    code = (
        "import resource, signal, torch\n"
        "from longvid.media.journal import RenderJournal, Snapshot\n"
        f"journal = RenderJournal({str(output)!r})\njournal.begin({RECIPE!r})\n"
        "journal.snapshot(Snapshot(1, {'keys': torch.ones(9)}, {}))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({MEGABYTE}, resource.RLIM_INFINITY))\n"
        f"journal.snapshot(Snapshot(2, {{'keys': torch.ones({MEGABYTE})}}, {{}}))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGXFSZ
    journal = RenderJournal(output)
    (journal.folder / "snapshot-000002.safetensors.part").write_bytes(b"half")  # had the kill come a little later
    assert len(names(journal)) == 5
    journal.resume(RECIPE)
    assert names(journal) == ["blocks.jsonl", "lock", "recipe.json", "snapshot-000001.safetensors"]
    found = journal.latest_snapshot(2)
    assert found is not None
    assert found.blocks == 1
    journal.release()


def test_whoever_can_read_the_journal_can_read_its_snapshots(tmp_path: Path) -> None:
    journal = RenderJournal(tmp_path / "clip.mp4")
    journal.begin(RECIPE)
    (journal.folder / "recipe.json").chmod(0o664)
    journal.snapshot(snapshot(1))
    assert stat.S_IMODE((journal.folder / "snapshot-000001.safetensors").stat().st_mode) == 0o664
    journal.release()


def test_another_recipe_is_refused_by_name(tmp_path: Path) -> None:
    journal = RenderJournal(tmp_path / "clip.mp4")
    journal.begin(RECIPE)
    other = json.loads(json.dumps(RECIPE)) | {"seed": 1}
    other["method"]["cache"]["window"] = 12
    with pytest.raises(ResumeError, match=r"seed was 0, is 1; .*window was 21, is 12"):
        journal.resume(other)
    (journal.folder / "recipe.json").write_text("{")
    with pytest.raises(ResumeError, match="damaged"):
        journal.resume(RECIPE)
    journal.release()


def test_tuples_and_lists_are_the_same_recipe() -> None:
    refuse_other({"steps": [1, 2]}, {"steps": (1, 2)})
    with pytest.raises(ResumeError, match="size was null, is 3"):
        refuse_other({}, {"size": 3})


def test_the_second_writer_is_refused_and_death_frees_the_lock(tmp_path: Path) -> None:
    output = tmp_path / "clip.mp4"
    code = (
        "import sys, time\nfrom longvid.media.journal import RenderJournal\n"
        f"journal = RenderJournal({str(output)!r})\nprint('locked', flush=True)\ntime.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    try:
        with pytest.raises(OutputLockedError, match=f"process {holder.pid} is rendering to it"):
            RenderJournal(output)
    finally:
        holder.kill()
        holder.wait()
    journal = RenderJournal(output)
    journal.release()
    assert not journal.folder.exists()


def test_a_missing_folder_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written \(No such file or directory\)"):
        RenderJournal(tmp_path / "none" / "clip.mp4")


def test_md5s_are_of_each_frame() -> None:
    frames = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    assert frame_md5s(frames)[0] != frame_md5s(frames)[1]
    assert frame_md5s(frames[1:])[0] == frame_md5s(frames)[1]
    assert frame_md5s(frames[:, ::-1])[0] != frame_md5s(frames)[0]
