import numpy as np
import pytest

from longvid.metrics.consistency import Thumbs, loop_back, measure_consistency, similarity
from longvid.metrics.frames import View


def naive_similarity(a, b):
    """SSIM of Wang et al. 2004, eq. 13, block by block."""
    c1, c2, values = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for i in range(0, 32, 8):
        for j in range(0, 32, 8):
            x, y = a[i : i + 8, j : j + 8].astype(np.float64), b[i : i + 8, j : j + 8].astype(np.float64)
            covariance = ((x - x.mean()) * (y - y.mean())).mean()
            values.append(
                (2 * x.mean() * y.mean() + c1)
                * (2 * covariance + c2)
                / ((x.mean() ** 2 + y.mean() ** 2 + c1) * (x.var() + y.var() + c2))
            )
    return np.mean(values)


def test_similarity_is_ssim_of_the_thumbnails(clips):
    a, b = View(clips.pan(1, 1)[0]), View(clips.pan(1, 1, start=7)[0])
    assert similarity(a, b) == pytest.approx(naive_similarity(a.thumb, b.thumb), abs=1e-4)
    assert similarity(a, a) == pytest.approx(1, abs=1e-5)


def test_ring_of_thumbnails_looks_back_past_its_wrap(clips):
    views = [View(f) for f in clips.pan(23, 3)]
    ring = Thumbs(6)
    for view in views:
        ring.add(view.thumb)
    got = ring.back(np.array([1, 3, 5]))
    assert got == pytest.approx([similarity(views[22], views[22 - lag]) for lag in (1, 3, 5)], abs=1e-5)
    with pytest.raises(ValueError, match="only 6 thumbnails"):
        ring.back(np.array([6]))


def test_a_still_video_is_alike_at_every_lag(clips):
    found = measure_consistency(clips.still(16 * 12), fps=16)
    assert found.lags == (0.25, 0.5, 1, 2, 5, 10)
    assert found.similarity == pytest.approx([1] * 6, abs=1e-5)
    assert found.pairs == tuple(96 - round(8 * lag) for lag in found.lags)


def test_similarity_falls_with_the_lag_of_a_pan(clips):
    found = measure_consistency(clips.pan(16 * 8, 1, cell=48), fps=16, lags=(0.25, 0.5, 1, 2))
    assert list(found.similarity) == sorted(found.similarity, reverse=True)
    assert found.similarity[0] > found.similarity[-1] + 0.3


def test_a_cycle_returns_at_its_period(clips):
    pan = clips.pan(32, 3)
    cycle = np.concatenate([pan] * 4)
    found = dict(zip((1, 2, 3), measure_consistency(cycle, fps=16, lags=(1, 2, 3)).similarity, strict=True))
    assert found[2] == pytest.approx(1, abs=1e-4)
    assert max(found[1], found[3]) < 0.6


def test_a_copy_of_the_start_is_a_loop_back_at_its_time(clips):
    video = clips.wander(16 * 30)
    video[16 * 20 : 16 * 22] = video[8 : 8 + 32]
    found = loop_back(video, fps=16)
    assert found.events == 1
    assert found.at[0] == pytest.approx(20, abs=0.6)
    assert found.share == pytest.approx(2 / 26, abs=0.03)
    assert found.closest < 0.01


def test_a_video_that_never_returns_has_no_loop_back(clips):
    found = loop_back(clips.wander(16 * 20), fps=16)
    assert found.events == 0
    assert found.share == 0
    assert found.closest > 0.3


def test_a_still_scene_never_left_its_start_and_does_not_loop(clips):
    found = loop_back(clips.still(16 * 20), fps=16)
    assert (found.events, found.share) == (0, 0)
    assert np.isnan(found.closest)


def test_a_single_frame_that_passes_the_start_is_no_loop_back(clips):
    video = clips.wander(16 * 20)
    video[16 * 12] = video[3]
    assert loop_back(video, fps=16).events == 0


def test_repeated_falls_are_counted_one_by_one(clips):
    video = clips.wander(16 * 40)
    for second in (10, 20, 30):
        video[16 * second : 16 * (second + 1)] = video[:16]
    assert loop_back(video, fps=16).events == 3


def test_a_start_that_goes_on_a_while_is_no_fall_back(clips):
    """The first seconds after the start are still near it: the video has not left yet."""
    video = clips.wander(16 * 24)
    video[16 * 4 : 16 * 6] = video[16 * 2 : 16 * 4]
    assert loop_back(video, fps=16).events == 0
