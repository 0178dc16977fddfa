import itertools

import numpy as np
import pytest

from longvid.metrics.flicker import measure_flicker


def test_score_is_vbench_formula_over_all_pairs_and_channels():
    frames = np.random.default_rng(0).integers(0, 256, (7, 40, 48, 3), dtype=np.uint8)
    pairs = [np.abs(a.astype(float) - b.astype(float)).mean() for a, b in itertools.pairwise(frames)]
    assert measure_flicker(frames).score == pytest.approx((255 - np.mean(pairs)) / 255, abs=1e-9)


def test_a_still_video_does_not_flicker(clips):
    found = measure_flicker(clips.still(20))
    assert found.score == 1
    assert found.luminance == 0


def test_a_steady_fade_is_no_flutter(clips):
    fade = np.concatenate([clips.flat(1, (v, v, v)) for v in range(20, 220, 2)])
    assert measure_flicker(fade).luminance == pytest.approx(0, abs=1e-4)


def test_flutter_of_brightness_is_measured_in_grey_levels(clips):
    levels = [100 + 6 * (t % 2) for t in range(64)]
    flutter = np.concatenate([clips.flat(1, (v, v, v)) for v in levels])
    assert measure_flicker(flutter).luminance == pytest.approx(6, rel=0.01)


def test_motion_lowers_the_score_and_not_the_flutter(clips):
    """VBench's formula cannot tell a pan from flicker, which is why it is for still clips."""
    pan = measure_flicker(clips.pan(33, 4))
    assert pan.score < 0.97
    assert pan.luminance < 1.0


def test_one_frame_is_too_few(clips):
    with pytest.raises(ValueError, match="needs at least 2"):
        measure_flicker(clips.still(1))
