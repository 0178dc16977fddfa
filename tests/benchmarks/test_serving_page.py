"""docs/serving.md has the figures that were recorded."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import serve


def test_the_tables_are_the_recorded_figures() -> None:
    assert serve.page() == serve.PAGE.read_text(encoding="utf-8"), "run python benchmarks/serve.py --page"


def test_shares_are_taken_while_all_watch() -> None:
    first = {"at": [0.0, 1.0, 2.0, 3.0, 4.0]}
    late = {"at": [1.5, 2.5, 3.5, 4.5, 5.5, 6.5]}  # alone after 4, so twice as fast would not count
    assert serve.shares([first, late], frames=12) == [12 * 2 / 1.5, 12 * 1 / 1.5]
