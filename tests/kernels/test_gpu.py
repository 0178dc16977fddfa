"""The kernels on a real GPU (`pytest -m gpu`, or scripts/gpu_check.sh), and the GPU benchmark itself on a CPU."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention_cases import CASES, AttentionCase, assert_close, check_attention

pytest.importorskip("triton")

from longvid.kernels.attention import block_sparse_attention
from longvid.kernels.cache_ops import column_mass, column_scores, ema_merge, gather_tokens, rotate_tokens
from longvid.kernels.radial import RadialSpec, radial_blocks

ROOT = Path(__file__).parent.parent.parent


# Tokens of a latent frame: 8 x 8 pixels a latent, 2 x 2 latents a token.
P480 = (480 // 16) * (832 // 16)


class OnGPU(AttentionCase):
    """The same case with its tensors on the GPU."""

    def draw(self):
        return tuple(x.cuda() for x in super().draw())


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attention_on_the_gpu_equals_the_truth(case):
    from longvid.kernels.attention.fused import triton_block_sparse_attention

    here = OnGPU(**{name: getattr(case, name) for name in case.__dataclass_fields__})
    # A GPU's exp2 is good to two units in the last place; tf32, which must not be used, would be off by 1e-3.
    here.tolerance, here.lse_tolerance = max(case.tolerance, 1e-5), 1e-5
    check_attention(here, triton_block_sparse_attention)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("dim", [64, 128])
def test_480p_radial_attention_equals_masked_dense(dim, dtype):
    """Three heads at 32,760 tokens, in slices of queries: full size, full mask, no approximation."""
    blocks = radial_blocks(21, P480, RadialSpec.wan())
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (torch.randn(1, 3, blocks.q_len, dim, device="cuda", generator=generator).to(dtype) for _ in range(3))
    out = block_sparse_attention(q, k, v, blocks, backend="triton", strict=True)
    columns = torch.from_numpy(blocks.to_dense()).cuda().repeat_interleave(128, 1)[:, : blocks.kv_len]
    for row in (0, 7, 128, 255):
        part = slice(row * 128, min((row + 1) * 128, blocks.q_len))
        mask = columns[row].expand(part.stop - part.start, -1)
        truth = torch.nn.functional.scaled_dot_product_attention(q[:, :, part].float(), k.float(), v.float(), mask)
        assert_close(f"rows {part}", truth, out[:, :, part], 2e-2)


@pytest.mark.gpu
def test_cache_kernels_on_the_gpu_equal_their_twins():
    generator = torch.Generator("cuda").manual_seed(0)
    k, v = (torch.randn(2, 500, 3, 128, device="cuda", generator=generator).bfloat16() for _ in range(2))
    q, angle = k[:, :70].contiguous(), torch.randn(300, 64, device="cuda", generator=generator)
    index = torch.randperm(500, device="cuda", generator=generator)[:300]
    lse = torch.logsumexp(torch.einsum("brnd,btnd->bnrt", q.float(), k.float()) * 128**-0.5, -1)
    calls = {
        "rotate": lambda b: rotate_tokens(k, angle.cos(), angle.sin(), index=index, backend=b, strict=True),
        "sum": lambda b: column_scores(q, k, backend=b, strict=True),
        "max": lambda b: column_scores(q, k, fusion="max", backend=b, strict=True),
        "mass": lambda b: column_mass(q, k, lse, backend=b, strict=True),
        "gather": lambda b: gather_tokens(k, v, index.expand(2, -1), backend=b, strict=True)[1],
    }
    for name, call in calls.items():
        assert_close(name, call("plain"), call("triton"), 2e-2 if name == "rotate" else 1e-3)
    masters, merged = [k.float() for _ in range(2)], [torch.zeros_like(k) for _ in range(2)]
    for backend, master, out in zip(("plain", "triton"), masters, merged, strict=True):
        ema_merge(master, v, 0.999, out=out, backend=backend, strict=True)
    assert_close("merge, masters", *masters, 1e-6)
    assert_close("merge, what is read", *merged, 2e-2)


@pytest.mark.interpreter
def test_the_gpu_benchmark_runs_end_to_end_in_the_interpreter(tmp_path):
    spec = importlib.util.spec_from_file_location("kernels_gpu", ROOT / "benchmarks" / "kernels_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = "--device cpu --heads 2 --head-dim 16 --grid 4 4 --frames 3 --history 4 --cache-frames 4 --block 16"
    small += f" --decays 1.0 --dtype float32 --rounds 1 --warm-up 0 --out {tmp_path / 'figures.json'}"
    module.main(module.parse(small.split()))
    written = json.loads((tmp_path / "figures.json").read_text())
    rows = written["figures"]["attention"]
    assert [row["backward"] for row in rows] == [False, True, False]
    assert all(row["triton"]["median_ms"] > 0 and "speed_up" in row["triton"] for row in rows)
    assert all(row["flex"] == {"left_out": "compared on a GPU only"} for row in rows)
    assert {row["name"] for row in written["figures"]["cache"]} >= {"rotate_tokens", "column_mass", "ema_merge"}


def test_without_a_gpu_the_check_says_so_and_is_no_success(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    script = ROOT / "scripts" / "gpu_check.sh"
    done = subprocess.run(
        ["bash", script], env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}, capture_output=True
    )
    assert done.returncode == 3
    assert b"no GPU here" in done.stderr
