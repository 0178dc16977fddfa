"""Pictures of docs/results.md: entries and labels of the tables, headings, and curves of the record."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.entries import COMMON
from scripts import method_pictures
from scripts.method_pictures import HEADING_HEIGHT, LABEL_WIDTH

SIDE = 128  # pixels, of the embedded model's frames
PROMPT = "a pink star swings at sunset"


def dark(picture, box):
    """Whether something is written in a white part of a picture."""
    return (np.asarray(picture.convert("L").crop(box)) < 100).any()


def test_the_page_has_every_method_on_the_base():
    entries = method_pictures.default_entries()
    assert [entry.label for entry in entries] == [text.partition(":")[0] for text in COMMON]
    assert {entry.student for entry in entries} == {"base"}


def test_an_entry_is_found_by_the_label_that_the_tables_give_it():
    radial, cached = (method_pictures.find_entry(name, "embedded") for name in ("radial", "radial-cache"))
    assert (radial.method, radial.overrides, cached.method) == ("self-forcing", ("attention.kind=radial",), "radial")
    assert method_pictures.find_entry("fifo", "embedded").student == "base"
    assert method_pictures.find_entry("mine:fifo,student=base", "embedded").label == "mine"
    with pytest.raises(ValueError, match="entry='radial:radial': 'radial' is the label of another entry"):
        method_pictures.find_entry("radial:radial", "embedded")
    with pytest.raises(ValueError, match="entry='world': must be a method that a model renders"):
        method_pictures.find_entry("world", "embedded")


def test_strips_have_size_headings_and_labels_and_are_the_same_every_time(tmp_path):
    paths = [tmp_path / "first.png", tmp_path / "second.png"]
    entries = ["--entry", "longlive", "--entry", "rolling-forcing"]
    for path in paths:
        method_pictures.main([PROMPT, *entries, "--at", "0", "0.5", "1", "--out", str(path)])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as picture:
        assert picture.size == (LABEL_WIDTH + 3 * SIDE, 2 * HEADING_HEIGHT + 2 * SIDE)
        assert dark(picture, (0, 0, LABEL_WIDTH, HEADING_HEIGHT)), "the prompt"
        for column in range(3):
            left = LABEL_WIDTH + column * SIDE
            assert dark(picture, (left, HEADING_HEIGHT, left + SIDE, 2 * HEADING_HEIGHT)), "the seconds"
        for row in range(2):
            top = 2 * HEADING_HEIGHT + row * SIDE
            assert dark(picture, (0, top, LABEL_WIDTH, top + SIDE)), "the label"
        frames = np.asarray(picture.crop((LABEL_WIDTH, 2 * HEADING_HEIGHT, *picture.size)))
    rows = frames[:SIDE].astype(int), frames[SIDE:].astype(int)
    assert np.abs(rows[0] - rows[1]).max() > 0
    assert np.abs(rows[0][:, :SIDE] - rows[0][:, 2 * SIDE :]).max() > 0


def test_a_student_is_named_beside_the_label():
    assert method_pictures.row_label("longvid", "self-forcing") == "longvid\nstudent: self-forcing"
    assert method_pictures.row_label("fifo", "base") == method_pictures.row_label("fifo", None) == "fifo"


def test_what_a_method_remembers_is_drawn_once_a_method_with_a_cache(tmp_path):
    out = tmp_path / "cache.png"
    names = ["--entry", "longlive", "--entry", "fifo", "--cache-seconds", "1"]
    method_pictures.main([PROMPT, *names, "--cache", str(out)])
    alone = tmp_path / "alone.png"
    method_pictures.main([PROMPT, *names[:2], *names[4:], "--cache", str(alone)])
    assert out.read_bytes() == alone.read_bytes()


def test_curves_are_those_of_the_record(tmp_path):
    figures = json.loads(method_pictures.RECORD.read_text(encoding="utf-8"))["figures"]
    curves = method_pictures.recorded_drifts(figures)
    found = {label.partition("\n")[0]: values for label, values in curves.items()}
    assert found == {label: figures["entries"][label]["drifts"] for label in found}
    assert {"longlive", "deep-sink", "radial", "fifo", "ouroboros", "world"} <= set(found)
    figures["entries"]["fifo"]["videos"] = 2
    assert "fifo\n2 of 48 videos" in method_pictures.recorded_drifts(figures)
    out = tmp_path / "drift.png"
    method_pictures.main(["--drift", str(out)])
    with Image.open(out) as picture:
        assert np.asarray(picture.convert("RGB")).std() > 0


def test_light_is_that_of_the_record(tmp_path):
    figures = json.loads(method_pictures.LIGHT.read_text(encoding="utf-8"))["figures"]
    curves = method_pictures.recorded_light(figures)
    found = {label.partition("\n")[0]: values for label, values in curves.items()}
    assert found == {label: figures["curves"][label] for label in found}
    assert {"longlive", "longvid", "fifo", "world"} <= set(found)
    out = tmp_path / "light.png"
    method_pictures.main(["--light", str(out)])
    with Image.open(out) as picture:
        assert np.asarray(picture.convert("RGB")).std() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([PROMPT], "nothing to draw"),
        (["--out", "strips.png"], "need a PROMPT"),
        ([PROMPT, "--drift", "drift.png"], "--drift and --light take none"),
        ([PROMPT, "--entry", "world", "--out", "strips.png"], "must be a method that a model renders"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        method_pictures.main(arguments)
    assert message in capsys.readouterr().err
