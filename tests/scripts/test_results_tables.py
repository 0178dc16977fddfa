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


def test_claims_of_two_lengths_stand_side_by_side(monkeypatch):
    minute = results_tables.read(results_tables.LENGTHS["minute"])
    monkeypatch.setattr(results_tables, "read", lambda name: minute)
    monkeypatch.setattr(results_tables, "RESULTS", Everything())
    table = results_tables.claims().splitlines()
    assert table[0].endswith("| 60 s | 300 s |")
    assert len(table) == 2 + len(CLAIMS)
    assert len({line.count("|") for line in table}) == 1


class Everything:
    """A folder that has every file."""

    def __truediv__(self, name):
        return self

    def exists(self):
        return True
