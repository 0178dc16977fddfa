"""Training layouts: who sees whom, at which noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid.training.layouts import draw_layout, draw_sigma, rolling, teacher_forcing


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


@given(seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_drawn_layouts_have_four_lengths_and_valid_noise(seed: int) -> None:
    layout = draw_layout(np.random.default_rng(seed))
    assert len(layout.source) in (15, 21, 27, 39)
    assert layout.span <= 21
    assert layout.sigma.shape[1] == len(layout.source)
    assert layout.mask.any(1).all()
    assert ((layout.sigma >= 0) & (layout.sigma <= 1)).all()


def test_noise_levels_lean_to_the_noisy_side() -> None:
    sigma = draw_sigma(np.random.default_rng(0), (20_000,))
    assert np.median(sigma) == pytest.approx(0.65, abs=0.05)
    assert (sigma < 0.1).mean() > 0.01
