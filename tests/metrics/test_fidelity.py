import numpy as np
import pytest

from longvid.metrics.fidelity import compare, psnr


def test_equal_videos_are_identical(clips):
    found = compare(clips.pan(9, 1), clips.pan(9, 1))
    assert (found.frames, found.identical, found.max_abs, found.diverged_at) == (9, 9, 0, None)
    assert found.psnr == float("inf")
    assert found.similarity == pytest.approx(1, abs=1e-5)


def test_psnr_of_a_known_error():
    a = np.full((4, 4, 3), 100, np.uint8)
    assert psnr(a, a + 5) == pytest.approx(10 * np.log10(255**2 / 25))


def test_divergence_is_found_at_its_frame(clips):
    video = clips.pan(20, 1)
    other = video.copy()
    other[5, 0, 0, 0] ^= 1
    other[12:] = clips.pan(8, 1, seed=3)
    found = compare(other, video)
    assert found.identical == 5
    assert found.diverged_at == 12
    assert found.max_abs > 100


def test_unequal_lengths_and_sizes_are_told(clips):
    with pytest.raises(ValueError, match="frames: ends after 4 frames"):
        compare(clips.still(4), clips.still(5))
    with pytest.raises(ValueError, match="must be alike"):
        compare(clips.still(2, size=64), clips.still(2, size=96))
    with pytest.raises(ValueError, match="got 0"):
        compare([], [])
