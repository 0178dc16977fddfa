import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from longvid.metrics.bootstrap import complete_pairs, judge_drift, mean_interval, paired_difference, paired_ratio


def scores(rng, prompts=24, seeds=2, *, between=2.0, within=0.5):
    """Prompts differ a lot, seeds of a prompt a little."""
    return rng.normal(10, between, (prompts, 1)) + rng.normal(0, within, (prompts, seeds))


@pytest.mark.parametrize("prompts", [8, 24])
def test_interval_of_the_mean_covers_the_truth_at_its_level(prompts):
    """A plain bootstrap interval of 8 prompts covers 88 %."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        found = mean_interval(scores(rng, prompts), resamples=500)
        hits += found.low <= 10 <= found.high
    assert 0.915 <= hits / 200 <= 0.99


@pytest.mark.parametrize("prompts", [2, 3, 5])
def test_an_interval_of_few_prompts_is_students(prompts):
    table = scores(np.random.default_rng(0), prompts)
    found = mean_interval(table)
    want = stats.t.interval(0.95, prompts - 1, table.mean(), stats.sem(table.mean(axis=1)))
    assert (found.low, found.high) == pytest.approx(want)


def test_five_prompts_that_agree_are_not_clear_and_six_are():
    gap = np.arange(12.0)[:, None]
    assert not paired_difference(gap[:5] + 1, np.zeros((5, 1))).clear
    assert paired_difference(gap[:6] + 1, np.zeros((6, 1))).clear


def test_seeds_of_a_prompt_are_not_taken_for_independent_prompts():
    """The same 8 prompts with 50 nearly equal seeds each know no more than 8 prompts."""
    rng = np.random.default_rng(0)
    few = rng.normal(10, 2, (8, 1))
    many = few + rng.normal(0, 0.01, (8, 50))
    a, b = mean_interval(few), mean_interval(many)
    assert b.high - b.low == pytest.approx(a.high - a.low, rel=0.05)


def test_pairing_finds_what_two_separate_intervals_cannot():
    rng = np.random.default_rng(1)
    base = scores(rng, between=5.0)
    better = base - 0.4 + rng.normal(0, 0.3, base.shape)
    apart, together = [mean_interval(better), mean_interval(base)], paired_difference(better, base)
    assert apart[0].high > apart[1].low
    assert together.clear
    assert together.low < -0.4 < together.high


def test_no_difference_is_not_clear_and_equal_tables_are_exactly_zero():
    rng = np.random.default_rng(2)
    base = scores(rng)
    assert not paired_difference(base + rng.normal(0, 1, base.shape), base).clear
    same = paired_difference(base, base)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)


def test_ratio_is_of_means_and_covers_it():
    rng = np.random.default_rng(3)
    base = np.exp(rng.normal(0, 0.5, (40, 2)))
    found = paired_ratio(1.5 * base * np.exp(rng.normal(0, 0.05, base.shape)), base)
    assert found.low < 1.5 < found.high
    assert found.high - found.low < 0.2


@settings(max_examples=10, deadline=None)
@given(shift=st.floats(-5, 5), scale=st.floats(0.1, 10), seed=st.integers(0, 100))
def test_interval_moves_and_scales_with_the_scores(shift, scale, seed):
    """Up to ties between resampled means, which rounding may break the other way."""
    table = scores(np.random.default_rng(seed), prompts=12)
    a, b = mean_interval(table, resamples=2000), mean_interval(scale * table + shift, resamples=2000)
    want = tuple(scale * v + shift for v in (a.low, a.estimate, a.high))
    assert (b.low, b.estimate, b.high) == pytest.approx(want, abs=0.01 * scale * (a.high - a.low))
    assert a.low <= a.estimate <= a.high


def test_the_same_seed_gives_the_same_interval():
    table = scores(np.random.default_rng(4))
    assert mean_interval(table) == mean_interval(table)


def tables(drift_by, motion_by):
    rng = np.random.default_rng(5)
    drift, motion = scores(rng), np.abs(scores(rng)) / 5
    noise = rng.normal(0, 0.2, drift.shape)
    return drift + drift_by + noise, drift, motion * motion_by * (1 + noise / 20), motion


@pytest.mark.parametrize(
    ("drift_by", "motion_by", "verdict"),
    [
        (-2, 1.0, "better"),
        (-2, 0.05, "bought with motion"),
        (-2, 0.85, "bought with motion"),
        (2, 1.0, "worse"),
        (0, 1.0, "no clear difference"),
    ],
    ids=["better", "frozen", "slower", "worse", "same"],
)
def test_less_drift_wins_only_with_its_motion_kept(drift_by, motion_by, verdict):
    assert judge_drift(*tables(drift_by, motion_by)).verdict == verdict


def test_motion_that_is_shown_neither_kept_nor_lost_is_left_open():
    drift, base, motion, base_motion = tables(-2, 1.0)
    wild = motion * np.where(np.arange(len(motion)) % 2, 0.6, 1.4)[:, None]
    assert judge_drift(drift, base, wild, base_motion).verdict == "motion unclear"


def test_wrong_tables_are_told():
    good = np.ones((4, 2))
    with pytest.raises(ValueError, match=r"scores \[4, 2\], baseline \[4, 3\]"):
        paired_difference(good, np.ones((4, 3)))
    with pytest.raises(ValueError, match="prompts >= 2"):
        mean_interval(np.ones((1, 2)))
    bad = good.copy()
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match="baseline: prompt 2, seed 1 is nan"):
        paired_difference(good, bad)
    with pytest.raises(ValueError, match="level=95"):
        mean_interval(scores(np.random.default_rng(0)), level=95)
    with pytest.raises(ValueError, match="a ratio needs positive ones"):
        paired_ratio(good, good - 1)


def test_prompts_that_one_method_lacks_are_left_out_of_all():
    a, b = np.arange(8.0).reshape(4, 2), np.ones((4, 2))
    b[1, 0] = np.nan
    left, kept = complete_pairs({"a": a, "b": b})
    assert kept.tolist() == [0, 2, 3]
    assert left["a"].tolist() == a[[0, 2, 3]].tolist()
    with pytest.raises(ValueError, match="shapes differ"):
        complete_pairs({"a": a, "b": b[:3]})


def test_an_interval_prints_itself():
    found = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert f"{found:.1f}" == f"2.5 [{found.low:.1f}, {found.high:.1f}]"
