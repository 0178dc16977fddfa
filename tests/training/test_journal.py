"""A training's log: rows of steps that are done again, and pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvid.training.curves import plot_training
from longvid.training.journal import JsonLog


def test_a_log_is_cut_to_a_step(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "log.jsonl")
    log.cut(3)
    for step in (2, 4, 6):
        log.write(step=step)
    log.cut(4)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 2}\n{"step": 4}\n'


def curves(path: Path, **values: float) -> Path:
    log = JsonLog(path / "log.jsonl")
    for step in (1, 2):
        log.write(step=step, **values)
    return plot_training(path / "log.jsonl", path / "curves.png")


def test_curves_of_each_stage_have_a_panel_each(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    one = curves(tmp_path, forcing9=2.0, forcing15=2.1, rolling=2.2, lr=1e-3, seconds=1.0)  # three curves, one panel
    assert Image.open(one).size == (360, 288)
    (tmp_path / "log.jsonl").unlink()
    assert Image.open(curves(tmp_path, loss=1.0, psnr_db=20.0, lr=1e-3)).size == (720, 288)
