"""Pictures of docs/embedded_model.md: training curves, and a contact sheet."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from longvid import load

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts import embedded_pictures


def write_log(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))


def test_curves_show_what_the_logs_hold(tmp_path):
    drawn = []
    for slope in (1, -1):
        write_log(tmp_path / "decoder.jsonl", [{"step": step, "psnr_db": 30 + slope * step} for step in range(10)])
        steps = range(100)
        write_log(tmp_path / "diffusion.jsonl", [{"step": s, "seconds": s, "lr": 1, "causal": 1 + s} for s in steps])
        embedded_pictures.curves(tmp_path, tmp_path)
        with Image.open(tmp_path / "embedded_training.png") as picture:
            drawn.append(np.asarray(picture.convert("RGB")).astype(int))
    assert np.abs(drawn[0] - drawn[1]).max() > 100


def test_a_contact_sheet_has_a_row_a_prompt_and_a_column_a_time():
    pipe = load("embedded", method="longvid")
    prompts = ["a pink star swings in the evening", "a red ball bounces over green hills"]
    first, second = (embedded_pictures.contact_sheet(pipe, prompts, [0, 0.5, 1], seed=0) for _ in range(2))
    assert first.size == (3 * 128, 2 * 128)
    assert first.tobytes() == second.tobytes()
    frames = np.asarray(first).astype(int)
    assert np.abs(frames[:128] - frames[128:]).mean() > 1
    assert np.abs(frames[:, :128] - frames[:, 256:]).mean() > 1
