"""Writers: what is on the disk plays at every instant, and going on leaves no seam."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from longvid.errors import DiskFullError, InputError, OutputError
from longvid.media.fragment import frame_rate
from longvid.media.frames import frame_pattern
from longvid.media.writer import FileWriter, Position, ending_of, open_writer

FPS = 16
SINGLE_FILES = (".mp4", ".gif", ".webp")


def clip(frames: int, *, height: int = 48, width: int = 64, start: int = 0) -> np.ndarray:
    """A moving gradient, uint8 [T, H, W, 3]; a pure function of the frame's number."""
    y, x = np.mgrid[0:height, 0:width]
    pictures = [np.stack([x * 3 + t * 5, y * 4, x + y + 2 * t], -1) % 256 for t in range(start, start + frames)]
    return np.stack(pictures).astype(np.uint8)


def decode(path: Path) -> np.ndarray:
    """All frames of a file, as any player sees them."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with Image.open(path) as picture:
        pictures = []
        for index in range(picture.n_frames):
            picture.seek(index)
            pictures.append(np.asarray(picture.convert("RGB")))
    return np.stack(pictures)


def open_at(path: Path, at: Position | None = None) -> FileWriter:
    writer = open_writer(path, width=64, height=48, fps=FPS, at=at)
    assert isinstance(writer, FileWriter)
    return writer


@pytest.mark.parametrize("ending", SINGLE_FILES)
def test_blocks_come_back_as_frames(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"clip{ending}"
    writer = open_at(path)
    for start in (0, 9, 21):
        writer.append(clip(9 if start == 0 else 12, start=start))
        assert len(decode(path)) == writer.position.frames  # it plays while it grows
    writer.finish()
    shown, source = decode(path), clip(33)
    assert shown.shape == source.shape
    assert np.abs(shown.astype(int) - source).mean() < 12  # 4:2:0, palettes and quantisation, no more


@pytest.mark.parametrize("ending", SINGLE_FILES)
def test_going_on_after_a_kill_leaves_the_same_bytes(tmp_path: Path, ending: str) -> None:
    straight, resumed = tmp_path / f"straight{ending}", tmp_path / f"resumed{ending}"
    writer = open_at(straight)
    for start in range(0, 36, 12):
        writer.append(clip(12, start=start))
    writer.finish()

    first = open_at(resumed)
    position = first.append(clip(12))
    first.append(clip(12, start=12))
    first.close()
    with open(resumed, "ab") as file:  # a torn tail
        file.write(b"\x00\x01garbage")
    second = open_at(resumed, position)
    for start in (12, 24):
        second.append(clip(12, start=start))
    second.finish()
    assert resumed.read_bytes() == straight.read_bytes()


class _Stop(Exception):
    """The instant of the kill."""


@pytest.mark.parametrize("ending", SINGLE_FILES)
def test_a_kill_between_any_two_writes_leaves_a_file_that_plays(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every system call of an append is cut short, halfway through and just before; what remains must play."""
    whole = tmp_path / f"whole{ending}"
    writer = open_at(whole)
    position = writer.append(clip(9))
    writer.close()
    before = decode(whole)
    real_write, real_cut = os.write, os.ftruncate
    seen_old = seen_new = calls = 0
    for stop in range(1, 20):
        path = tmp_path / f"cut{stop}{ending}"
        shutil.copy(whole, path)
        writer = open_at(path, position)
        calls = 0

        def write(file: int, data: bytes, stop: int = stop) -> int:
            nonlocal calls
            calls += 1
            if calls == stop:
                real_write(file, bytes(data)[: len(data) // 2])
                raise _Stop
            return real_write(file, data)

        def truncate(file: int, length: int, stop: int = stop) -> None:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise _Stop
            real_cut(file, length)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            patch.setattr(os, "ftruncate", truncate)
            try:
                writer.append(clip(12, start=9))
            except _Stop:
                pass
            else:
                break
        shown = decode(path)
        seen_old += len(shown) == 9
        seen_new += len(shown) == 21
        assert len(shown) in (9, 21), f"stopped in call {stop}"
        np.testing.assert_array_equal(shown[:9], before)
    assert calls >= 3
    assert seen_old >= 1


@pytest.mark.parametrize("ending", SINGLE_FILES)
def test_a_full_disk_keeps_what_was_rendered(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"clip{ending}"
    writer = open_at(path)
    position = writer.append(clip(9))
    size = path.stat().st_size
    real = os.write
    room = [200]

    def write(file: int, data: bytes) -> int:
        if len(data) > room[0]:
            if room[0] == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            data = data[: room[0]]
        room[0] -= len(data) if len(data) > 8 else 0
        return real(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(DiskFullError, match="no room on the disk"):
            writer.append(clip(12, start=9))
    assert writer.position == position
    assert path.stat().st_size == size
    assert len(decode(path)) == 9
    writer.append(clip(12, start=9))  # room again
    writer.finish()
    assert len(decode(path)) == 21


def test_nothing_has_the_final_name_before_it_plays(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"an older file")
    writer = open_at(path)
    assert path.read_bytes() == b"an older file"
    writer.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]
    writer = open_at(path)
    writer.append(clip(9))
    assert len(decode(path)) == 9
    writer.close()


def test_the_finished_mp4_is_seekable_with_the_right_length(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    writer = open_writer(path, width=64, height=48, fps=24000 / 1001)
    for start in range(0, 48, 12):
        writer.append(clip(12, start=start))
    streamed = decode(path)
    writer.finish()
    np.testing.assert_array_equal(decode(path), streamed)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.frames == 48
        assert float(stream.duration * stream.time_base) == pytest.approx(48 * 1001 / 24000, abs=1e-3)
        assert stream.average_rate == frame_rate(23.976)
        assert stream.codec_context.color_primaries == 1
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert b"moof" not in data


def test_fragments_do_not_depend_on_their_neighbours(tmp_path: Path) -> None:
    """Two files that differ in their first block only are equal behind it, byte for byte."""
    tails = []
    for name, offset in (("a.mp4", 0), ("b.mp4", 100)):
        writer = open_at(tmp_path / name)
        position = writer.append(clip(9, start=offset))
        writer.append(clip(12, start=9))
        tails.append((tmp_path / name).read_bytes()[position.bytes :])
        writer.close()
    assert tails[0] == tails[1]


def test_the_same_frames_make_the_same_bytes_every_time(tmp_path: Path) -> None:
    """x264's macroblock tree is not deterministic on small pictures; a resumed render depends on its being off."""
    writer = open_at(tmp_path / "clip.mp4")
    frames = clip(12)
    made = {writer._form.fragment(frames, 0).data for _ in range(150)}
    writer.close()
    assert len(made) == 1


def test_numbered_frames(tmp_path: Path) -> None:
    path = tmp_path / "clip.png"
    assert frame_pattern(path) == str(tmp_path / "clip_%06d.png")
    for index in range(9, 25):  # an earlier, longer render
        Image.new("RGB", (64, 48)).save(tmp_path / f"clip_{index:06d}.png")
    writer = open_writer(path, width=64, height=48, fps=FPS)
    position = writer.append(clip(9))
    writer = open_writer(path, width=64, height=48, fps=FPS, at=position)
    writer.append(clip(12, start=9))
    writer.finish()
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == [f"clip_{index:06d}.png" for index in range(21)]
    for index, frame in enumerate(clip(21)):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / names[index])), frame)


@pytest.mark.parametrize(
    ("name", "rule"),
    [("clip.avi", "must be one of"), ("clip", "must be one of"), ("%d_%d.png", "one %06d"), ("%x.png", "one %06d")],
)
def test_names_that_cannot_be_written(tmp_path: Path, name: str, rule: str) -> None:
    with pytest.raises(OutputError, match=rule):
        open_writer(tmp_path / name, width=64, height=48, fps=FPS)


def test_odd_sizes_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sides are even"):
        open_writer(tmp_path / "a.mp4", width=63, height=48, fps=FPS)
    with pytest.raises(OutputError, match="No such file or directory"):
        open_writer(tmp_path / "none" / "a.mp4", width=64, height=48, fps=FPS)
    assert ending_of("A.MP4") == ".mp4"


def test_a_file_that_was_shortened_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"short")
    with pytest.raises(OutputError, match="it was changed"):
        open_at(path, Position(9, 5000))


@pytest.mark.parametrize(
    ("fps", "text"), [(16, "16"), (23.976, "24000/1001"), (29.97, "30000/1001"), (12.5, "25/2"), (60, "60")]
)
def test_frame_rates(fps: float, text: str) -> None:
    assert str(frame_rate(fps)) == text


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_a_quality_that_the_format_has_not_is_warned_of(tmp_path: Path, name: str) -> None:
    with pytest.warns(RuntimeWarning, match=f"^crf=20: is not used for {name[1:]}; render to .mp4, or leave it out$"):
        open_writer(tmp_path / name, width=64, height=48, fps=FPS, crf=20).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_writer(tmp_path / name, width=64, height=48, fps=FPS).close()
        open_writer(tmp_path / "a.mp4", width=64, height=48, fps=FPS, crf=20).close()
