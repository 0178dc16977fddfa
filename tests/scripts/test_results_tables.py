"""docs/results.md holds what was recorded."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.claims import OURS, PAPERS
from scripts import results_tables


def test_the_page_is_up_to_date():
    assert results_tables.main(["--check"]) == 0, "run python scripts/results_tables.py"


def test_the_records_judge_the_claims_that_there_are():
    for name in results_tables.LENGTHS.values():
        recorded = [row["claim"]["text"] for row in results_tables.read(name)["figures"]["claims"]]
        assert recorded[: len(PAPERS)] == [claim.text for claim in PAPERS]
        assert set(recorded[len(PAPERS) :]) <= {claim.text for claim in OURS}


def test_our_own_method_is_judged_on_prompts_that_it_was_not_found_on():
    held_out = results_tables.read(results_tables.SEARCHES["held-out"])
    search = results_tables.read(results_tables.SEARCHES["ideas"])
    assert held_out["skipped"] > search["skipped"] + search["prompts"]
    head, _, *rows = results_tables.ours().splitlines()
    assert [row.split("`")[1] for row in rows] == ["deep-sink", "deep-forcing", "rolling-forcing", "reward-forcing"]
    judged = {row["claim"]["text"]: row for row in held_out["figures"]["claims"]}
    for row in rows:
        than, drift = row.split("`")[1], row.split(" | ")[1]
        found = judged[f"longvid drifts less than {than}."]
        assert drift.startswith(f"**{found['verdict']}** {found['difference']['estimate']:.2f} [")
    assert len({line.count("|") for line in (head, *rows)}) == 1


def test_claims_of_two_lengths_stand_side_by_side():
    table = results_tables.claims().splitlines()
    assert table[0].endswith("| 60 s | 300 s |")
    assert len(table) == 2 + len(PAPERS)
    assert len({line.count("|") for line in table}) == 1


def test_the_glance_has_drift_at_both_lengths():
    heads, _, first, *rows = [line.split(" | ") for line in results_tables.glance().splitlines()]
    assert {len(row) for row in [first, *rows]} == {len(heads)}
    means = [results_tables.read(name)["figures"]["means"] for name in results_tables.LENGTHS.values()]
    drifts = [figures["self-forcing"]["scene_drift"]["estimate"] for figures in means]
    assert [cell.split()[0] for cell in first[1:3]] == [f"{drift:.2f}" for drift in drifts]
