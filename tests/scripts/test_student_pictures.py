"""Pictures of docs/training.md: the trainings' curves, and frames of base and students."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from longvid.training.distill.student import LOG
from scripts import student_pictures
from scripts.method_pictures import HEADING_HEIGHT, LABEL_WIDTH


def log(folder, name, slope):
    path = folder / name
    path.mkdir()
    rows = [{"step": step, "critic_loss": slope * step, "dmd_gradient": 1.0, "reward": 0.5} for step in range(20)]
    (path / LOG).write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return SimpleNamespace(name=name, folder=path)


def test_curves_show_what_the_logs_hold(tmp_path):
    drawn = []
    for slope in (1.0, -1.0):
        students = [log(tmp_path, f"student{slope:g}", slope), log(tmp_path, f"other{slope:g}", 0.5)]
        student_pictures.curves(students, tmp_path)
        with Image.open(tmp_path / "student_training.webp") as picture:
            drawn.append(np.asarray(picture.convert("RGB")).astype(int))
    assert drawn[0].shape == drawn[1].shape
    assert np.abs(drawn[0] - drawn[1]).max() > 100


def test_the_sheet_has_a_row_a_prompt_and_entry(tmp_path):
    student_pictures.sheet(["a pink star swings in the evening", "a red ball bounces"], tmp_path, times=(0, 0.5))
    with Image.open(tmp_path / "students.webp") as picture:
        block = 2 * HEADING_HEIGHT + len(student_pictures.SHOWN) * 128
        assert picture.size == (LABEL_WIDTH + 2 * 128, 2 * block)
        frames = np.asarray(picture.convert("RGB")).astype(int)[2 * HEADING_HEIGHT :, LABEL_WIDTH:]
    base, student = frames[:128], frames[128:256]
    assert np.abs(base - student).mean() > 1
