import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid.metrics.seams import (
    Reservoir,
    SeamMeter,
    _resampled_medians,
    block_boundaries,
    is_joint,
    measure_seams,
)


def test_blocks_of_three_latent_frames_begin_where_wan_puts_them():
    assert block_boundaries(50, frames_per_block=3, temporal_stride=4) == [9, 21, 33, 45]
    assert block_boundaries(50, frames_per_block=3, temporal_stride=4, first_block=1) == [1, 13, 25, 37, 49]


@given(per=st.integers(1, 9), stride=st.integers(1, 8), first=st.integers(1, 9), frames=st.integers(1, 300))
def test_every_block_boundary_is_a_joint_of_latent_frames(per, stride, first, frames):
    starts = block_boundaries(frames, frames_per_block=per, temporal_stride=stride, first_block=first)
    assert all(is_joint(s, stride) and 1 <= s < frames for s in starts)
    assert {b - a for a, b in itertools.pairwise(starts)} <= {per * stride}


def test_an_even_pan_has_no_seams(clips):
    video = clips.pan(97, 1)
    for name, seam in measure_seams(video, block_boundaries(97, frames_per_block=3, temporal_stride=4), fps=16).items():
        assert 0.8 < seam.ratio < 1.25, name


def test_a_brightness_step_at_every_block_is_a_seam_in_luma_and_lab(clips):
    video = clips.pan(97, 1).astype(int)
    starts = block_boundaries(97, frames_per_block=3, temporal_stride=4)
    for index, start in enumerate(starts):
        video[start:] += 8 if index % 2 == 0 else -8
    found = measure_seams(np.clip(video, 0, 255).astype(np.uint8), starts, fps=16)
    assert found["luma"].ratio > 10
    assert found["luma"].low > 3
    assert found["luma"].boundary == pytest.approx(8, abs=1)
    assert found["lab"].ratio > 5
    assert found["flow"].ratio < 1.6


def test_a_position_jump_at_every_block_is_a_seam_in_flow_and_not_in_luma(clips):
    wide = clips.texture(96, 400)
    starts = block_boundaries(97, frames_per_block=3, temporal_stride=4)
    at = np.arange(97) + 4 * np.searchsorted(starts, np.arange(97), side="right")
    found = measure_seams(np.stack([wide[:, x : x + 96] for x in at]).astype(np.uint8), starts, fps=16)
    assert found["flow"].ratio == pytest.approx(5, rel=0.1)
    assert found["difference"].ratio > 2


def test_a_seam_at_one_boundary_in_four_shows_in_the_ratio_of_means():
    meter, rng = SeamMeter(), np.random.default_rng(0)
    for frame in range(1, 960):
        boundary = frame % 12 == 9
        meter.update(boundary=boundary, difference=rng.uniform(1, 2) + (10 if boundary and frame % 48 == 9 else 0))
    seam = meter.result()["difference"]
    assert seam.ratio < 1.3
    assert seam.mean_ratio > 2


def test_a_skewed_quantity_without_seams_has_ratio_one():
    """The mean at boundaries over the median elsewhere would be 1.5 here: both sides take the same statistic."""
    meter, rng = SeamMeter(), np.random.default_rng(0)
    for frame in range(1, 3000):
        meter.update(boundary=frame % 12 == 9, luma=float(rng.exponential(3)))
    seam = meter.result()["luma"]
    assert seam.low <= 1 <= seam.high
    assert seam.ratio == pytest.approx(1, abs=0.25)
    assert seam.mean_ratio == pytest.approx(1, abs=0.2)


def test_the_joints_of_the_autoencoder_are_not_taken_for_seams_of_the_rollout():
    meter, rng = SeamMeter(), np.random.default_rng(0)
    for frame in range(1, 961):
        joint = is_joint(frame, 4)
        meter.update(boundary=frame % 12 == 9, joint=joint, flow=(5.7 if joint else 0.3) * rng.uniform(0.9, 1.1))
    seam = meter.result()["flow"]
    assert seam.ratio > 10
    assert seam.latent_ratio == pytest.approx(1, abs=0.05)


def test_a_still_video_has_ratio_one(clips):
    found = measure_seams(clips.still(40), [9, 21, 33], fps=16)
    assert all(seam.ratio == pytest.approx(1, abs=0.05) for seam in found.values())


def test_without_boundaries_there_are_no_seams(clips):
    assert measure_seams(clips.still(10), [], fps=16) == {}


@pytest.mark.parametrize("wrong", [0, 40, -3])
def test_a_boundary_outside_the_video_is_named(clips, wrong):
    with pytest.raises(ValueError, match=rf"boundaries=\[{wrong}\]"):
        measure_seams(clips.still(40), [9, wrong], fps=16)


@pytest.mark.parametrize("n", [5, 6, 40, 301])
def test_medians_drawn_by_rank_are_distributed_as_medians_of_resamples(n):
    values = np.random.default_rng(0).exponential(size=n)
    fast = _resampled_medians(values, 20_000, np.random.default_rng(1))
    slow = np.median(np.random.default_rng(2).choice(values, (20_000, n)), axis=1)
    for q in (0.025, 0.25, 0.5, 0.75, 0.975):
        spread = np.std(slow)
        assert abs(np.quantile(fast, q) - np.quantile(slow, q)) < 0.5 * spread
    assert fast.mean() == pytest.approx(slow.mean(), abs=0.06 * np.std(slow) + 0.01)


def test_reservoir_is_exact_below_its_size_and_a_fair_sample_above():
    small = Reservoir(10)
    for v in range(7):
        small.add(v)
    assert small.values().tolist() == list(range(7))
    large = Reservoir(500)
    for v in range(20_000):
        large.add(v)
    assert len(large.values()) == 500
    assert large.values().mean() == pytest.approx(10_000, abs=1000)
