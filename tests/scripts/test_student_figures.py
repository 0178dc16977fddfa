"""Figures of students: from the record of all methods to the package and the page, and the rule that presets obey."""

import copy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts import student_figures

RECORD = student_figures.read_record(student_figures.RECORD)
COSTS = student_figures.read_record(student_figures.COSTS)["figures"]["costs"]


@pytest.fixture
def record():
    return copy.deepcopy(RECORD)


def test_the_package_and_the_page_are_up_to_date_and_presets_obey_the_rule():
    assert student_figures.main(["--check"]) == 0, "run python scripts/student_figures.py"


def test_what_is_out_of_date_is_found_and_written(record, tmp_path, monkeypatch, capsys):
    shipped = tmp_path / "figures.json"
    shipped.write_text("{}")
    monkeypatch.setattr(student_figures, "SHIPPED", shipped)
    assert student_figures.main(["--check"]) == 1
    assert "figures.json: out of date" in capsys.readouterr().err
    assert student_figures.main([]) == 0
    assert shipped.read_text() == (Path(student_figures.EMBEDDED) / "students" / "figures.json").read_text()


def test_a_method_s_base_stands_above_its_students():
    found = [(entry.method, student) for entry, student in student_figures.compared(RECORD)]
    assert found[:2] == [("deep-forcing", "base"), ("deep-forcing", "self-forcing")]
    assert "fifo" not in [method for method, _ in found]
    assert [student for method, student in found if method == "reward-forcing"] == [
        "base",
        "reward-forcing",
        "self-forcing",
    ]


def test_figures_are_those_of_the_record_with_the_number_of_prompts_and_videos():
    found = student_figures.by_student(RECORD)
    (picked,) = (seen for seen in found["self-forcing"] if seen["method"] == "deep-forcing")
    figures = RECORD["figures"]
    assert picked["means"]["shape_last"] == figures["means"]["distilled-deep-forcing"]["shape_last"]
    assert picked["differences"]["shape_last"] == figures["differences"]["distilled-deep-forcing"]["shape_last"]
    assert picked["world"]["subject_motion"] == figures["means"]["world"]["subject_motion"]["estimate"]
    assert (picked["prompts"], picked["videos"]) == (RECORD["prompts"], RECORD["prompts"] * RECORD["seeds"])
    (baseline,) = (seen for seen in found["base"] if seen["entry"] == figures["baseline"])
    assert baseline["differences"] is None


def test_the_table_has_a_row_an_entry_and_says_how_much_was_measured():
    head, _, *rows, empty, how = student_figures.table(RECORD, COSTS).splitlines()
    assert not empty
    assert len(rows) == len(student_figures.compared(RECORD))
    assert {row.count(" | ") for row in rows} == {head.count(" | ")}
    assert all(row.removesuffix(" |").rpartition("| ")[2].isdigit() for row in rows), "every row has its cost"
    assert how.startswith(f"{RECORD['prompts']} held-out prompts x {RECORD['seeds']} seeds x 60 s")


def test_unlike_sets_are_refused(record):
    record["figures"]["entries"]["deep-forcing"]["videos"] = 22
    with pytest.raises(SystemExit, match=r"'deep-forcing': 22.*must be the same number for all"):
        student_figures.by_student(record)


@pytest.mark.parametrize("lost", ["shape", "drift"])
def test_a_preset_whose_student_has_not_earned_it_breaks_the_rule(record, lost):
    assert student_figures.broken_rules(record) == []
    figures = record["figures"]
    if lost == "shape":
        figures["differences"]["distilled-deep-forcing"]["shape_last"]["low"] = -0.01
    else:
        figures["drift_verdicts"]["distilled-deep-forcing"]["verdict"] = "no clear difference"
    (broken,) = student_figures.broken_rules(record)
    assert "configs/deep-forcing.yaml: student='self-forcing': the preset picks it, but it has not earned it" in broken


def test_a_student_that_has_earned_it_must_be_picked(record):
    record["figures"]["drift_verdicts"]["distilled-rolling-forcing"]["verdict"] = "better"
    (broken,) = student_figures.broken_rules(record)
    assert "configs/rolling-forcing.yaml: student='rolling-forcing': the preset does not pick it" in broken
