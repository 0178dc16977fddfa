"""The FIFO and Ouroboros pages hold what was recorded."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import pages
from scripts import fifo_tables


def test_the_pages_are_up_to_date():
    assert fifo_tables.main(["--check"]) == 0, "run python scripts/fifo_tables.py"


def test_a_table_replaces_what_lay_between_its_markers(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    page = tmp_path / "a.md"
    page.write_text("before\n<!-- table: one -->\nold\n<!-- end -->\nafter\n<!-- table: two -->\n<!-- end -->\n")
    tables = {"one": ("a.md", lambda: "| 1 |"), "two": ("a.md", lambda: "| 2 |")}
    assert pages.write(tables, "x.py", check=True) == 1
    assert pages.write(tables, "x.py", check=False) == 0
    one, two = ("<!-- table: one -->\n\n| 1 |\n\n<!-- end -->\n", "<!-- table: two -->\n\n| 2 |\n\n<!-- end -->\n")
    assert page.read_text() == f"before\n{one}after\n{two}"
    assert pages.write(tables, "x.py", check=True) == 0


def test_a_missing_marker_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "a.md").write_text("nothing")
    with pytest.raises(SystemExit, match="lacks the marker <!-- table: one -->"):
        pages.rendered({"one": ("a.md", lambda: "")})
