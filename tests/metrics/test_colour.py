import numpy as np
import pytest
from skimage.color import rgb2lab

from longvid.metrics.colour import blockiness, hue_distance, hue_drift, laplacian, looks
from longvid.metrics.frames import View


def test_looks_of_a_flat_frame_are_its_colour(clips):
    found = looks(View(clips.flat(1, (200, 100, 50))[0]))
    assert found["brightness"] == pytest.approx(0.299 * 200 + 0.587 * 100 + 0.114 * 50, abs=1e-3)
    assert found["contrast"] == pytest.approx(0, abs=1e-3)
    assert found["saturation"] == pytest.approx(0.75)
    assert found["sharpness"] == pytest.approx(0, abs=1e-3)
    assert found["clipped"] == 0
    assert found["blockiness"] == 1
    lab = rgb2lab(np.array([[[200, 100, 50]]], np.uint8))[0, 0]
    assert (found["lab_l"], found["lab_a"], found["lab_b"]) == pytest.approx(tuple(lab), abs=0.05)


def test_contrast_of_a_half_black_half_white_frame_is_half_the_range(clips):
    frame = clips.flat(1, (0, 0, 0))[0]
    frame[:, 32:] = 255
    found = looks(View(frame))
    assert found["contrast"] == pytest.approx(127.5)
    assert found["clipped"] == 1


def test_losing_contrast_lowers_sharpness_and_leaves_detail_alone(clips):
    sharp = clips.texture(96, 96)
    pale = 128 + 0.5 * (sharp - 128)
    a, b = (looks(View(x.round().astype(np.uint8))) for x in (sharp, pale))
    assert b["sharpness"] == pytest.approx(a["sharpness"] / 4, rel=0.1)
    assert b["detail"] == pytest.approx(a["detail"], rel=0.1)


@pytest.mark.parametrize("size", [96, 480], ids=["full-size", "reduced"])
def test_blur_lowers_sharpness_and_detail_even_when_finer_than_the_working_size(clips, size):
    frame = np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype(np.float32)
    blurred = sum(np.roll(frame, (i, j), (0, 1)) for i in (0, 1) for j in (0, 1)) / 4
    a, b = (looks(View(x.astype(np.uint8))) for x in (frame, blurred))
    assert b["sharpness"] < 0.3 * a["sharpness"]


def test_laplacian_is_that_of_full_resolution_luma():
    frame = np.random.default_rng(0).integers(0, 256, (260, 300, 3), dtype=np.uint8)
    view = View(frame)
    assert view.factor == 2
    y = frame.astype(np.float64) @ (0.299, 0.587, 0.114)
    whole = y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:] - 4 * y[1:-1, 1:-1]
    assert np.abs(laplacian(view) - whole[::2, ::2]).max() < 1e-3


def test_blockiness_sees_a_lattice_of_8_pixels_and_no_other(clips):
    noise = np.random.default_rng(0).normal(0, 4, (96, 96, 1))
    mosaic = np.kron(np.random.default_rng(1).uniform(60, 190, (12, 12, 1)), np.ones((8, 8, 1)))
    five = np.kron(np.random.default_rng(1).uniform(60, 190, (20, 20, 1)), np.ones((5, 5, 1)))[:96, :96]
    eight, other = (
        blockiness(View(np.repeat(np.clip(x + noise, 0, 255), 3, axis=-1).astype(np.uint8))) for x in (mosaic, five)
    )
    assert eight > 5
    assert other < 1.5


def test_hue_drift_of_an_unchanged_video_is_none(clips):
    found = hue_drift(clips.still(160), fps=16)
    assert found.similarity == pytest.approx(100)
    assert found.degrees == pytest.approx(0, abs=1e-6)
    assert found.delta_e == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("last", "degrees"), [((255, 255, 0), 60), ((0, 255, 0), 120), ((255, 0, 255), 60), ((0, 255, 255), 180)], ids=str
)
def test_hue_turn_is_measured_round_the_circle(clips, last, degrees):
    video = np.concatenate([clips.flat(160, (255, 0, 0)), clips.flat(160, last)])
    found = hue_drift(video, fps=16)
    assert found.degrees == pytest.approx(degrees, abs=1)
    assert found.similarity == pytest.approx(0)


def test_a_tint_of_two_degrees_is_total_for_the_histogram_formula_and_small_for_the_turn(clips):
    video = np.concatenate([clips.flat(160, (255, 2, 0)), clips.flat(160, (255, 11, 0))])
    found = hue_drift(video, fps=16)
    assert found.similarity == pytest.approx(0)
    assert found.degrees == pytest.approx(2)


def test_grey_pixels_do_not_turn(clips):
    """A grey picture that flickers by one level has every hue: no colour has changed."""
    rng = np.random.default_rng(0)
    video = np.concatenate([clips.flat(160, (120, 120, 120)), clips.flat(160, (120, 120, 120))])
    video[:, :, :, 0] += rng.integers(0, 2, video.shape[:3]).astype(np.uint8)
    video[160:, :, :, 2] += rng.integers(0, 2, (160, *video.shape[1:3])).astype(np.uint8)
    video[:, :8, :8] = (255, 0, 0)
    found = hue_drift(video, fps=16)
    assert found.similarity < 80
    assert found.degrees < 30


def test_delta_e_is_the_distance_of_mean_colours(clips):
    video = np.concatenate([clips.flat(100, (200, 60, 60)), clips.flat(100, (60, 60, 200))])
    a, b = rgb2lab(np.array([[[200, 60, 60], [60, 60, 200]]], np.uint8))[0]
    assert hue_drift(video, fps=16).delta_e == pytest.approx(float(np.linalg.norm(a - b)), abs=0.1)


def test_hue_distance_agrees_with_moving_the_earth_by_hand():
    a, b = np.zeros(180), np.zeros(180)
    a[0], a[90] = 1, 1
    b[179], b[100] = 1, 1
    assert hue_distance(a, b) == pytest.approx((1 * 2 + 10 * 2) / 2)
    assert hue_distance(a, 7 * a) == 0
    assert hue_distance(a, np.zeros(180)) == 0
