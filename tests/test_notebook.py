"""Videos that show themselves, and watching one while it is made."""

from __future__ import annotations

import base64
import io
from typing import Any

import av
import numpy as np
import pytest

from longvid.errors import InputError, OutputError, OutputLockedError
from longvid.media.journal import RenderJournal, sidecar
from longvid.notebook import Seen, Video, plot_drift, record, watch


@pytest.fixture
def frames() -> np.ndarray:
    """A square that walks: [40, 48, 64, 3]."""
    video = np.full((40, 48, 64, 3), 40, np.uint8)
    for i in range(40):
        video[i, 16:32, i : i + 16] = (220, 180, 40)
    return video


def test_a_video_shows_itself(frames: np.ndarray) -> None:
    video = Video(frames, 16)
    assert repr(video) == "Video(40 frames, 64x48, 2.50 s at 16 fps)"
    shown = video._repr_mimebundle_()
    assert set(shown) == {"text/plain", "text/html", "image/jpeg"}
    data = shown["text/html"].split("base64,")[1].split('"')[0]
    with av.open(io.BytesIO(base64.b64decode(data))) as film:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 6
    assert base64.b64decode(shown["image/jpeg"]).startswith(b"\xff\xd8")
    assert video.sheet(4).size == (4 * 64, 48)


@pytest.mark.parametrize(
    "bad", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)]
)
def test_what_is_no_video_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(InputError, match="must be uint8"):
        Video(bad, 16)


def test_odd_sizes_are_played(frames: np.ndarray) -> None:
    assert Video(frames[:, :47, :63], 16).mp4()


def test_save(frames: np.ndarray, tmp_path: Any) -> None:
    path = Video(frames, 16).save(tmp_path / "a.mp4")
    with av.open(str(path)) as film:
        assert sum(1 for _ in film.decode(video=0)) == 40


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("x.avi", "must end in .mp4, which is what is written; pipe.render writes others"),
        ("x.gif", "must end in .mp4"),
        ("nope/x.mp4", "there is no folder"),
        ("there.mp4", r"exists; choose another name, or use overwrite=True"),
    ],
)
def test_save_refuses_what_a_render_refuses(frames: np.ndarray, tmp_path: Any, name: str, rule: str) -> None:
    (tmp_path / "there.mp4").write_bytes(b"precious")
    with pytest.raises(OutputError, match=rule):
        Video(frames, 16).save(tmp_path / name)
    assert [entry.name for entry in tmp_path.iterdir()] == ["there.mp4"]
    assert (tmp_path / "there.mp4").read_bytes() == b"precious"


def test_save_over_a_render_leaves_nothing_of_it(frames: np.ndarray, tmp_path: Any) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"another video")
    sidecar(path).write_text("#recipe {}\n")
    journal = RenderJournal(path)
    journal.begin({})
    with pytest.raises(OutputLockedError):
        Video(frames, 16).save(path, overwrite=True)
    assert path.read_bytes() == b"another video"
    journal.release()
    Video(frames, 16).save(path, overwrite=True)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == Video(frames, 16).mp4()


def test_record_is_stream(tiny_pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tiny_pipe.use_method("streaming-llm", {"schedule": {"steps": [1000, 500]}})
    video = record(pipe, "a red ball", seconds=2, seed=3)
    chunks = list(pipe.stream("a red ball", seconds=2, seed=3))
    assert np.array_equal(video.frames, np.concatenate([chunk.frames for chunk in chunks]))
    assert video.starts == tuple(chunk.start_frame for chunk in chunks)
    assert video.fps == 16
    assert {role for cache in video.caches for _, role in cache} == {"sink", "recent"}
    shown = capsys.readouterr().err
    assert "blocks: 100%" in shown
    assert "calls" in shown
    assert "2.0 s of video" in shown


def test_watch_goes_on_until_it_is_left(tiny_pipe: Any) -> None:
    pipe = tiny_pipe.use_method("streaming-llm", {"schedule": {"steps": [1000, 500]}})
    seen: list[Seen] = []
    for block in watch(pipe, "a red ball", progress=False):
        seen.append(block)
        if block.index == 3:
            break
    assert [block.start_frame for block in seen] == [0, 9, 21, 33]
    assert all(block.seconds > 0 for block in seen)


def test_an_endless_record_is_refused_before_anything_is_made(tiny_pipe: Any) -> None:
    with pytest.raises(InputError, match="an endless video is for watch"):
        record(tiny_pipe, "a red ball")
    with pytest.raises(InputError, match="seconds=-1"):
        watch(tiny_pipe, "a red ball", seconds=-1)


def test_plots(frames: np.ndarray) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("cv2")
    video = Video(frames, 4, caches=(((0, "sink"),), ((0, "sink"), (3, "recent"))))
    axis = video.plot_cache().axes[0]
    assert [collection.get_label() for collection in axis.collections] == ["sink", "recent"]
    assert [len(collection.get_offsets()) for collection in axis.collections] == [2, 1]
    drift, motion = plot_drift({"a": video, "b": Video(frames[::-1], 4)}).axes
    assert [line.get_label() for line in motion.lines] == ["a", "b"]
    assert drift.get_title().startswith("identity drift")
    with pytest.raises(InputError, match="no cache was recorded"):
        Video(frames, 4).plot_cache()
