"""`longvid eval --probe`: what the oracle says of files of the world, by a given caption or the render's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from longvid.errors import InputError, ModelError
from longvid.media.journal import write_sidecar
from longvid.metrics.cli import register
from longvid.metrics.oracle_file import rendered_prompt
from longvid.training import world

PROBE = Path(__file__).resolve().parents[2] / "benchmarks" / "probe.safetensors"
CAPTION = "a red ball circles at sunset"
SCENE = world.Scene(colour="red", shape="ball", motion="circle", background="sunset")


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    torch.set_num_threads(1)
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)  # a second command, so that typer keeps names

    def invoke(*args):
        result = CliRunner().invoke(app, ["eval", *map(str, args)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.stdout

    return invoke


@pytest.fixture
def never_read(monkeypatch):
    """Reading a frame fails the test."""
    from longvid.metrics import reader

    monkeypatch.setattr(reader.VideoReader, "__iter__", lambda self: pytest.fail("a video was read"))


def test_a_video_of_its_caption_is_right_and_one_of_another_caption_is_told(run, save):
    """The same file, once by its own caption, once by one that has all but the background wrong."""
    path = save(world.render(SCENE, 4, frames=164))
    found = json.loads(run(path, "--json", "--probe", PROBE, "--world", CAPTION))["videos"][0]["oracle"]
    scores = found["scores"]
    assert found["scene"] == {
        "colour": "red",
        "shape": "ball",
        "motion": "circle",
        "background": "sunset",
        "speed": "normal",
    }
    for name in ("colour", "shape", "background", "one_subject"):
        assert scores[f"{name}_first"] == scores[f"{name}_last"] == 1
    assert scores["scene_drift"] == found["drifts"][0] < 3
    assert found["trajectory"]["told"] == ["circle", "circle"]
    assert found["trajectory"]["speed_ratio"] == pytest.approx(1, abs=0.2)
    assert found["probe"]["colour"] > 0.9
    other = json.loads(run(path, "--json", "--probe", PROBE, "--world", "a blue box hops quickly at sunset"))
    found = other["videos"][0]["oracle"]
    assert (found["scores"]["colour_last"], found["scores"]["shape_last"], found["scores"]["background_last"]) == (
        0,
        0,
        1,
    )
    assert (found["trajectory"]["motion_right"], found["trajectory"]["motion"]) == (0, "circle")


def test_the_renders_own_prompt_is_taken_and_shown_in_the_table(run, save):
    path = save(world.render(SCENE, 4, frames=80))
    write_sidecar(path, {"prompt": CAPTION + "[5s]"}, [])
    table = run(path, "--probe", PROBE)
    rows = {row[1].strip(): row[2].strip() for row in (line.split("│") for line in table.splitlines()) if len(row) > 3}
    assert rows["oracle: colour is red, first -> last"] == "100% -> 100%"
    assert rows["oracle: motion is circle"] == "100% of the time (mostly circle)"
    assert float(rows["oracle: speed / the caption's"]) == pytest.approx(1, abs=0.25)
    assert "oracle: scene drift (grey levels)" not in rows, "five seconds are one segment"


def test_a_scene_that_moves_has_no_scene_drift(run, save):
    path = save(
        world.render(world.Scene(colour="red", shape="ball", motion="circle", background="hills"), 4, frames=164)
    )
    found = json.loads(run(path, "--json", "--probe", PROBE, "--world", "a red ball circles over the hills"))
    oracle = found["videos"][0]["oracle"]
    assert oracle["drifts"] == []
    assert not {"scene_drift", "scene_worst"} & set(oracle["scores"])
    assert "subject_colour" in oracle["scores"]


@pytest.mark.parametrize("prompt", ["a dog runs", "a red ball hops[5s] | a red box hops at sunset"])
def test_a_caption_of_another_world_is_told_before_a_video_is_read(run, save, clips, never_read, prompt):
    with pytest.raises(InputError, match="world="):
        run(save(clips.still(5)), "--probe", PROBE, "--world", prompt)


def test_the_size_and_the_probe_are_looked_at_before_a_video_is_read(run, save, clips, never_read, tmp_path):
    small, right = save(clips.still(5), "small.mkv"), save(clips.still(5, size=128), "right.mkv")
    with pytest.raises(InputError, match="96x96 pixels, the probe reads 128x128"):
        run(right, small, "--probe", PROBE, "--world", CAPTION)
    with pytest.raises(ModelError, match="no such file; train it"):
        run(right, "--probe", tmp_path / "none.safetensors", "--world", CAPTION)
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"junk")
    with pytest.raises(ModelError, match="is no probe of the embedded world"):
        run(right, "--probe", junk, "--world", CAPTION)
    with pytest.raises(InputError, match=r"needs --probe"):
        run(right, "--world", CAPTION)


def test_without_a_caption_the_error_says_where_one_was_looked_for(save, clips, tmp_path):
    path = save(clips.still(5, size=128))
    with pytest.raises(InputError, match=r"clip\.mkv\.frames_md5 .*give --world"):
        rendered_prompt(path)
    with pytest.raises(InputError, match="no such file"):
        rendered_prompt(tmp_path / "none.mp4")


def test_weights_of_another_net_are_no_probe(tmp_path):
    from safetensors.numpy import save_file

    from longvid.training.probe import load_probe

    path = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, path, {"held_out": "{}"})
    with pytest.raises(ModelError, match="is no probe"):
        load_probe(path)
    save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(ModelError, match="is no probe"):
        load_probe(path)
