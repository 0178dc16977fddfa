import itertools

import cv2
import numpy as np
import pytest

from longvid.metrics import extras
from longvid.metrics.extras import MissingExtraError
from longvid.metrics.frames import View
from longvid.metrics.motion import MotionMeter, is_dynamic, measure_motion
from longvid.metrics.reader import VideoReader
from longvid.training import world


@pytest.mark.parametrize("step", [1, 2, 4])
def test_flow_of_a_pan_is_its_speed(clips, step):
    found = measure_motion(clips.pan(33, step), fps=16)
    assert found.mean == pytest.approx(step, rel=0.1)
    assert found.top5 == pytest.approx(step, rel=0.15)
    assert found.per_second == pytest.approx(step * 16 / 96, rel=0.15)
    assert found.jerk < 0.1 * step


def test_flow_is_in_pixels_of_the_full_frame_whatever_the_working_size(clips):
    found = measure_motion(clips.pan(9, 6, size=384), fps=16)  # worked on at a third
    assert found.mean == pytest.approx(6, rel=0.1)


def test_still_video_has_no_motion_and_perfect_smoothness(clips):
    found = measure_motion(clips.still(40), fps=16)
    assert found.top5 < 0.01
    assert found.smoothness == pytest.approx(1, abs=1e-6)
    assert found.dynamic_degree == found.moving_pairs == 0


def test_a_frozen_picture_stays_still_in_a_lossy_file(save):
    """DIS alone finds pixels of motion in a codec's noise on the flat parts of a night sky."""
    night = world.render(world.Scene(colour="red", shape="star", motion="bounce", background="stars"), 1, frames=1)
    video = np.stack(list(VideoReader(save(np.repeat(night, 49, axis=0), "night.mp4", codec="h264"))))
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [View(frame).gray for frame in video]
    assert max(np.abs(flow.calc(a, b, None)).max() for a, b in itertools.pairwise(grey)) > 1
    found = measure_motion(video, fps=16)
    assert found.top5 < 0.02
    assert found.dynamic_degree == found.moving_pairs == 0


def test_a_pan_of_a_quarter_pixel_is_still_motion(clips):
    wide = clips.texture(384, 600, cell=24)
    video = [wide[:, t : t + 384].reshape(96, 4, 96, 4, 3).mean(axis=(1, 3)) for t in range(33)]
    assert measure_motion(np.stack(video).astype(np.uint8), fps=16).mean == pytest.approx(0.25, rel=0.25)


def test_opposite_motions_do_not_cancel(clips):
    """HeliosBench's amplitude averages signed flow: two halves moving apart would be "still"."""
    right = clips.pan(17, 2)
    both = np.concatenate([right[:, :48], right[::-1, 48:]], axis=1)
    assert measure_motion(both, fps=16).mean == pytest.approx(2, rel=0.15)


def test_a_small_fast_subject_shows_in_the_top_5_percent_and_not_in_the_mean(clips):
    found = measure_motion(clips.walker(49, step=2, side=24), fps=16)
    assert found.top5 == pytest.approx(2, rel=0.25)
    assert found.mean < 0.5 * found.top5


@pytest.mark.parametrize(
    ("moving", "dynamic"), [(3, False), (4, True), (16, True)], ids=["3-of-16", "4-of-16", "16-of-16"]
)
def test_dynamic_degree_rule_is_a_quarter_of_the_pairs_above_6_over_256(moving, dynamic):
    side = 256
    top5 = np.where(np.arange(16) < moving, 6.01, 5.99)
    assert is_dynamic(top5, side) is dynamic


@pytest.mark.parametrize(("fps", "step", "degree"), [(8, 2, 0), (8, 3, 1), (16, 1, 0), (16, 2, 1), (24, 1, 1)], ids=str)
def test_dynamic_degree_measures_at_8_hz_whatever_the_frame_rate(clips, fps, step, degree):
    """The threshold at 96 pixels is 2.25 px in an eighth of a second: 2 px stay under it, 3 and 4 px exceed it."""
    found = measure_motion(clips.pan(4 * fps + 1, step), fps=fps)
    assert found.dynamic_degree == degree
    assert found.moving_pairs == degree


def test_half_of_the_clips_dynamic_is_a_half(clips):
    video = np.concatenate([clips.pan(64, 3), clips.still(65, seed=0)])
    assert measure_motion(video, fps=16).dynamic_degree == pytest.approx(0.5)


def test_a_video_that_falls_apart_moves_more_and_its_smoothness_tells(clips):
    sound, noise = measure_motion(clips.pan(33, 2), fps=16), measure_motion(clips.noise(33), fps=16)
    assert noise.top5 > sound.top5
    assert noise.dynamic_degree == 1
    assert noise.smoothness < 0.85 < 0.98 < sound.smoothness


def test_jitter_costs_smoothness_and_counts_as_jerk(clips):
    wide = clips.texture(96, 300)
    at = 2 * np.arange(33)
    smooth = np.stack([wide[:, x : x + 96] for x in at]).astype(np.uint8)
    jitter = np.stack([wide[:, x : x + 96] for x in at + 3 * (np.arange(33) % 2)]).astype(np.uint8)
    a, b = measure_motion(smooth, fps=16), measure_motion(jitter, fps=16)
    assert a.smoothness > b.smoothness + 0.02
    assert b.jerk > 10 * a.jerk


def test_missing_opencv_is_told_with_the_extra_to_install(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(extras, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"motion \(optical flow\) needs OpenCV.*pip install 'longvid\[eval\]'"):
        MotionMeter(16)


def test_too_short_is_told(clips):
    with pytest.raises(ValueError, match="needs at least 3"):
        measure_motion(clips.still(2), fps=16)
