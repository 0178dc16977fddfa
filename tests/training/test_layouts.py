"""Training layouts: who sees whom, at which noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid.errors import UnknownNameError
from longvid.training.layouts import (
    LAYOUTS,
    diffusion_forcing,
    draw_layout,
    draw_sigma,
    largest_batch,
    rolling,
    teacher_forcing,
)


def drawn(kind: str, seed: int, process: int = 1, **how: int):
    return draw_layout(kind, *(np.random.default_rng([seed, i]) for i in (0, process)), **how)


@given(blocks=st.integers(2, 7), block=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_noisy_block_sees_the_clean_past_and_itself(blocks: int, block: int, seed: int) -> None:
    layout = teacher_forcing(np.random.default_rng(seed), 2, blocks, block)
    group = layout.source // block
    for q in range(len(group)):
        for k in range(len(group)):
            same_copy = layout.loss[q] == layout.loss[k]
            allowed = (same_copy and group[q] == group[k]) or (not layout.loss[k] and group[k] < group[q])
            assert layout.mask[q, k] == allowed
    assert layout.loss.sum() == blocks * block


@given(context=st.integers(0, 4), window=st.integers(1, 5), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_rolling_window_is_joint_and_its_noise_never_falls(context: int, window: int, seed: int) -> None:
    layout = rolling(np.random.default_rng(seed), 5, context, window)
    assert layout.mask[layout.loss].all()
    assert not layout.mask[~layout.loss][:, layout.loss].any()
    noise = layout.sigma[:, layout.loss]
    assert (np.diff(noise, axis=1) >= -1e-9).all()
    assert noise.min() >= 0
    assert noise.max() <= 1


@given(blocks=st.integers(1, 7), block=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_diffusion_forcing_is_causal_over_noisy_blocks_at_levels_of_their_own(
    blocks: int, block: int, seed: int
) -> None:
    layout = diffusion_forcing(np.random.default_rng(seed), 4, blocks, block)
    assert layout.source.tolist() == list(range(blocks * block))
    assert layout.loss.all()
    for q in range(blocks * block):
        for k in range(blocks * block):
            assert layout.mask[q, k] == (k // block <= q // block)
    levels = layout.sigma.reshape(4, blocks, block)
    assert (levels == levels[..., :1]).all()
    assert len(np.unique(levels)) == 4 * blocks


def test_levels_of_diffusion_forcing_are_uniform_and_independent() -> None:
    levels = diffusion_forcing(np.random.default_rng(0), 20_000, 3).sigma[:, ::3]
    np.testing.assert_allclose(
        np.quantile(levels, [0.1, 0.5, 0.9], axis=0), np.full((3, 3), [[0.1], [0.5], [0.9]]), atol=0.02
    )
    np.testing.assert_allclose(np.corrcoef(levels.T), np.eye(3), atol=0.03)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_the_layout_that_is_drawn_is_the_one_that_is_named(seed: int) -> None:
    forcing = drawn("teacher-forcing", seed)
    assert forcing.name == f"forcing{forcing.span}"
    assert (forcing.sigma[:, ~forcing.loss] == 0).all()  # a clean history, in every sample
    levels = forcing.sigma[:, forcing.loss].reshape(len(forcing.sigma), -1, 3)
    assert (levels == levels[..., :1]).all()
    assert not forcing.mask[forcing.loss][:, forcing.loss].all()  # no joint window
    diffusion = drawn("diffusion-forcing", seed)
    assert diffusion.name == f"diffusion{diffusion.span}"
    assert diffusion.loss.all()
    assert len(diffusion.source) in (9, 15, 21)


def test_the_mixture_has_windows_and_a_context_that_is_noised_in_a_third() -> None:
    layouts = [drawn("mixed", seed) for seed in range(300)]
    windows = np.mean([layout.name == "rolling" for layout in layouts])
    assert windows == pytest.approx(0.28, abs=0.08)
    noised = np.concatenate([(x.sigma[:, ~x.loss] > 0).any(1) for x in layouts if x.name != "rolling"])
    assert noised.mean() == pytest.approx(0.35, abs=0.05)


@given(kind=st.sampled_from(LAYOUTS), seed=st.integers(0, 10_000), frames=st.integers(1, 210))
@settings(max_examples=80, deadline=None)
def test_drawn_layouts_have_few_lengths_valid_noise_and_one_shape_on_every_process(
    kind: str, seed: int, frames: int
) -> None:
    layout, other = (drawn(kind, seed, process, frames=frames) for process in (1, 2))
    assert len(layout.source) in ((9, 15, 21) if kind == "diffusion-forcing" else (15, 21, 27, 39))
    assert layout.span <= 21
    assert layout.sigma.shape[1] == len(layout.source)
    assert 1 <= layout.sigma.shape[0] <= largest_batch(kind, frames)
    assert layout.sigma.size <= max(frames, len(layout.source))
    assert layout.mask.any(1).all()
    assert ((layout.sigma >= 0) & (layout.sigma <= 1)).all()
    assert layout.name == other.name
    assert np.array_equal(layout.mask, other.mask)
    assert layout.sigma.shape == other.sigma.shape
    assert not np.array_equal(layout.sigma, other.sigma)


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'teacher-forcing'"):
        drawn("teacher_forcin", 0)


def test_noise_levels_lean_to_the_noisy_side() -> None:
    sigma = draw_sigma(np.random.default_rng(0), (20_000,))
    assert np.median(sigma) == pytest.approx(0.65, abs=0.05)
    assert (sigma < 0.1).mean() > 0.01
