import json
from itertools import pairwise

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from longvid.errors import InputError, OutputError
from longvid.metrics import cli, extras, report
from longvid.metrics.cli import register
from longvid.metrics.extras import MissingExtraError


@pytest.fixture
def run():
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)  # a second command, so that typer keeps names
    runner = CliRunner()

    def invoke(*args):
        result = runner.invoke(app, ["eval", *map(str, args)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def test_table_has_identity_drift_beside_motion_for_every_video(run, clips, save, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    a, b = save(clips.walker(176), "a.mkv"), save(clips.still(176), "b.mkv")
    lines = run(a, b).stdout.splitlines()
    drift = next(line for line in lines if "identity drift" in line)
    at = lines.index(drift)
    assert "motion, top 5 %" in lines[at + 1]
    assert "does not count" in drift, "the frozen video's drift is marked"
    assert drift.count("does not count") == 1


def test_what_a_short_video_does_not_tell_is_a_dash(run, clips, save, monkeypatch):
    class Scorer:
        name = "any"

        def score(self, frames):
            return np.ones(len(frames))

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(cli, "_scorers", lambda *_: [Scorer()])
    text = run(save(clips.walker(16))).stdout
    told = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in text.splitlines() if "│" in line}
    assert told["dynamic degree, moving pairs"].startswith("-, ")
    assert told["similarity after"] == "-"
    assert told["quality, any: first -> last 5 s, spread"] == "- -> -, 0.0000"
    assert "nan" not in text


def test_a_drift_whose_first_segment_tells_nothing_begins_with_a_dash():
    meter = report.StreamMetrics(2)
    for level in (20, 40, 60, 80, 100):
        meter.update(np.full((1, 32, 32, 3), level, np.uint8))
    assert dict(cli.headline(meter.report()))["motion, first -> last (worst)"].startswith("- -> ")


def test_json_is_all_of_standard_output_and_strict(run, clips, save):
    found = json.loads(run(save(clips.walker(96)), "--json", "--frames-per-block", 3).stdout)
    (row,) = found["videos"]
    assert row["frames"] == 96
    assert row["motion"]["top5"] > 1
    assert 0.5 < row["seams"]["difference"]["ratio"] < 2
    assert row["identity"] is None
    assert "two segments" in row["skipped"]["identity"]


def test_seams_of_a_file_are_found_at_its_blocks(run, clips, save):
    video = clips.pan(97, 1).astype(int)
    for index, start in enumerate(range(9, 97, 12)):
        video[start:] += 8 if index % 2 == 0 else -8
    path = save(np.clip(video, 0, 255).astype(np.uint8))
    right, wrong = (
        json.loads(run(path, "--json", "--frames-per-block", 3, "--first-block", first).stdout)["videos"][0]["seams"]
        for first in (3, 2)
    )
    assert right["luma"]["ratio"] > 10
    assert wrong["luma"]["ratio"] < 2


def test_plot_is_a_picture_beside_the_video(run, clips, save):
    path = save(clips.walker(176))
    assert run(path, "--plot").exit_code == 0
    with Image.open(path.with_suffix(".metrics.png")) as image:
        assert image.format == "PNG"
        assert min(image.size) > 500
        assert np.asarray(image.convert("L")).std() > 10


@pytest.mark.parametrize("seconds", [3, 70])
def test_labels_of_the_lags_do_not_overlap(seconds, monkeypatch):
    from matplotlib.figure import Figure

    from longvid.metrics.consistency import LAGS
    from longvid.metrics.plots import plot_reports

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    frames = np.random.default_rng(0).integers(0, 256, (seconds * 4, 32, 32, 3), dtype=np.uint8)
    plot_reports({"noise": report.evaluate(frames, 4, motion=False)}, "unused.png")
    (figure,) = figures
    figure.canvas.draw()
    axis = figure.axes[7].xaxis
    labels = [label for label in (*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)) if label.get_text()]
    assert [float(label.get_text()) for label in labels] == [lag for lag in LAGS if lag < seconds]
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_plot_can_be_drawn_elsewhere(run, clips, save, tmp_path):
    run(save(clips.walker(176)), "--plot-to", tmp_path / "here.png")
    assert (tmp_path / "here.png").stat().st_size > 10_000


def test_reference_is_compared_frame_by_frame(run, clips, save):
    video = clips.pan(20, 1)
    other = video.copy()
    other[12:] = 255 - other[12:]
    found = json.loads(run(save(other, "o.mkv"), "--json", "--reference", save(video, "r.mkv")).stdout)
    assert found["videos"][0]["fidelity"] | {"psnr": 0, "similarity": 0, "max_abs": 0} == {
        "frames": 20,
        "identical": 12,
        "diverged_at": 12,
        "psnr": 0,
        "similarity": 0,
        "max_abs": 0,
    }


def test_wrong_input_is_an_input_error(run, tmp_path, clips, save):
    with pytest.raises(InputError, match="no such file"):
        run(tmp_path / "none.mp4")
    with pytest.raises(InputError, match="64x24 pixels"):
        run(save(np.zeros((5, 24, 64, 3), np.uint8)))
    with pytest.raises(InputError, match="both must be equally long"):
        run(save(clips.still(5)), "--reference", save(clips.still(6), "six.mkv"))
    for option in ("--first-block", "--temporal-stride"):
        with pytest.raises(InputError, match="=1: needs --frames-per-block"):
            run(save(clips.still(5)), option, 1)


def test_a_file_given_twice_is_refused(run, clips, save, tmp_path):
    path = save(clips.still(5))
    (tmp_path / "again.mkv").symlink_to(path)
    for other in (path, tmp_path / "again.mkv"):
        with pytest.raises(InputError, match=r"the same file as .*give each once"):
            run(path, other)


def test_what_cannot_work_is_refused_before_anything_is_measured(run, clips, save, tmp_path, monkeypatch):
    def measured(*_, **__):
        raise AssertionError("a video was measured")

    monkeypatch.setattr(report, "evaluate_file", measured)
    path = save(clips.still(5))
    with pytest.raises(InputError, match=r"weights=.*has no config\.json"):
        run(path, "--weights", tmp_path)
    with pytest.raises(InputError, match=r"imaging=.*no such file"):
        run(path, "--imaging", tmp_path / "none.pth")
    with pytest.raises(OutputError, match=r"plot=.*make .*no' first"):
        run(path, "--plot-to", tmp_path / "no" / "folder.png")
    with pytest.raises(OutputError, match=r"plot=.*name a \.png in it"):
        run(path, "--plot-to", tmp_path)
    with pytest.raises(InputError, match="no such file"):
        run(path, tmp_path / "none.mp4")
    with pytest.raises(InputError, match="no such file"):
        run(path, "--reference", tmp_path / "none.mp4")


def test_missing_extra_is_an_input_error_too(run, clips, save, monkeypatch):
    real = extras.import_module
    monkeypatch.setattr(extras, "import_module", lambda name: real("no_such_module" if name == "cv2" else name))
    with pytest.raises(MissingExtraError, match=r"longvid\[eval\]") as caught:
        run(save(clips.still(20)))
    assert isinstance(caught.value, InputError)
