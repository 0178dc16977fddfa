"""Recorded numbers of the published methods, through scripts/parity.py; its verdicts and exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "goldens"
sys.path.insert(0, str(ROOT / "scripts"))

import parity  # noqa: E402

CASES = [
    (folder, case)
    for folder in (GOLDENS / "autoregressive", GOLDENS / "rolling")
    for case in json.loads((folder / "cases.json").read_text())
]


@pytest.fixture(scope="module")
def known():
    return parity.runners()


@pytest.mark.parametrize(("folder", "case"), CASES, ids=[parity.case_name(case) for _, case in CASES])
def test_published_numbers(folder, case, known):
    error, limit, problem = parity.run_case(case, folder, known)
    assert not problem
    assert error <= limit <= 1e-3


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("c_sf_local12_sink3_36", {"sink_size": 0}),
        ("a_ds_local12_sink6_30", {"sink": 5}),
        ("b_ds_pc_21_s10_n16_r4_45", {"compression": {"budget": 16, "recent": 4, "fusion": "max", "max_reuse": 7}}),
        ("c_ema_local9_sink3_a0.9_30", {"ema_alpha": 0.999}),
        ("d_ll_local12_sink3_switch18_globalsink_33", {"global_sink": False}),
        ("d_ll_local12_sink3_switch18_globalsink_33", {"recache": False}),
        ("rf_30", {"max_attention_frames": 24}),
    ],
    ids=lambda x: x if isinstance(x, str) else ",".join(x),
)
def test_a_wrong_rule_is_noticed(name, change, known):
    """The goldens can fail: each changed constant moves the numbers past the limit."""
    folder, case = next((f, c) for f, c in CASES if parity.case_name(c) == name)
    error, limit, problem = parity.run_case(case | change, folder, known)
    assert problem
    assert error > 5 * limit


def run_script(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "parity.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_directory_never_seen_before(tmp_path):
    """The script by itself, elsewhere: one good case, one wrong, one of an unknown kind."""
    source = GOLDENS / "autoregressive"
    for name in ("config.json", "weights_generator.safetensors", "a_sf_batch2_9.safetensors"):
        shutil.copy(source / name, tmp_path)
    case = next(c for c in json.loads((source / "cases.json").read_text()) if c["file"].startswith("a_sf_batch2"))
    (tmp_path / "cases.json").write_text(json.dumps([case]))
    done = run_script(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[3] == "ok"
    (tmp_path / "cases.json").write_text(json.dumps([case, case | {"steps": [1000, 800, 600, 400]}, {"kind": "tea"}]))
    done = run_script(tmp_path)
    assert done.returncode == 1
    assert [line.split()[3] for line in done.stdout.splitlines()] == ["ok", "FAIL", "FAIL"]
    assert "unknown kind 'tea'" in done.stdout


def test_a_directory_without_cases(tmp_path):
    done = run_script(tmp_path)
    assert done.returncode == 2
    assert "no cases.json" in done.stderr
