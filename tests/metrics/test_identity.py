import numpy as np
import pytest

from longvid.metrics.identity import identity_drift, median_image
from longvid.training import world

SECONDS = 20


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_median_image_is_the_median(n):
    frames = np.random.default_rng(0).integers(0, 256, (6, 7, 3, n), dtype=np.uint8)
    assert np.array_equal(median_image(frames), np.median(frames, axis=-1))


def test_a_subject_crossing_a_still_scene_is_no_drift(clips):
    found = identity_drift(clips.walker(16 * SECONDS), fps=16)
    assert found.mean < 0.2
    assert found.counts
    assert found.motion > 1.5
    assert len(found.segments) == 3


def test_a_scene_replaced_by_another_drifts_by_their_difference(clips):
    a, b = clips.walker(16 * 10, seed=0), clips.walker(16 * 10, seed=5)
    found = identity_drift(np.concatenate([a, b]), fps=16)
    gap = np.abs(clips.still(1, seed=0).astype(float) - clips.still(1, seed=5)).mean()
    assert found.segments[0] < 0.2
    assert found.last == pytest.approx(gap, rel=0.1)
    assert found.worst == max(found.segments)
    assert found.worst_at in (10, 15)


def test_a_frozen_video_scores_best_and_does_not_count(clips):
    """The trap of every drift metric: whoever stands still drifts least."""
    still, alive = identity_drift(clips.still(16 * SECONDS), fps=16), identity_drift(clips.walker(16 * SECONDS), fps=16)
    assert still.mean <= alive.mean
    assert still.frozen == 1
    assert not still.counts
    assert still.motion == pytest.approx(0, abs=0.01)


def test_a_video_that_freezes_half_way_does_not_count(clips):
    video = clips.walker(16 * SECONDS)
    video[16 * 10 :] = video[16 * 10]
    found = identity_drift(video, fps=16)
    assert found.frozen == pytest.approx(0.5, abs=0.02)
    assert not found.counts


def test_a_collapse_that_recovers_shows_as_worst_and_not_as_last(clips):
    video = clips.walker(16 * 25)
    video[16 * 10 : 16 * 15] = clips.walker(16 * 5, seed=9)
    found = identity_drift(video, fps=16)
    assert found.worst_at == 10
    assert found.last < 0.3 < 5 < found.worst


def test_under_two_segments_is_told(clips):
    with pytest.raises(ValueError, match=r"9\.0 s, an identity drift needs two segments of 5\.0 s"):
        identity_drift(clips.walker(16 * 9), fps=16)


def test_a_scene_that_moves_drifts_though_nothing_is_wrong_with_it():
    """Real video: drifting clouds change the median image, stars that stand do not."""
    drift = {}
    for background in ("sky", "stars"):
        scene = world.Scene(colour="red", shape="ball", motion="circle", background=background)
        drift[background] = identity_drift(world.render(scene, 0, frames=16 * SECONDS), fps=16)
        assert drift[background].counts
    assert drift["sky"].last > 5
    assert drift["stars"].worst < 1.3
