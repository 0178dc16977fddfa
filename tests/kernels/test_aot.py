"""Kernels compile for GPUs that are not here: no spills, enough shared memory, matrix instructions in the assembly."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("triton")

from longvid.kernels.aot import ARCHITECTURES, SHARED_LIMIT, digests, specimens, spilled

ROOT = Path(__file__).parent.parent.parent
RECORDED = json.loads((ROOT / "benchmarks" / "results" / "kernels_aot.json").read_text())
ATTENTION = ["attention_forward/bf16/d128/128x64", "attention_backward_q/bf16/d128", "attention_backward_kv/bf16/d128"]


def compile_here(folder: Path, archs: list[str], only: list[str]) -> dict[str, dict]:
    """Tables by architecture. In a process of its own: one that interprets kernels cannot compile them."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "scripts/aot_compile.py", "--arch", *archs, "--only", *only]
    command += ["--out", str(folder / "table.json"), "--dump", str(folder / "dump")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "table.json").read_text())["kernels"]


@pytest.fixture(scope="module")
def hopper(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sm_90")
    others = ["attention_delta", "column_", "rotate_tokens", "gather_tokens", "ema_merge"]
    return compile_here(folder, ["90"], ATTENTION + others)["sm_90"], folder / "dump"


def test_every_kernel_compiles_for_hopper_without_spills(hopper):
    rows, _ = hopper
    assert {name.split("/")[0] for name in rows} == {s.name.split("/")[0] for s in specimens(90)}
    for name, row in rows.items():
        assert spilled(row) == 0, name
        assert row["stack_bytes"] == 0, name
        assert row["shared_kilobytes"] <= SHARED_LIMIT[90], name


def test_hopper_assembly_multiplies_matrices_by_warpgroup(hopper):
    """Every product of the attention kernels is asynchronous wgmma in PTX, none the older mma.sync."""
    _, dump = hopper
    for name in ATTENTION:
        (ptx, *_) = sorted(dump.glob(f"{name.replace('/', '-')}*.90.ptx"))
        text = ptx.read_text()
        assert text.count("wgmma.mma_async") >= 8, name
        assert "mma.sync" not in text, name
        assert "cp.async" in text, name  # loads are pipelined


def test_hopper_machine_code_holds_tensor_core_instructions(hopper):
    import triton

    _, dump = hopper
    disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    cubin = next(dump.glob("attention_forward-bf16-d128-128x64.90.cubin"))
    machine_code = subprocess.run([disassembler, cubin], capture_output=True, text=True, check=True).stdout
    assert machine_code.count("HGMMA") >= 8


def test_forward_compiles_with_matrix_instructions_for_the_others(tmp_path):
    expected = {"sm_80": "mma_sync", "sm_100": "tcgen05", "sm_120": "mma_sync", "gfx942": "mfma"}
    tables = compile_here(tmp_path, ["80", "100", "120", "gfx942"], ATTENTION[:1])
    assert set(tables) == set(expected)
    for arch, rows in tables.items():
        assert len(rows) == 2  # whole and ragged key tiles
        for name, row in rows.items():
            assert row["instructions"][expected[arch]] >= 16, (arch, name)
            assert spilled(row) == 0, (arch, name)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_recorded_table_is_complete_and_free_of_spills(arch):
    """The committed table covers every kernel as configured now; rerun scripts/aot_compile.py after changing one."""
    rows = RECORDED["kernels"][f"sm_{arch}" if isinstance(arch, int) else arch]
    assert set(rows) == {specimen.name for specimen in specimens(arch)}
    for specimen in specimens(arch):
        row = rows[specimen.name]
        assert (row["num_warps"], row["num_stages"]) == (specimen.num_warps, specimen.num_stages), specimen.name
        assert spilled(row) == 0, specimen.name
        assert row["shared_kilobytes"] <= SHARED_LIMIT[arch], specimen.name


def test_recorded_from_the_kernels_as_they_are_now():
    assert RECORDED["sources"] == digests(), (
        "run python scripts/aot_compile.py --out benchmarks/results/kernels_aot.json"
    )


def test_recorded_with_the_triton_that_pairs_with_torch():
    assert RECORDED["triton"].split(".")[:2] == version("triton").split(".")[:2]
