"""docs/results.md holds what was recorded."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.claims import CLAIMS
from scripts import results_tables


def test_the_page_is_up_to_date():
    assert results_tables.main(["--check"]) == 0, "run python scripts/results_tables.py"


def test_the_record_judges_the_claims_that_there_are():
    recorded = results_tables.read(results_tables.LENGTHS["minute"])["figures"]["claims"]
    assert [row["claim"]["text"] for row in recorded] == [claim.text for claim in CLAIMS]


def test_claims_of_two_lengths_stand_side_by_side():
    table = results_tables.claims().splitlines()
    assert table[0].endswith("| 60 s | 300 s |")
    assert len(table) == 2 + len(CLAIMS)
    assert len({line.count("|") for line in table}) == 1


def test_the_glance_has_drift_at_both_lengths():
    heads, _, first, *rows = [line.split(" | ") for line in results_tables.glance().splitlines()]
    assert {len(row) for row in [first, *rows]} == {len(heads)}
    means = [results_tables.read(name)["figures"]["means"] for name in results_tables.LENGTHS.values()]
    drifts = [figures["self-forcing"]["scene_drift"]["estimate"] for figures in means]
    assert [cell.split()[0] for cell in first[1:3]] == [f"{drift:.2f}" for drift in drifts]
