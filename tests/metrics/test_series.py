import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid.metrics.series import Bins, Series, slope


@settings(max_examples=60, deadline=None)
@given(
    updates=st.integers(1, 400), width=st.integers(1, 7), capacity=st.sampled_from([2, 4, 16]), seed=st.integers(0, 9)
)
@pytest.mark.parametrize("reduce", ["mean", "min"])
def test_bins_are_means_or_minima_of_equal_stretches_in_fixed_memory(updates, width, capacity, seed, reduce):
    rows = np.random.default_rng(seed).normal(size=(updates, 2))
    bins = Bins(2, width, capacity=capacity, reduce=reduce)
    for row in rows:
        bins.update(row)
    got = bins.values()
    assert len(got) <= capacity
    assert bins.width % width == 0
    take = {"mean": np.mean, "min": np.min}[reduce]
    for i, row in enumerate(got):
        assert np.allclose(row, take(rows[i * bins.width : (i + 1) * bins.width], axis=0))


def test_bins_leave_nan_out_of_a_mean():
    bins = Bins(2, 3)
    for row in ([1, np.nan], [2, np.nan], [6, np.nan]):
        bins.update(np.array(row))
    mean, nothing = bins.values()[0]
    assert mean == 3
    assert np.isnan(nothing)


def test_slope_of_an_exact_line_is_exact():
    x = np.arange(100) / 60
    found = slope(x, 3.5 * x + 2)
    assert found.per_minute == pytest.approx(3.5)
    assert found.low == found.high == found.per_minute
    assert found.clear


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_slope_interval_covers_the_truth_although_frames_are_not_independent(correlation):
    """Least squares that takes bins for independent covers 95 % only without correlation: under 55 % at 0.9."""
    rng, n, hits, naive = np.random.default_rng(0), 120, 0, 0
    x = np.arange(n) * 0.5 / 60
    for _ in range(200):
        noise, y = rng.normal(size=n + 100), np.zeros(n + 100)
        for i in range(1, n + 100):
            y[i] = correlation * y[i - 1] + noise[i]
        y = y[100:] + 3 * x
        found = slope(x, y)
        hits += found.low <= 3 <= found.high
        residual = y - np.polyval(np.polyfit(x, y, 1), x)
        reach = 1.96 * np.sqrt(residual @ residual / (n - 2) / ((x - x.mean()) ** 2).sum())
        naive += abs(np.polyfit(x, y, 1)[0] - 3) <= reach
    assert hits / 200 >= 0.89
    if correlation == 0.9:
        assert naive / 200 < 0.55


@pytest.mark.parametrize("period", [3.7, 16.0])
def test_a_cycle_of_day_and_night_is_no_drift(period):
    x = np.arange(120) * 0.5 / 60
    for phase in np.linspace(0, 1, 12, endpoint=False):
        assert not slope(x, 60 * np.sin(2 * np.pi * (60 * x / period + phase))).clear


def test_a_collapse_in_the_middle_shows_as_the_worst_segment_where_last_minus_first_is_zero():
    series = Series(("quality",), fps=16)
    for frame in range(60 * 16):
        second = frame / 16
        series.update(quality=20.0 if 30 <= second < 35 else 100.0)
    drift = series.drift("quality")
    assert drift.change == 0
    assert drift.worst == 20
    assert drift.worst_at == 30
    assert drift.worst_change == -80
    assert drift.segment_seconds == 5


def test_first_and_last_segment_of_a_ramp():
    series = Series(("level", "other"), fps=10)
    for frame in range(600):
        series.update(level=frame / 10)
    drift = series.drift("level")
    assert drift.first == pytest.approx(2.45)
    assert drift.last == pytest.approx(57.45)
    assert drift.worst_at == 55
    assert drift.slope.per_minute == pytest.approx(60)
    assert drift.spread == pytest.approx(np.std(np.arange(12) * 5.0))


def test_last_segment_ends_with_the_video_when_segments_do_not_divide_it():
    series = Series(("level",), fps=10)
    for frame in range(230):
        series.update(level=frame / 10)
    assert series.drift("level").last == pytest.approx(20.45)


def test_short_video_has_thirds_for_segments_and_a_shorter_one_has_no_drift():
    series = Series(("level",), fps=16)
    for _ in range(6 * 16):
        series.update(level=1.0)
    assert series.drift("level").segment_seconds == 2
    short = Series(("level",), fps=16)
    short.update(level=1.0)
    with pytest.raises(ValueError, match=r"0\.1 s, a drift needs 2\.0 s"):
        short.drift("level")


def test_unknown_quantity_is_named():
    with pytest.raises(ValueError, match="brigthness: not one of brightness"):
        Series(("brightness",), fps=16).update(brigthness=1.0)
