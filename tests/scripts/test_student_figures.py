"""Figures of students: from benchmark records to the package and the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import student_figures

PART = {"shape": 0.5, "colour": 1.0, "background": 1.0, "one_subject": 0.75, "motion": 3.0}


def record(folder, name, **figures):
    seen = {
        "method": "deep-forcing",
        "seconds": 60,
        "videos": 4,
        "first": PART,
        "last": PART | {"motion": 1.5},
        "world_motion": 2.0,
        "identity_drift": [0.0, 2.0, 4.0],
        "identity_drift_other_seed": 9.0,
        "frames_per_second_median": 50.0,
        "options": {},
    }
    (folder / name).write_text(json.dumps({"commit": "abc", "figures": seen | figures}))


def test_records_are_sorted_by_student_and_shown_by_method(tmp_path):
    record(tmp_path, "embedded-deep-forcing.json")
    record(tmp_path, "embedded-self-forcing.json", method="self-forcing", videos=2)
    record(tmp_path, "student-quick-deep-forcing.json", student="quick", identity_drift=[])
    (tmp_path / "other.json").write_text("{}")
    found = student_figures.read_results(tmp_path)
    assert {name: [seen["method"] for seen in all_] for name, all_ in found.items()} == {
        "base": ["deep-forcing", "self-forcing"],
        "quick": ["deep-forcing"],
    }
    assert "options" not in found["quick"][0]
    assert found["quick"][0]["commit"] == "abc"
    rows = student_figures.table(found).splitlines()[2:]
    shares = "50.0 / 50.0 | 100.0 / 100.0 | 100.0 / 100.0 | 75.0 / 75.0 | 1.50 / 0.75"
    assert rows == [
        f"| deep-forcing | base | 4 | {shares} | 3.0, 4.0 |",
        f"| deep-forcing | quick | 4 | {shares} |  |",
        f"| self-forcing | base | 2 | {shares} | 3.0, 4.0 |",
    ]


def test_the_package_s_figures_are_the_recorded_ones():
    root = Path(__file__).resolve().parents[2]
    shipped = root / "longvid" / "models" / "embedded" / "students" / "figures.json"
    assert json.loads(shipped.read_text()) == student_figures.read_results(root / "benchmarks" / "results")
