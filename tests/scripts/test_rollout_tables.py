"""docs/parity.md and docs/rollout_speed.md show what was recorded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts import parity, rollout_tables  # noqa: E402


def test_the_pages_are_up_to_date() -> None:
    assert rollout_tables.main(["--check"]) == 0


def test_a_failure_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cases.json").write_text(json.dumps([{"file": "x.safetensors", "kind": "nobody_knows_it"}]))
    assert parity.main([str(tmp_path), "--json", str(tmp_path / "parity.json")]) == 1
    monkeypatch.setattr(rollout_tables, "RESULTS", tmp_path)
    assert "| nobody_knows_it | inf | 1e-04 | **FAIL** |" in rollout_tables.parity_table()
    assert "0 of 1 within" in rollout_tables.parity_table()
