"""FIFO-Diffusion's and Ouroboros-Diffusion's recorded numbers."""

import importlib.util
import json
from pathlib import Path

import pytest

GOLDENS = Path(__file__).parents[1] / "goldens" / "fifo_ouroboros"
RUNNER = Path(__file__).parents[2] / "scripts" / "parity_kinds" / "fifo.py"
CASES = json.loads((GOLDENS / "cases.json").read_text())


@pytest.fixture(scope="module")
def runners() -> dict:
    spec = importlib.util.spec_from_file_location("parity_kinds_fifo", RUNNER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RUNNERS


@pytest.mark.parametrize("case", CASES, ids=[Path(c["file"]).stem for c in CASES])
def test_recorded_case(runners: dict, case: dict) -> None:
    assert runners[case["kind"]](case, GOLDENS) <= case.get("atol", 0.0)
