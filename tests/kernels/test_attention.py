"""The plain PyTorch path against the float64 truth, and the choice of backend."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from attention_cases import CASES, assert_close, check_attention
from safetensors.torch import load_file

from longvid.errors import UnknownNameError
from longvid.kernels import backend
from longvid.kernels.attention import block_sparse_attention, choose_backend, merge_attention
from longvid.kernels.attention.flex import flex_reason
from longvid.kernels.attention.gather import gather_block_sparse_attention
from longvid.kernels.attention.naive import naive_block_sparse_attention
from longvid.kernels.backend import BackendError
from longvid.kernels.blocks import BlockCSR, uniform_starts
from longvid.kernels.radial import RadialSpec, radial_blocks

GOLDENS = Path(__file__).parent.parent / "goldens" / "radial"
RULES = {case["tensor"]: case for case in json.loads((GOLDENS / "cases.json").read_text()) if "tokens" not in case}
RECORDED = ["hunyuan_f8_t64_b64_d0.95_text64", "wan_f9_t52_b32_d0.8_unaligned_pad"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gather_equals_the_truth_with_gradients(case):
    check_attention(case, gather_block_sparse_attention)


@pytest.mark.parametrize("threads", [1, 3])
def test_gather_equals_the_truth_for_any_number_of_threads(threads):
    """Heads are grouped by threads: five heads make a ragged last group."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        case = next(case for case in CASES if case.name == "ragged-both")
        check_attention(type(case)("five-heads", 70, 130, 16, 32, 24, heads=5), gather_block_sparse_attention)
    finally:
        torch.set_num_threads(before)


def test_long_runs_are_multiplied_in_place_with_the_same_result():
    case = next(case for case in CASES if case.name == "wan-block-128")
    long = type(case)("long-runs", 100, 1500, 50, 300, 16, density=0.7)
    check_attention(long, gather_block_sparse_attention)


@pytest.mark.parametrize("name", RECORDED)
def test_equals_recorded_outputs_and_gradients(name):
    recorded = {
        key.rsplit(".", 1)[1]: x for key, x in load_file(GOLDENS / "radial_outputs.safetensors").items() if name in key
    }
    rule = RULES[name]
    spec = RadialSpec(decay=rule["decay"], block=rule["block"], sink_frames=int(rule["model"] == "wan"))
    tokens = recorded["q"].shape[2]
    padded = radial_blocks(rule["frames"], rule["tokens_per_frame"], spec, total=rule["total"])
    starts = uniform_starts(tokens, rule["block"])
    blocks = BlockCSR(padded.row_ptr, padded.col_idx, starts, starts)  # padding is not attended
    q, k, v = (recorded[x].requires_grad_() for x in "qkv")
    out, lse = block_sparse_attention(q, k, v, blocks, return_lse=True, backend="gather")
    assert_close("out", recorded["out"], out, 2e-6)
    assert_close("lse", recorded["lse"], lse, 2e-6)
    for x, ours in zip("qkv", torch.autograd.grad(out, (q, k, v), recorded["dout"])):
        assert_close(f"d{x}", recorded[f"d{x}"], ours, 3e-6)
    if "out_zero_pad_attended" in recorded:
        assert (out - recorded["out_zero_pad_attended"]).abs().max() > 1e-2


def test_extreme_logits_stay_finite():
    """Logits of +-1e4 under- and overflow a naive exponential."""
    starts = uniform_starts(32, 16)
    blocks = BlockCSR.dense(starts, starts)
    q = torch.full((1, 1, 32, 8), 60.0)
    k = torch.linspace(-60, 60, 32)[None, None, :, None].expand(1, 1, 32, 8).contiguous()
    v = torch.randn(1, 1, 32, 8)
    out, lse = block_sparse_attention(q, k, v, blocks, return_lse=True, backend="gather")
    true_out, true_lse = naive_block_sparse_attention(q, k, v, blocks, 8**-0.5)
    assert_close("out", true_out, out, 1e-6)
    assert_close("lse", true_lse, lse, 1e-6)


def test_float64_is_computed_in_float64():
    starts = uniform_starts(32, 16)
    blocks = BlockCSR.dense(starts, starts)
    q, k, v = torch.randn(3, 1, 2, 32, 8, dtype=torch.float64)
    out = block_sparse_attention(q, k, v, blocks, backend="gather")
    assert (out - naive_block_sparse_attention(q, k, v, blocks, 8**-0.5)[0]).abs().max() < 1e-13


def test_merging_two_key_sets_equals_attending_to_both():
    starts = uniform_starts(48, 16)
    left = BlockCSR.from_dense([[1, 0, 0], [0, 0, 0], [0, 0, 0]], starts, starts)  # rows 1 and 2 see nothing
    right = BlockCSR.from_dense([[0, 1, 1], [0, 1, 0], [0, 0, 0]], starts, starts)  # row 2 sees nothing at all
    both = BlockCSR.from_dense([[1, 1, 1], [0, 1, 0], [0, 0, 0]], starts, starts)
    q, k, v = torch.randn(3, 1, 2, 48, 16, generator=torch.Generator().manual_seed(0))
    parts = [block_sparse_attention(q, k, v, b, return_lse=True, backend="gather") for b in (left, right)]
    out, lse = merge_attention(*parts[0], *parts[1])
    true_out, true_lse = naive_block_sparse_attention(q, k, v, both, 0.25)
    assert_close("out", true_out, out, 1e-6)
    assert_close("lse", true_lse, lse, 1e-6)


@pytest.fixture
def small():
    starts = uniform_starts(32, 16)
    return torch.randn(3, 1, 2, 32, 16), BlockCSR.dense(starts, starts)


def test_auto_is_gather_on_a_cpu_without_a_warning(small):
    (q, k, v), blocks = small
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend("auto", q, blocks, needs_grad=True, needs_lse=True) == "gather"
        block_sparse_attention(q, k, v, blocks)


def test_a_backend_that_cannot_run_falls_back_with_one_warning_that_says_why(small):
    (q, k, v), blocks = small
    with pytest.warns(RuntimeWarning, match=r"backend='triton' cannot be used: .*; using 'gather'"):
        out = block_sparse_attention(q, k, v, blocks, backend="triton")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block_sparse_attention(q, k, v, blocks, backend="triton")
    assert torch.equal(out, block_sparse_attention(q, k, v, blocks, backend="gather"))


def test_strict_makes_falling_back_an_error(small):
    (q, k, v), blocks = small
    with pytest.raises(BackendError, match="backend='triton' cannot be used"):
        block_sparse_attention(q, k, v, blocks, backend="triton", strict=True)


def test_flex_refuses_what_it_cannot_do(small):
    (q, k, v), blocks = small
    with pytest.raises(BackendError, match="neither gradients nor the log-sum-exp"):
        block_sparse_attention(q, k, v, blocks, backend="flex", return_lse=True, strict=True)
    uneven = BlockCSR.dense([0, 10, 32], [0, 16, 32])
    with pytest.raises(BackendError, match="needs query blocks of one size"):
        block_sparse_attention(q, k, v, uneven, backend="flex", strict=True)


def test_unknown_backend_names_the_nearest(small):
    (q, k, v), blocks = small
    with pytest.raises(UnknownNameError, match="did you mean 'triton'"):
        block_sparse_attention(q, k, v, blocks, backend="tritn")


def test_mismatched_shapes_are_refused(small):
    (q, k, v), blocks = small
    with pytest.raises(ValueError, match=r"k 20: blocks cover 32 and 32; build the block list"):
        block_sparse_attention(q, k[:, :, :20], v[:, :, :20], blocks)
    with pytest.raises(ValueError, match="repeat key heads"):
        block_sparse_attention(q, k[:, :1], v[:, :1], blocks)
    three = BlockCSR.from_dense([[[1, 1], [1, 1]]] * 3, blocks.q_starts, blocks.kv_starts)
    with pytest.raises(ValueError, match=r"mask_heads=3: must be 1 or the number of heads, 2"):
        block_sparse_attention(q, k, v, three)


def test_triton_reasons():
    assert "GPU" in backend.triton_reason(torch.device("cpu")) or "not installed" in backend.triton_reason(
        torch.device("cpu")
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="flex_attention compiles C++ on a CPU")
def test_compiled_flex_equals_the_truth_for_more_shapes_than_torch_compiles(monkeypatch):
    """Past its limit torch would run flex_attention uncompiled, which attends to everything."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    for length in (1000, 520):
        starts = uniform_starts(length, 128)
        count = len(starts) - 1
        mask = torch.rand(count, count, generator=torch.Generator().manual_seed(0)) < 0.4
        blocks = BlockCSR.from_dense(mask | torch.eye(count, dtype=torch.bool), starts, starts)
        q, k, v = torch.randn(3, 1, 2, length, 32)
        out = block_sparse_attention(q, k, v, blocks, backend="flex", strict=True)
        assert_close(f"out of {length}", naive_block_sparse_attention(q, k, v, blocks, 32**-0.5)[0], out, 2e-6)


def test_flex_on_a_gpu_wants_blocks_that_its_tiles_divide():
    q = torch.empty(1, 1, 240, 16, device="meta")
    even, whole = uniform_starts(240, 120), uniform_starts(240, 128)
    reason = flex_reason(q, BlockCSR.dense(even, even), needs_grad=True, needs_lse=True)
    assert reason == "its GPU kernels need query blocks of a multiple of 128 tokens, these have 120"
    assert flex_reason(q, BlockCSR.dense(whole, whole), needs_grad=True, needs_lse=True) is None
