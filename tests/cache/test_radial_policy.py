"""Radial attention as a cache policy: nested kept sets, logarithmic memory, and the same sets as the mask's."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid.cache.policies import RadialPolicy, policy_from_config
from longvid.config import CacheConfig
from longvid.errors import InputError
from longvid.kernels.radial import RadialSpec, frame_width, kept_key_frames, rollout_blocks

# Tokens of a latent frame: 8 x 8 pixels a latent, 2 x 2 latents a token.
P480, P720, P768 = (480 // 16) * (832 // 16), (720 // 16) * (1280 // 16), (768 // 16) * (1280 // 16)


def play(policy, blocks, n):
    """Yields (start, resident before, plan) of consecutive blocks, applying what the plan evicts."""
    resident = []
    for start in range(0, blocks * n, n):
        plan = policy.plan(resident, start, n, n, {})
        yield start, list(resident), plan
        resident = [f for f in resident if f not in plan.evict] + list(range(start, start + n))


policies = st.builds(
    RadialPolicy,
    frames_per_block=st.integers(1, 4),
    window=st.sampled_from([-1, 1, 7, 21, 50]),
    sink=st.integers(0, 4),
    dense=st.sampled_from([1, 2, 4, 16]),
)


@settings(deadline=None)
@given(policies, st.integers(1, 4), st.integers(1, 60))
def test_nothing_evicted_is_ever_asked_for_again(policy, n, blocks):
    """A block reads everything that the rule keeps from the whole history, though the rest is long gone."""
    for start, resident, plan in play(policy, blocks, n):
        wanted = [f for f in range(start) if policy.keeps(f, start)]
        assert list(plan.denoise.frames) == wanted
        assert set(wanted) <= set(resident)


@settings(deadline=None)
@given(policies, st.integers(20, 90))
def test_capacity_holds_every_block(policy, blocks):
    n = policy.capacity - policy._most_kept()
    fullest = max(len(plan.denoise.frames) + n for _, _, plan in play(policy, blocks, n))
    assert fullest <= policy.capacity


def test_capacity_grows_with_the_logarithm_of_the_history():
    """The issue's claim: 66 frames in place of 961, for three-frame blocks, one sink, and 960 frames of history."""
    sizes = {w: RadialPolicy(frames_per_block=3, window=w, sink=1).capacity for w in (60, 120, 240, 480, 960, 1920)}
    assert len({sizes[2 * w] - sizes[w] for w in (60, 120, 240, 480, 960)}) == 1
    policy = RadialPolicy(frames_per_block=3, window=960, sink=1)
    fullest = max(len(plan.denoise.frames) + 3 for start, _, plan in play(policy, 700, 3) if start > 960)
    assert fullest <= 67
    assert sizes[960] <= 68


@pytest.mark.parametrize(("tokens", "dense"), [(P480, 16), (P720, 32), (P768, 32)], ids=["480p", "720p", "768x1280"])
@pytest.mark.parametrize("window", [-1, 42])
def test_keeps_what_the_mask_at_that_grid_keeps(tokens, dense, window):
    """`dense` is the paper's rule in frames: the policy and the key-anchored mask keep the same sets."""
    policy = RadialPolicy(frames_per_block=3, window=window, sink=1, dense=dense)
    spec = RadialSpec(anchor="key")
    for now in (1, 5, 33, 99, 400):
        assert [f for f in range(now) if policy.keeps(f, now)] == list(
            kept_key_frames(now, tokens, spec, window=window)
        )


def test_the_mask_over_the_kept_frames_loses_nothing():
    """Block-sparse attention over the policy's frames has as many pairs as over the whole history."""
    tokens, spec = 256, RadialSpec.for_grid(256, anchor="key")
    policy = RadialPolicy(frames_per_block=3, sink=1)
    for start in (30, 120, 301):
        kept = [f for f in range(start) if policy.keeps(f, start)]
        block = list(range(start, start + 3))
        over_kept = rollout_blocks(block, kept + block, tokens, spec)
        over_all = rollout_blocks(block, range(start + 3), tokens, spec)
        assert over_kept.nnz == over_all.nnz


def test_small_grids_are_thinned_from_the_same_distance_as_480p():
    for tokens in (48, 96, 390):
        spec = RadialSpec.for_grid(tokens, anchor="key")
        policy = RadialPolicy(frames_per_block=3, sink=1)
        for now in (10, 40, 200):
            seen = [k for k in range(now) if frame_width(now, k, tokens, spec) is not None]
            assert seen == [f for f in range(now) if policy.keeps(f, now)]
    assert RadialSpec.for_grid(P480) == RadialSpec.for_grid(P768) == RadialSpec()


def test_window_positions_count_the_cache():
    policy = RadialPolicy(frames_per_block=3, positions="window")
    plan = policy.plan([0, 20, 24, 26, 28, 29, 30, 31], 32, 3, 3, {})
    assert plan.denoise.positions + plan.denoise.own_positions == tuple(range(11))
    assert policy.rephase == "all"


def test_from_configuration():
    config = CacheConfig(policy="radial", window=-1, sink=1, recent=16)
    assert policy_from_config(config, 3).capacity < 140  # endless: 65,536 frames of history
    assert policy_from_config(config, 3, total_frames=240).capacity < 55
    with pytest.raises(InputError, match=r"recent=12: .* needs a power of two; nearest 8 or 16"):
        policy_from_config(CacheConfig(policy="radial", recent=12, sink=1), 3)
