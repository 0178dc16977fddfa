"""Scene drift: what the median image forgets, with the subject left out."""

import numpy as np
import pytest

from longvid.errors import InputError
from longvid.metrics.scene_drift import SceneDrift, median_without

SIDE, SPAN = 64, 20


def segment(x, *, shade=200, ground=50, y=0.5, radius=0.15):
    """A disc at x (fractions of the side, one a frame) over plain ground, and what the oracle says of it."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    frames = np.full((len(x), SIDE, SIDE, 3), ground, np.uint8)
    for frame, at in zip(frames, x, strict=True):
        frame[np.hypot(columns - at * SIDE, rows - y * SIDE) <= radius * SIDE] = shade
    n = len(x)
    return frames, {"x": x, "y": np.full(n, y), "radius": np.full(n, radius), "count": np.ones(n, int)}


def drift_of(*segments):
    drift = SceneDrift(SPAN)
    for part in segments:
        drift.update(*part)
    return drift


def test_a_subject_that_creeps_through_the_picture_is_no_drift():
    """Its median image is somewhere else in every segment; the ground is what it was."""
    drift = drift_of(*(segment(np.linspace(a, a + 0.1, SPAN)) for a in (0.2, 0.4, 0.7)))
    assert drift.drifts == [0, 0]
    assert drift.colour_shift() == 0


def test_a_ground_that_changes_is_drift_by_as_many_levels():
    still = np.full(SPAN, 0.5)
    assert drift_of(segment(still), segment(still, ground=57), segment(still)).drifts == [7, 0]


def test_a_subject_that_changes_its_shade_is_its_own_and_no_drift_of_the_scene():
    still = np.full(SPAN, 0.5)
    drift = drift_of(segment(still), segment(still, shade=180))
    assert drift.drifts == [0]
    assert drift.colour_shift() == 20


def test_without_a_single_subject_a_segment_has_no_drift():
    still = np.full(SPAN, 0.5)
    frames, seen = segment(still)
    drift = drift_of(segment(still), (frames, seen | {"count": np.full(SPAN, 2)}), segment(still, ground=51))
    assert np.isnan(drift.drifts[0])
    assert drift.drifts[1] == 1


def test_what_a_cut_ends_early_is_dropped():
    still = np.full(SPAN, 0.5)
    frames, seen = segment(still, ground=90)
    drift = drift_of(segment(still), (frames[:7], {name: v[:7] for name, v in seen.items()}))
    drift.cut()
    drift.update(*segment(still, ground=52))
    assert drift.drifts == [2]


def test_a_median_over_what_is_not_hidden():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    hidden = rng.random((9, 4, 4)) < 0.4
    found = median_without(frames, hidden)
    for row, column in np.ndindex(4, 4):
        seen = np.sort(frames[~hidden[:, row, column], row, column], axis=0)
        if len(seen) < 5:
            assert np.isnan(found[row, column]).all()
        else:
            assert found[row, column] == pytest.approx(seen[(len(seen) - 1) // 2])


def test_a_segment_has_frames():
    with pytest.raises(InputError, match="span=0: must be at least 1 frame"):
        SceneDrift(0)
