"""The students in the package: they fit its base, its presets and its size, and say truly how they were trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import longvid
from longvid.models.cli import model_entries
from longvid.models.folder import EMBEDDED, model_defaults
from longvid.models.students import find_student, student_names, weights_digest
from longvid.presets import config_root, load_method, method_names, read_yaml
from longvid.training.distill.config import require_same, student_config
from longvid.training.distill.student import LOG

NAMES = student_names("embedded")
MOST_BYTES = 25_000_000


def test_all_weights_of_the_package_stay_small():
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*.safetensors")) <= MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_a_student_fits_the_base_and_tells_its_training(name):
    student = find_student("embedded", name)
    facts = student.facts
    assert facts["base_sha256"] == weights_digest(EMBEDDED)
    settings = read_yaml(config_root() / "students" / f"{name}.yaml")
    require_same(facts["settings"], student_config(name, model_defaults("embedded"), settings))
    rows = [json.loads(line) for line in (student.folder / LOG).read_text().splitlines()]
    assert rows[-1]["step"] == facts["steps"]
    assert facts["initial"] in ("base", *NAMES)


@pytest.mark.parametrize("method", method_names())
def test_what_a_method_picks_is_there_and_is_measured(method):
    picked = load_method(method).student
    if not picked:
        return
    assert picked in NAMES
    entries = {entry["name"]: entry for entry in model_entries("embedded")}
    assert method in entries[picked]["methods"]
    assert method in [figures["method"] for figures in entries[picked]["figures"]]


@pytest.mark.parametrize("name", NAMES)
def test_a_student_renders_without_guidance(name):
    pipe = longvid.load("embedded", name, student=name, device="cpu", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    base = longvid.load("embedded", name, student="base", device="cpu", dtype=torch.float32)
    base.set_progress_bar_config(disable=True)
    assert pipe.method.schedule.guidance_scale == 1.0
    videos = [
        np.concatenate([c.frames for c in each.stream("a red ball bounces over green hills", num_frames=9, seed=0)])
        for each in (pipe, base)
    ]
    assert videos[0].shape == videos[1].shape == (9, 128, 128, 3)
    assert 20 < videos[0].mean() < 235
    assert np.abs(videos[0].astype(int) - videos[1]).mean() > 0.5


def test_the_package_holds_what_its_scripts_name():
    script = Path(__file__).resolve().parents[2] / "scripts" / "train_students.sh"
    steps = {}
    for line in script.read_text().splitlines():
        if line.startswith("train ") and "(" not in line:
            _, kind, count, *_ = line.split()
            steps[kind] = int(count)
    assert {name: find_student("embedded", name).facts["steps"] for name in NAMES} == {n: steps[n] for n in NAMES}
