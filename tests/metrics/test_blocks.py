"""What a render notes beside its video is enough to know its blocks and cuts."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from longvid.errors import InputError
from longvid.media.journal import sidecar
from longvid.metrics import VideoReader, evaluate_file
from longvid.metrics.blocks import RenderedBlocks, rendered_blocks
from longvid.metrics.cli import register
from longvid.metrics.report import StreamMetrics


@pytest.fixture(scope="module")
def cut_video(make_tiny_pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of blocks of 3 latent frames: 9, 12 and 12 frames, then 9, 12 and 10, where the video ends."""
    path = tmp_path_factory.mktemp("cut") / "cut.mp4"
    make_tiny_pipe().render("a red ball[2s] | a blue box[2s#]", path, seed=3)
    return path


def eval_json(*arguments: Any) -> dict[str, Any]:
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)
    result = CliRunner().invoke(app, ["eval", "--json", *map(str, arguments)])
    assert result.exception is None, result.exception
    return json.loads(result.stdout)["videos"][0]


def test_blocks_and_cuts_are_read_beside_the_video(cut_video: Path) -> None:
    found = rendered_blocks(VideoReader(cut_video))
    assert found == RenderedBlocks(boundaries=frozenset({9, 21, 42, 54}), cuts=frozenset({33}), temporal_stride=4)


def test_eval_takes_seams_at_the_blocks_and_none_at_the_cut(cut_video: Path) -> None:
    frames = list(VideoReader(cut_video))
    meter = StreamMetrics(16, temporal_stride=4)
    starts = [0, 9, 21, 33, 42, 54, 64]
    for start, end in pairwise(starts):
        if start == 33:
            meter.cut(new_scene=True)
        for index in range(start, end):
            meter.update(frames[index][None], new_block=index == start)
    expected = json.loads(json.dumps(meter.report().to_dict()))
    found = eval_json(cut_video)
    assert found["seams"] == expected["seams"]
    assert found["seams"]["luma"]["latent_ratio"] is not None
    assert found["faults"] == expected["faults"]
    assert found["motion"] == expected["motion"]


def test_options_replace_what_was_noted(cut_video: Path) -> None:
    by_hand = evaluate_file(cut_video, boundaries=range(13, 64, 16), temporal_stride=4)
    assert eval_json(cut_video, "--frames-per-block", 4)["seams"] == by_hand.to_dict()["seams"]
    assert evaluate_file(cut_video, boundaries=()).seams == {}


def test_notes_of_another_video_are_left_alone_and_told(cut_video: Path, tmp_path: Path, clips: Any, save: Any) -> None:
    other = save(clips.walker(60))
    shutil.copy(sidecar(cut_video), sidecar(other))
    with pytest.raises(
        InputError, match=r"frames_md5: tells the blocks of 64 frames of .*, this video has 60 of 96x96"
    ):
        rendered_blocks(VideoReader(other))
    found = eval_json(other)
    assert found["seams"] == {}
    assert "remove it" in found["skipped"]["seams"]


def test_a_video_without_notes_has_no_blocks(save: Any, clips: Any) -> None:
    path = save(clips.walker(20))
    assert rendered_blocks(VideoReader(path)) is None
    assert evaluate_file(path).seams == {}
    with pytest.raises(InputError, match="temporal_stride=4: needs boundaries"):
        evaluate_file(path, temporal_stride=4)


def test_frames_are_counted_where_the_file_does_not_say(save: Any, clips: Any) -> None:
    for path in (save(clips.walker(20), "a.mkv"), save(clips.walker(20), "b.mp4", codec="libx264")):
        assert VideoReader(path).count() == 20
