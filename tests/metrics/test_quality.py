"""Learned quality: the meter against scorers whose answers are known, and the loaders on tiny models."""

import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from longvid.errors import InputError
from longvid.metrics.cli import register
from longvid.metrics.extras import MissingExtraError
from longvid.metrics.quality import learned_quality, load_aesthetic, load_imaging


class Brightness:
    """A scorer whose opinion is the mean of red / 255."""

    name = "brightness"

    def score(self, frames):
        return frames[..., 0].mean(axis=(1, 2)) / 255


class Colours:
    """An encoder whose feature is the mean colour."""

    name = "clip:colours"

    def encode(self, frames):
        return frames.mean(axis=(1, 2), dtype=np.float64) + 1


class TinyMusiq(torch.nn.Module):
    """In place of pyiqa's: mean of each channel, weighted."""

    def __init__(self, pretrained=True):
        super().__init__()
        assert pretrained is False, "pyiqa would download"
        self.head = torch.nn.Linear(3, 1)
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        return self.head(x.mean(dim=(2, 3)))


@pytest.fixture
def pyiqa(monkeypatch):
    for name in ("pyiqa", "pyiqa.archs", "pyiqa.archs.musiq_arch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["pyiqa.archs.musiq_arch"].MUSIQ = TinyMusiq


@pytest.fixture
def musiq_file(tmp_path):
    path = tmp_path / "musiq.pth"
    torch.save(
        {"module.head.weight": torch.tensor([[20.0, 30.0, 10.0]]), "module.head.bias": torch.tensor([5.0])}, path
    )
    return path


@pytest.fixture
def head_file(tmp_path):
    path = tmp_path / "head.pth"
    torch.save({"weight": torch.tensor([[1.0, 2.0, 3.0]]), "bias": torch.tensor([4.0])}, path)
    return path


def test_mean_ends_and_spread_are_those_of_the_scores(clips):
    video = np.concatenate([clips.flat(16 * 5, (255, 0, 0)), clips.flat(16 * 10, (51, 0, 0))])
    found = learned_quality(video, 16, Brightness())
    assert found.scorer == "brightness"
    assert found.mean == pytest.approx((1 + 0.2 * 2) / 3)
    assert (found.first, found.last) == (pytest.approx(1), pytest.approx(0.2))
    assert found.change == pytest.approx(-0.8)
    assert found.spread == pytest.approx(0.8 * np.sqrt(1 / 3 * 2 / 3))  # 30 segments of one frame, 10 of them bright


def test_a_video_in_which_the_ends_overlap_has_no_ends(clips):
    found = learned_quality(clips.flat(16 * 6, (51, 0, 0)), 16, Brightness())
    assert found.mean == pytest.approx(0.2)
    assert np.isnan([found.first, found.last, found.change]).all()
    with pytest.raises(ValueError, match="two that are 8 apart"):
        learned_quality(clips.flat(8, (51, 0, 0)), 16, Brightness())


def test_musiq_is_on_vbench_scale(clips, pyiqa, musiq_file):
    scorer = load_imaging(musiq_file)
    assert scorer.name == "musiq:musiq"
    frames = clips.flat(2, (255, 51, 0))
    assert scorer.score(frames) == pytest.approx((20 + 30 * 0.2 + 5) / 100)


def test_large_frames_are_scaled_to_a_longer_side_of_512(pyiqa, musiq_file):
    scorer = load_imaging(musiq_file)
    frames = np.full((1, 600, 1024, 3), 255, np.uint8)
    assert scorer.score(frames) == pytest.approx(0.65)
    assert scorer._model.seen == [(1, 3, 300, 512)]


def test_musiq_weights_that_cannot_be_are_refused(pyiqa, tmp_path, head_file):
    with pytest.raises(InputError, match=r"no such file; give a local file of MUSIQ weights.*nothing is downloaded"):
        load_imaging(tmp_path / "none.pth")
    with pytest.raises(InputError, match="is not of pyiqa's MUSIQ"):
        load_imaging(head_file)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_imaging(tmp_path / "text.pth")


def test_without_pyiqa_the_error_names_the_package_and_the_file(monkeypatch, musiq_file):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    monkeypatch.delitem(sys.modules, "pyiqa.archs.musiq_arch", raising=False)
    with pytest.raises(MissingExtraError, match=r"musiq\.pth.*needs pyiqa.*pip install pyiqa"):
        load_imaging(musiq_file)


def test_aesthetic_head_takes_unit_features(head_file):
    scorer = load_aesthetic(head_file, Colours())
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[1, ..., 2] = 3
    units = np.array([[1, 1, 1] / np.sqrt(3), [1, 1, 4] / np.sqrt(18)])
    assert scorer.score(frames) == pytest.approx((units @ [1, 2, 3] + 4) / 10)


def test_a_head_for_other_features_is_refused(tmp_path, head_file):
    torch.save({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, tmp_path / "large.pth")
    with pytest.raises(InputError, match=r"weight \(1, 3\) and bias \(1,\) for clip:colours"):
        load_aesthetic(tmp_path / "large.pth", Colours())
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="must be a dictionary"):
        load_aesthetic(tmp_path / "list.pth", Colours())
    with pytest.raises(InputError, match="no such file; give a local file of LAION"):
        load_aesthetic(tmp_path / "none.pth", Colours())


def test_eval_reports_quality_beside_the_rest(clips, save, pyiqa, musiq_file, head_file):
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)

    def run(*arguments):
        return CliRunner().invoke(app, ["eval", str(path), *map(str, arguments)])

    path = save(clips.flat(32, (255, 51, 0)))
    (found,) = json.loads(run("--json", "--imaging", musiq_file).stdout)["videos"][0]["quality"]
    assert found == {
        "scorer": "musiq:musiq",
        "mean": pytest.approx(0.31),
        "first": None,
        "last": None,
        "change": None,
        "spread": pytest.approx(0),
    }
    assert "quality, musiq:musiq: mean" in run("--imaging", musiq_file).stdout
    refused = run("--aesthetic", head_file)
    assert isinstance(refused.exception, InputError)
    assert "needs one CLIP folder" in str(refused.exception)
