"""Renders to disk: whatever stops one, what is there plays, and going on ends in the very same frames."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from longvid.errors import DiskFullError, InputError, OutputError, OutputLockedError, ResumeError
from longvid.media.journal import frame_md5s, journal_folder, read_sidecar, sidecar
from longvid.media.writer import FileWriter
from longvid.pipelines.render import RenderProgress, render_video

METHODS = ("self-forcing", "deep-forcing", "streaming-llm", "rolling-forcing", "reward-forcing")
PROMPT = "a red ball bounces over green hills"


def md5s(path: Path) -> list[str]:
    found = read_sidecar(path)
    assert found is not None
    return found[1]


def frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


class Interrupt:
    """A progress callback that is Ctrl-C once so many blocks are done."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks

    def __call__(self, progress: RenderProgress) -> None:
        if progress.block >= self.blocks:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", METHODS)
def test_stream_render_and_resumed_render_are_one(make_tiny_pipe: Any, tmp_path: Path, method: str) -> None:
    seconds = 4.0
    streamed = [
        md5
        for chunk in make_tiny_pipe(method).stream(PROMPT, seconds=seconds, seed=3)
        for md5 in frame_md5s(chunk.frames)
    ]
    straight = tmp_path / "straight.mp4"
    result = make_tiny_pipe(method).render(PROMPT, straight, seconds=seconds, seed=3)
    assert result.frames == 64
    assert frames_of(straight) == 64
    assert md5s(straight) == streamed
    assert not journal_folder(straight).exists()

    resumed = tmp_path / "resumed.mp4"
    for stop in (2, 4):  # twice, so that a resumed render is resumed
        with pytest.raises(KeyboardInterrupt):
            make_tiny_pipe(method).render(
                PROMPT, resumed, seconds=seconds, seed=3, resume=True, snapshot_every=2, progress=Interrupt(stop)
            )
        assert frames_of(resumed) == 9 + 12 * (stop - 1)
    result = make_tiny_pipe(method).render(PROMPT, resumed, seconds=seconds, seed=3, resume=True)
    assert result.resumed_blocks == 4
    assert md5s(resumed) == streamed
    assert resumed.read_bytes() == straight.read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_a_hard_cut_is_the_same_for_all_and_survives_a_resume(make_tiny_pipe: Any, tmp_path: Path, method: str) -> None:
    """Stopped in the first scene, at the cut, and in the second scene."""
    text = "a red ball[2s] | a blue box[2s#]"
    streamed = [md5 for chunk in make_tiny_pipe(method).stream(text, seed=3) for md5 in frame_md5s(chunk.frames)]
    straight, resumed = tmp_path / "straight.mp4", tmp_path / "resumed.mp4"
    make_tiny_pipe(method).render(text, straight, seed=3)
    assert md5s(straight) == streamed
    assert len(streamed) == 64
    for stop, frames in ((2, 21), (3, 33), (4, 42)):
        with pytest.raises(KeyboardInterrupt):
            make_tiny_pipe(method).render(
                text, resumed, seed=3, resume=True, snapshot_every=1, progress=Interrupt(stop)
            )
        assert frames_of(resumed) == frames
    assert make_tiny_pipe(method).render(text, resumed, seed=3, resume=True).resumed_blocks == 4
    assert resumed.read_bytes() == straight.read_bytes()
    assert md5s(resumed) == streamed


def test_without_a_snapshot_the_beginning_is_made_again(make_tiny_pipe: Any, tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight.mp4", tmp_path / "resumed.mp4"
    make_tiny_pipe().render("a[1s] | b[1s#]", straight)
    with pytest.raises(KeyboardInterrupt):
        make_tiny_pipe().render("a[1s] | b[1s#]", resumed, progress=Interrupt(2))
    assert not list(journal_folder(resumed).glob("snapshot*"))
    make_tiny_pipe().render("a[1s] | b[1s#]", resumed, resume=True)
    assert resumed.read_bytes() == straight.read_bytes()
    assert sidecar(resumed).read_bytes() == sidecar(straight).read_bytes()


def test_a_file_that_was_cut_short_is_made_whole_again(make_tiny_pipe: Any, tmp_path: Path) -> None:
    straight, cut = tmp_path / "straight.mp4", tmp_path / "cut.mp4"
    make_tiny_pipe().render(PROMPT, straight, seconds=3)
    with pytest.raises(KeyboardInterrupt):
        make_tiny_pipe().render(PROMPT, cut, seconds=3, snapshot_every=1, progress=Interrupt(3))
    os.truncate(cut, cut.stat().st_size - 1)
    assert make_tiny_pipe().render(PROMPT, cut, seconds=3, resume=True).resumed_blocks == 2
    assert cut.read_bytes() == straight.read_bytes()
    assert sidecar(cut).read_bytes() == sidecar(straight).read_bytes()


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp", "clip.png"])
def test_other_formats_resume_too(make_tiny_pipe: Any, tmp_path: Path, name: str) -> None:
    trees = []
    for folder in ("straight", "resumed"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / name
        if folder == "resumed":
            with pytest.raises(KeyboardInterrupt):
                make_tiny_pipe().render(PROMPT, path, seconds=2, snapshot_every=1, progress=Interrupt(2))
        make_tiny_pipe().render(PROMPT, path, seconds=2, resume=True)
        trees.append({entry.name: entry.read_bytes() for entry in path.parent.iterdir()})
    assert trees[0] == trees[1]


def test_another_configuration_is_refused_by_name(make_tiny_pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with pytest.raises(KeyboardInterrupt):
        make_tiny_pipe().render(PROMPT, path, seconds=2, seed=0, progress=Interrupt(1))
    before = path.read_bytes()
    for change, named in (
        ({"seed": 1}, "seed was"),
        ({"seconds": 3}, "frames was 32, is 48"),
        ({"prompt": "a blue star"}, "prompt was"),
        ({"crf": 30}, "output.crf was 18, is 30"),
        ({"num_inference_steps": 2}, "method.schedule.steps was"),
    ):
        arguments = {"prompt": PROMPT, "seconds": 2, "seed": 0, "resume": True} | change
        with pytest.raises(ResumeError, match=named):
            make_tiny_pipe().render(path=path, **arguments)
    with pytest.raises(ResumeError, match=r"model\.transformer was"):
        make_tiny_pipe(seed=5).render(PROMPT, path, seconds=2, seed=0, resume=True)
    assert path.read_bytes() == before


def test_a_machine_that_computes_differently_is_found_out(
    make_tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip.mp4"
    with pytest.raises(KeyboardInterrupt):
        make_tiny_pipe().render(PROMPT, path, seconds=2, progress=Interrupt(2))
    pipe = make_tiny_pipe()
    honest = pipe.decoded
    monkeypatch.setattr(pipe, "decoded", lambda *args: ((block, video * 0.9) for block, video in honest(*args)))
    with pytest.raises(ResumeError, match=r"block 0 came out different .*use overwrite=True \(--overwrite\)"):
        pipe.render(PROMPT, path, seconds=2, resume=True)
    assert frames_of(path) == 21


def test_what_is_there_is_not_overwritten(make_tiny_pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"exists; choose another name, or use overwrite=True \(--overwrite\)"):
        make_tiny_pipe().render(PROMPT, path, seconds=1)
    with pytest.raises(OutputError, match=r"cannot be resumed; use overwrite=True \(--overwrite\)"):
        make_tiny_pipe().render(PROMPT, path, seconds=1, resume=True)
    assert path.read_bytes() == b"precious"
    make_tiny_pipe().render(PROMPT, path, seconds=1, overwrite=True)
    assert frames_of(path) == 16
    stamp = path.stat().st_mtime_ns
    result = make_tiny_pipe().render(PROMPT, path, seconds=1, resume=True)  # finished: nothing to do
    assert result.wall == 0
    assert path.stat().st_mtime_ns == stamp
    with pytest.raises(ResumeError, match="seed was"):
        make_tiny_pipe().render(PROMPT, path, seconds=1, seed=2, resume=True)


def test_an_unfinished_render_is_neither_lost_nor_mixed_up(make_tiny_pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with pytest.raises(KeyboardInterrupt):
        make_tiny_pipe().render(PROMPT, path, seconds=2, progress=Interrupt(1))
    with pytest.raises(
        OutputError, match=r"unfinished render; resume=True \(--resume\) goes on with it, overwrite=True"
    ):
        make_tiny_pipe().render(PROMPT, path, seconds=2)
    path.rename(tmp_path / "away.mp4")
    with pytest.raises(OutputError, match=r"the file is gone; bring it back, or use overwrite=True \(--overwrite\)"):
        make_tiny_pipe().render(PROMPT, path, seconds=2, resume=True)
    make_tiny_pipe().render(PROMPT, path, seconds=2, overwrite=True)
    assert frames_of(path) == 32


def test_a_full_disk_is_said_and_mended(make_tiny_pipe: Any, tmp_path: Path) -> None:
    straight, path = tmp_path / "straight.mp4", tmp_path / "clip.mp4"
    make_tiny_pipe().render(PROMPT, straight, seconds=3)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (straight.stat().st_size // 2, limit[1]))
    try:
        with pytest.raises(DiskFullError, match="no room on the disk"):
            make_tiny_pipe().render(PROMPT, path, seconds=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert 9 <= frames_of(path) < 48
    make_tiny_pipe().render(PROMPT, path, seconds=3, resume=True)
    assert path.read_bytes() == straight.read_bytes()


def test_a_disk_that_fills_up_at_the_very_end_loses_nothing(
    make_tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longvid.media.mp4 import Mp4Format

    straight, path = tmp_path / "straight.mp4", tmp_path / "clip.mp4"
    make_tiny_pipe().render(PROMPT, straight, seconds=2)

    def full(self: Mp4Format, path: str, target: str) -> bool:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Mp4Format, "finished", full)
        with pytest.raises(DiskFullError):
            make_tiny_pipe().render(PROMPT, path, seconds=2)
    assert frames_of(path) == 32
    assert not Path(f"{path}.whole").exists()
    make_tiny_pipe().render(PROMPT, path, seconds=2, resume=True)
    assert path.read_bytes() == straight.read_bytes()
    assert not journal_folder(path).exists()


def test_death_between_final_form_and_sidecar_is_mended(
    make_tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longvid.media.journal import RenderJournal

    straight, path = tmp_path / "straight.mp4", tmp_path / "clip.mp4"
    make_tiny_pipe().render(PROMPT, straight, seconds=2)

    def die(self: RenderJournal) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RenderJournal, "finish", die)
        with pytest.raises(KeyboardInterrupt):
            make_tiny_pipe().render(PROMPT, path, seconds=2)
    make_tiny_pipe().render(PROMPT, path, seconds=2, resume=True)
    assert path.read_bytes() == straight.read_bytes()
    assert md5s(path) == md5s(straight)


def test_the_second_writer_is_refused(make_tiny_pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"

    def second(progress: RenderProgress) -> None:
        with pytest.raises(OutputLockedError, match=f"process {os.getpid()} is rendering to it"):
            make_tiny_pipe().render(PROMPT, path, seconds=1, overwrite=True)

    make_tiny_pipe().render(PROMPT, path, seconds=1, progress=second)
    assert frames_of(path) == 16


def test_a_slow_disk_stalls_the_rollout_instead_of_filling_memory(
    make_tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, written, ahead = [0], [0], []
    append = FileWriter.append

    def slow(self: FileWriter, frames: np.ndarray) -> Any:
        time.sleep(0.15)
        written[0] += 1
        return append(self, frames)

    monkeypatch.setattr(FileWriter, "append", slow)

    def note(progress: RenderProgress) -> None:
        if progress.step == 0:
            made[0] = progress.block
            ahead.append(made[0] - written[0])

    make_tiny_pipe(steps=[1000]).render(PROMPT, tmp_path / "clip.mp4", seconds=8, progress=note)
    assert len(ahead) == 11
    assert max(ahead) <= 4  # two queued, one being written, one being made


def test_progress_counts(make_tiny_pipe: Any, tmp_path: Path) -> None:
    seen: list[RenderProgress] = []
    make_tiny_pipe().render(PROMPT, tmp_path / "clip.mp4", seconds=2, progress=seen.append)
    assert [p.block for p in seen if p.step == 0] == [1, 2, 3]
    assert [p.frames for p in seen if p.step == 0] == [9, 21, 32]
    assert max(p.step for p in seen) == seen[0].steps == 4
    last = seen[-1]
    assert last.total_frames == 32
    assert last.eta == 0
    assert last.fps > 0
    assert last.memory > 10**6


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"seconds": -1}, "seconds=-1"),
        ({"seconds": 1e12}, "seconds=1e"),
        ({"num_frames": 82}, "nearest 81 or 85"),
        ({"seconds": 1, "height": 65}, "height=65"),
        ({"seconds": 1, "crf": 99}, "crf=99"),
        ({"seconds": 1, "snapshot_every": 0}, "snapshot_every=0"),
        ({"seconds": 1, "progress": 3}, "progress=3: must be a function"),
        ({"seconds": 1, "callback_on_step_end": 3}, "callback_on_step_end=3"),
        ({"seconds": 1, "seed": -1}, "seed=-1"),
        ({"seconds": 1, "method": "deep"}, "unknown method 'deep'"),
        ({"prompt": " ", "seconds": 1}, "prompt"),
        ({"prompt": "x" * 100_000, "seconds": 1}, "100000 characters"),
        ({"prompt": ["a", "b"], "seconds": 1}, "a file holds one"),
    ],
)
def test_bad_arguments_leave_no_trace(
    make_tiny_pipe: Any, tmp_path: Path, arguments: dict[str, Any], rule: str
) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        render_video(make_tiny_pipe(), **{"prompt": PROMPT, "path": tmp_path / "clip.mp4"} | arguments)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_sigkill_leaves_a_file_that_plays_and_goes_on(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Real processes, really killed, twice at different places: before a hard cut and behind it.

    Each run is a new process, as it is for a user: what other tests did to this one's arithmetic does not matter.
    """
    straight, path = tmp_path / "straight.mp4", tmp_path / "clip.mp4"
    code = (
        "import sys, torch, longvid\ntorch.set_num_threads(1)\n"
        "pipe = longvid.load(sys.argv[1], method='deep-forcing', device='cpu')\n"
        "def tell(p):\n    print(p.block, flush=True)\n"
        "settings = dict(seed=1, resume=True, snapshot_every=2, progress=tell)\n"
        f"result = pipe.render('{PROMPT}[6s] | a blue box[6s#]', sys.argv[2], **settings)\n"
        "print('resumed', result.resumed_blocks)\n"
    )

    def start(out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(tiny_model_folder), str(out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    output, _ = start(straight).communicate()
    assert output.endswith("resumed 0\n")
    done = 0
    whole = [9 + 12 * block for block in range(8)]  # frames of the file after each block
    whole += [whole[-1] + 9 + 12 * block for block in range(8)] + [192]
    for blocks in (3, 10):
        process = start(path)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= blocks:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        shown = frames_of(path)
        assert shown in whole
        assert shown >= max(done, whole[max(0, blocks - 4)])
        done = shown
    output, _ = start(path).communicate()
    assert int(output.split()[-1]) >= 6
    assert path.read_bytes() == straight.read_bytes()
    assert md5s(path) == md5s(straight)


@pytest.mark.parametrize("method", ["fifo", "ouroboros"])
def test_a_queue_of_frames_goes_on_exactly(make_tiny_pipe: Any, tmp_path: Path, method: str) -> None:
    """One frame a block: the file grows by four pictures at a time."""
    straight, resumed = tmp_path / "straight.mp4", tmp_path / "resumed.mp4"
    settings: dict[str, Any] = {"seconds": 2, "seed": 1, "resume": True}

    def pipe() -> Any:
        return make_tiny_pipe(method, train_frames=5)

    pipe().render(PROMPT, straight, **settings)
    with pytest.raises(KeyboardInterrupt):
        pipe().render(PROMPT, resumed, snapshot_every=2, progress=Interrupt(5), **settings)
    assert frames_of(resumed) == 17
    result = pipe().render(PROMPT, resumed, **settings)
    assert result.resumed_blocks == 5
    assert resumed.read_bytes() == straight.read_bytes()
