"""The Triton attention kernels in Triton's interpreter against the float64 truth, on awkward shapes.

pytest -m interpreter tests/kernels
"""

import pytest
import torch
from attention_cases import CASES, AttentionCase, assert_close, check_attention

pytest.importorskip("triton")

from longvid.kernels.attention import block_sparse_attention, choose_backend
from longvid.kernels.attention.gather import gather_block_sparse_attention
from longvid.kernels.attention.tiling import tiling
from longvid.kernels.radial import RadialSpec, radial_blocks, rollout_blocks

pytestmark = pytest.mark.interpreter


@pytest.fixture(scope="module")
def triton_attention():
    from longvid.kernels.attention.fused import triton_block_sparse_attention

    return triton_block_sparse_attention


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernels_equal_the_truth_with_gradients(case, triton_attention):
    check_attention(case, triton_attention)


@pytest.mark.parametrize(
    "blocks",
    [
        radial_blocks(6, 24, RadialSpec.wan(block=16, split_threshold=8)),
        radial_blocks(4, 26, RadialSpec.hunyuan(block=16, split_threshold=8), total=4 * 26 + 10),
        rollout_blocks([9, 10, 11], [0, 11, 10, -1, 9, 8, 5], 40, RadialSpec(block=16, split_threshold=8)),
    ],
    ids=["wan-6x24", "hunyuan-4x26-text", "rollout-ring-buffer"],
)
def test_radial_patterns_equal_the_plain_twin(blocks, triton_attention):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 2, blocks.q_len, 32, generator=generator)
    k, v = torch.randn(2, 1, 2, blocks.kv_len, 32, generator=generator)
    out, lse = triton_attention(q, k, v, blocks, 32**-0.5)
    twin, twin_lse = gather_block_sparse_attention(q, k, v, blocks, 32**-0.5)
    assert_close("out", twin, out, 2e-6)
    assert_close("lse", twin_lse, lse, 2e-6)


def test_output_keeps_the_transformers_memory_layout(triton_attention):
    case = next(case for case in CASES if case.transposed)
    q, k, v, *_ = case.draw()
    out, _ = triton_attention(q, k, v, case.blocks(), 1.0)
    assert out.stride() == q.stride()
    assert out.transpose(1, 2).is_contiguous()


def test_a_strided_head_dim_is_copied(triton_attention):
    case = AttentionCase("strided", 32, 32, 16, 16, 16)
    q, k, v, *_ = case.draw()
    blocks = case.blocks()
    strided = q.transpose(2, 3).contiguous().transpose(2, 3)
    assert strided.stride(-1) != 1
    assert torch.equal(triton_attention(strided, k, v, blocks, 1.0)[0], triton_attention(q, k, v, blocks, 1.0)[0])


def test_auto_takes_triton_in_the_interpreter():
    case = CASES[0]
    q, k, v, *_ = case.draw()
    assert choose_backend("auto", q, case.blocks(), needs_grad=True, needs_lse=True) == "triton"
    assert block_sparse_attention(q, k, v, case.blocks(), strict=True).shape == q.shape


@pytest.mark.parametrize("kernel", ["forward", "backward_q", "backward_kv"])
@pytest.mark.parametrize("arch", [80, 90, 100, 120, "gfx942"])
def test_tiles_shrink_to_the_blocks(kernel, arch):
    small = tiling(kernel, arch, 64, 2, longest_q=10, longest_kv=20)
    assert small.block_m == 16
    assert small.block_n == 32
    assert tiling(kernel, arch, 128, 2).block_m <= 128
