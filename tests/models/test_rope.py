"""RoPE at any temporal position, against diffusers' own table where that has one."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import Timesteps
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid.models.rope import CallRope, ExactTimesteps, RotaryTables, apply_rotary, axis_dims


@pytest.mark.parametrize("head_dim", [12, 16, 24, 32, 48, 64, 128])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 7)], ids=str)
def test_equals_the_stock_table(head_dim, grid):
    stock = WanRotaryPosEmbed(head_dim, (1, 2, 2), 1024)
    hidden = torch.zeros(1, 4, 9, grid[0] * 2, grid[1] * 2)
    cos, sin = stock(hidden)
    ours = RotaryTables(head_dim, *grid).at(range(9))
    torch.testing.assert_close(ours[0], cos[0, :, :, 0::2].float(), atol=1e-7, rtol=0)
    torch.testing.assert_close(ours[1], sin[0, :, :, 1::2].float(), atol=1e-7, rtol=0)
    again = CallRope(head_dim, (1, 2, 2))(hidden)
    torch.testing.assert_close(again[0], cos.float(), atol=1e-7, rtol=0)
    torch.testing.assert_close(again[1], sin.float(), atol=1e-7, rtol=0)


def test_axis_dims_are_wans():
    assert [axis_dims(d) for d in (12, 32, 128)] == [(4, 4, 4), (12, 10, 10), (44, 42, 42)]


@given(start=st.integers(-50, 2_000_000), gap=st.integers(0, 60))
@settings(max_examples=30, deadline=None)
def test_only_distances_matter_however_far_the_video_is(start, gap):
    """Wan's table ends at 1,024; here a million frames in, dot products are those of the first second."""
    tables = RotaryTables(32, 1, 1)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 32, generator=generator) for _ in range(2))
    near = (tables.rotate(q, [gap]) * tables.rotate(k, [0])).sum()
    far = (tables.rotate(q, [start + gap]) * tables.rotate(k, [start])).sum()
    torch.testing.assert_close(far, near, atol=2e-5, rtol=0)


def test_fractional_positions_lie_between():
    tables = RotaryTables(24, 2, 2)
    x = torch.randn(1, 4, 2, 24)
    half = tables.rotate(x, [0.5])
    time = tables.at([0])
    twice = tables.apply(tables.apply(half, time[0], -time[1]), *tables.at([0.5]))
    torch.testing.assert_close(twice, tables.rotate(x, [1]), atol=1e-5, rtol=0)


def test_tables_of_a_block_are_computed_once():
    tables = RotaryTables(32, 2, 2)
    assert tables.at((3, 4, 5))[0] is tables.at([3, 4, 5])[0]
    for start in range(100):
        tables.at([start])
    assert len(tables._remembered) == tables.REMEMBERED


def test_tables_made_in_inference_mode_serve_autograd_later():
    with torch.inference_mode():
        tables = RotaryTables(32, 2, 2)
        tables.at([0])
    x = torch.randn(1, 4, 2, 32, requires_grad=True)
    tables.rotate(x, [0]).sum().backward()
    assert x.grad is not None


def test_out_and_gradient_paths_agree():
    tables = RotaryTables(12, 2, 2)
    x = torch.randn(2, 8, 3, 12)
    plain = tables.rotate(x, [4, 9])
    out = torch.zeros(2, 20, 3, 12)
    tables.rotate(x, [4, 9], out=out[:, 5:13])
    assert torch.equal(out[:, 5:13], plain)
    graph = x.clone().requires_grad_()
    torch.testing.assert_close(tables.rotate(graph, [4, 9]), plain, atol=1e-6, rtol=0)
    half = apply_rotary(x.bfloat16(), *tables.at([4, 9]))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, atol=0.03, rtol=0.02)


def test_timestep_sinusoid_is_the_stock_one_in_float64():
    t = torch.tensor([0.0, 1.0, 555.5556, 937.5, 1000.0])
    stock = Timesteps(64, flip_sin_to_cos=True, downscale_freq_shift=0)(t)
    ours = ExactTimesteps(64)(t)
    torch.testing.assert_close(ours, stock, atol=2e-4, rtol=0)
    assert float(ours[-1, 0]) == pytest.approx(0.5623790762907029, abs=1e-7)  # cos(1000)


def test_an_odd_head_dim_is_refused():
    with pytest.raises(ValueError, match="head_dim=13"):
        RotaryTables(13, 1, 1)
