"""Students of a model: who picks whom, what is merged, and who must know."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import longvid
from longvid.cli import main
from longvid.config import MethodConfig
from longvid.errors import InputError, ModelError, UnknownNameError
from longvid.models.cli import FIGURES, model_entries
from longvid.models.students import ADAPTER, FACTS, FOLDER, pick_student, student_names, weights_digest
from longvid.presets import load_method, method_names
from longvid.serve.studio import PipelineStudio

LAYER = "blocks.0.attn1.to_q"
SAMPLING = {"steps": [1000, 600], "shift": 2.0, "sampler": "renoise", "guidance_scale": 1.0}


def add_student(folder: Path, name: str, seed: int, **facts: Any) -> dict[str, torch.Tensor]:
    """A student whose adapter changes one layer; its A and B."""
    place = folder / FOLDER / name
    place.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    size = json.loads((folder / "transformer" / "config.json").read_text())
    dim = size["num_attention_heads"] * size["attention_head_dim"]
    lora = {
        f"{LAYER}.lora_A.weight": torch.randn(2, dim, generator=generator),
        f"{LAYER}.lora_B.weight": torch.randn(dim, 2, generator=generator),
    }
    save_file(lora, place / ADAPTER)
    settings = {"kind": name, "steps": 7, "sampling": SAMPLING, "base_sha256": weights_digest(folder)}
    (place / FACTS).write_text(json.dumps(settings | facts))
    return lora


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """The tiny model (euler, guidance 2) with two students."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"sampler": "euler", "guidance_scale": 2.0}))
    add_student(folder, "quick", 1)
    add_student(folder, "rolling", 2, sampling=SAMPLING | {"steps": [1000, 500, 250]})
    return folder


def weight(pipe: Any) -> torch.Tensor:
    return pipe.transformer.state_dict()[f"{LAYER}.weight"]


def of(student: str) -> MethodConfig:
    """A method that picks a student."""
    return dataclasses.replace(MethodConfig.load("self-forcing"), student=student)


@pytest.fixture
def picking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets whose methods pick students of these tests: self-forcing "quick", rolling-forcing "rolling"."""
    own = {"self-forcing": "quick", "rolling-forcing": "rolling"}

    def preset(name: str) -> MethodConfig:
        method: MethodConfig = original(name)
        return dataclasses.replace(method, student=own.get(name, ""))

    original = load_method
    for module in ("longvid.presets", "longvid.models.cli", "longvid.serve.studio", "longvid.render_cli"):
        monkeypatch.setattr(f"{module}.load_method", preset, raising=False)


def test_an_adapter_is_merged_and_its_sampling_replaces_the_base_s(folder: Path) -> None:
    base = longvid.load(folder, "self-forcing", device="cpu", student="base")
    quick = longvid.load(folder, "self-forcing", device="cpu", student="quick")
    lora = add_student(folder, "again", 1)
    expected = weight(base) + lora[f"{LAYER}.lora_B.weight"] @ lora[f"{LAYER}.lora_A.weight"]
    torch.testing.assert_close(weight(quick), expected)
    assert (base.student, quick.student) == ("base", "quick")
    changed = [
        n for n, w in quick.transformer.state_dict().items() if not torch.equal(w, base.transformer.state_dict()[n])
    ]
    assert changed == [f"{LAYER}.weight"]
    schedule = quick.method.schedule
    assert (schedule.steps, schedule.shift, schedule.sampler, schedule.guidance_scale) == ((1000, 600), 2, "renoise", 1)
    assert base.method.schedule.sampler == "euler"
    over = longvid.load(
        folder, "self-forcing", device="cpu", student="quick", overrides={"schedule": {"guidance_scale": 3}}
    )
    assert over.method.schedule.guidance_scale == 3


def test_a_method_picks_its_own_where_the_model_has_it(folder: Path) -> None:
    names = [pick_student(folder, of(name)) for name in ("quick", "nowhere", "")]
    assert [one and one.name for one in names] == ["quick", None, None]
    assert pick_student(folder, of("quick"), "base") is None
    asked = pick_student(folder, of("quick"), "rolling")
    assert asked is not None
    assert asked.name == "rolling"
    assert longvid.load(folder, of("quick"), device="cpu").student == "quick"
    assert pick_student("someone/model", of("quick")) is None


def test_students_that_are_not_there_are_refused(folder: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown student 'quik': did you mean 'quick'"):
        longvid.load(folder, device="cpu", student="quik")
    with pytest.raises(InputError, match="has no students; leave it out"):
        longvid.load(tiny_model_folder, device="cpu", student="quick")
    transformer = longvid.load(folder, device="cpu").transformer
    with pytest.raises(InputError, match="a student or a transformer, not both"):
        longvid.load(folder, device="cpu", student="quick", transformer=transformer)
    brought = longvid.load(folder, of("quick"), device="cpu", transformer=transformer)
    assert (brought.student, brought.transformer) == ("base", transformer)
    add_student(folder, "foreign", 3, base_sha256="0" * 64)
    with pytest.raises(ModelError, match="trained on other base weights"):
        longvid.load(folder, device="cpu", student="foreign")


def test_a_saved_student_is_a_stock_folder(folder: Path, tmp_path: Path) -> None:
    quick = longvid.load(folder, "self-forcing", device="cpu", student="quick")
    quick.save_pretrained(tmp_path / "saved")
    saved = longvid.load(tmp_path / "saved", "self-forcing", device="cpu")
    assert not student_names(tmp_path / "saved")
    arguments = {"num_frames": 9, "seed": 0, "output_type": "latent"}
    assert torch.equal(quick("a red ball", **arguments).frames, saved("a red ball", **arguments).frames)


def test_a_render_with_another_student_is_not_resumed(folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "a.mp4"
    common = ["render", "a red ball bounces", "--model", str(folder), "-s", "1", "-o", str(out), "-m", "self-forcing"]
    assert main([*common, "--student", "quick"]) == 0
    assert main([*common, "--student", "rolling", "--resume"]) == 2
    assert 'student was "quick", is "rolling"' in capsys.readouterr().err
    assert main([*common, "--student", "base", "--resume"]) == 2
    assert 'student was "quick", is "base"; ' in capsys.readouterr().err
    assert main([*common, "--student", "quick", "--resume"]) == 0
    assert "already finished" in capsys.readouterr().out


def test_a_dry_run_names_the_student_and_its_sampling(folder: Path, tmp_path: Path, capsys: Any, picking: None) -> None:
    common = ["render", "a red ball bounces", "--model", str(folder), "--dry-run", "-o", str(tmp_path / "a.mp4")]
    for asked, name, sampler in (
        (["-m", "self-forcing"], "quick", "renoise"),
        (["-m", "self-forcing", "--student", "base"], "base", "euler"),
        (["-m", "deep-forcing"], "base", "euler"),
        (["-m", "deep-forcing", "--student", "rolling"], "rolling", "renoise"),
    ):
        assert main([*common, *asked]) == 0
        shown = capsys.readouterr().out
        assert f"student: {name}\n" in shown
        assert f"sampler: {sampler}\n" in shown
    assert main([*common, "--student", "roling"]) == 2
    assert "did you mean 'rolling'" in capsys.readouterr().err


def test_what_a_dry_run_prints_renders_the_same(folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = str(tmp_path / "a.mp4")
    common = ["render", "a red ball bounces", "--model", str(folder), "-s", "1", "-m", "self-forcing", "-o", out]
    assert main([*common, "--student", "quick", "--dry-run"]) == 0
    config = tmp_path / "a.yaml"
    config.write_text(capsys.readouterr().out)
    assert main([*common, "--student", "quick"]) == 0
    assert main(["render", "--config", str(config), "--resume"]) == 0
    assert "already finished" in capsys.readouterr().out


def test_models_lists_base_and_students(folder: Path, capsys: Any, monkeypatch: Any, picking: None) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    parts = {"shape": (0.9, 0.81), "colour": (1.0, 1.0), "background": (1.0, 1.0), "one_subject": (0.97, 0.97)}
    means = {f"{n}_{end}": {"estimate": v} for n, pair in parts.items() for end, v in zip(("first", "last"), pair)}
    means |= {"subject_motion": {"estimate": 3.0}, "scene_drift": {"estimate": 5.24, "low": 4.0, "high": 6.5}}
    seen = {"method": "self-forcing", "seconds": 60, "videos": 48, "prompts": 24, "means": means}
    seen["world"] = {"subject_motion": 2.0}
    (folder / FOLDER / FIGURES).write_text(json.dumps({"quick": [seen]}))
    entries = {entry["name"]: entry for entry in model_entries(folder)}
    assert list(entries) == ["base", "quick", "rolling"]
    assert entries["quick"]["methods"] == ["self-forcing"]
    assert set(entries["base"]["methods"]) == set(method_names()) - {"self-forcing", "rolling-forcing"}
    assert entries["quick"]["bytes"] == (folder / FOLDER / "quick" / ADAPTER).stat().st_size
    assert entries["base"]["sampling"]["guidance_scale"] == 2
    assert entries["rolling"]["sampling"]["steps"] == [1000, 500, 250]
    assert main(["models", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == list(entries.values())
    assert main(["models", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "90/81 " in shown
    assert "1.50   5.2 [4.0, 6.5]" in shown
    assert "24 held-out prompts, 48 videos" in " ".join(shown.split())
    assert "3 steps, renoise, no guidance" in shown
    assert main(["models", "nobody/nothing"]) == 2
    assert "is no local folder" in capsys.readouterr().err


def test_a_server_gives_each_method_its_own_student(folder: Path, picking: None) -> None:
    pipe = longvid.load(folder, "deep-forcing", device="cpu", student="base")
    studio = PipelineStudio(pipe, model=str(folder), own_students=True)
    made = {name: studio._pipe(name) for name in ("deep-forcing", "self-forcing", "rolling-forcing", "streaming-llm")}
    assert {n: p.student for n, p in made.items()} == {
        "deep-forcing": "base", "self-forcing": "quick", "rolling-forcing": "rolling", "streaming-llm": "base",
    }  # fmt: skip
    assert made["streaming-llm"].transformer is pipe.transformer
    assert all(p.vae is pipe.vae for p in made.values())
    assert made["self-forcing"].method.schedule.steps == (1000, 600)
    assert made["streaming-llm"].method.schedule.sampler == "euler"
    together = PipelineStudio(pipe, model=str(folder))
    assert together._pipe("self-forcing").transformer is pipe.transformer
