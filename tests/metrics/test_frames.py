import itertools

import numpy as np
import pytest
from skimage.color import rgb2hsv, rgb2lab

from longvid.metrics.frames import View, area_average, check_frames, hue, rgb_to_lab, saturation


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_lab_agrees_with_scikit_image(pixels):
    assert np.abs(rgb_to_lab(pixels) - rgb2lab(pixels)).max() < 0.05


def test_hue_and_saturation_agree_with_scikit_image(pixels):
    hsv = rgb2hsv(pixels)
    turn = np.abs(hue(pixels) - 360 * hsv[..., 0])
    assert np.minimum(turn, 360 - turn).max() < 1e-3
    assert np.abs(saturation(pixels) - hsv[..., 1]).max() < 1e-6


def test_grey_and_black_have_no_hue_and_no_saturation():
    greys = np.stack([np.full((2, 2, 3), v, np.uint8) for v in (0, 1, 128, 255)])
    assert not hue(greys).any()
    assert not saturation(greys).any()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (128, 97), (120, 208)])
def test_area_average_keeps_the_mean_of_every_cell(height, width):
    image = np.random.default_rng(1).normal(size=(height, width)).astype(np.float32)
    got = area_average(image, 32, 32)
    rows = np.linspace(0, height, 33).round().astype(int)
    cols = np.linspace(0, width, 33).round().astype(int)
    want = [[image[a:b, c:d].mean() for c, d in itertools.pairwise(cols)] for a, b in itertools.pairwise(rows)]
    assert np.abs(got - np.array(want)).max() < 1e-5


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(128, 128, 1), (64, 96, 1), (480, 832, 4), (720, 1280, 6), (256, 256, 2)]
)
def test_working_size_is_a_whole_fraction_near_128(height, width, factor):
    view = View(np.zeros((height, width, 3), np.uint8))
    assert view.factor == factor
    assert view.rgb.shape == (-(-height // factor), -(-width // factor), 3)


@pytest.mark.parametrize(
    ("frames", "told"),
    [
        (np.zeros((2, 64, 64, 3), np.float32), "float32"),
        (np.zeros((64, 64, 3), np.uint8), r"\[64, 64, 3\]"),
        (np.zeros((2, 64, 64, 4), np.uint8), r"\[2, 64, 64, 4\]"),
        (np.zeros((2, 16, 64, 3), np.uint8), "64x16 pixels"),
        (np.zeros((0, 64, 64, 3), np.uint8), "got 0 frames"),
    ],
)
def test_wrong_frames_are_named(frames, told):
    with pytest.raises(ValueError, match=told):
        check_frames(frames)
