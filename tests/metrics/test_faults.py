import numpy as np
import pytest

from longvid.errors import InputError
from longvid.metrics import evaluate_file
from longvid.metrics.faults import find_faults
from longvid.metrics.frames import non_finite_frames
from longvid.metrics.identity import identity_drift
from longvid.training import world


def test_a_sound_video_has_no_faults(clips):
    assert not find_faults(clips.walker(16 * 5), fps=16).any
    assert not find_faults(clips.pan(80, 2), fps=16).any


def test_a_frozen_stretch_is_found_with_its_time(clips):
    video = clips.walker(16 * 10)
    video[16 * 4 : 16 * 7] = video[16 * 4]
    found = find_faults(video, fps=16)
    assert found.frozen == pytest.approx(0.3, abs=0.02)
    assert found.frozen_at == pytest.approx((4.0,), abs=0.1)


def test_a_codecs_noise_does_not_hide_a_frozen_stretch(clips):
    video = clips.still(16 * 4).astype(int)
    video += np.random.default_rng(0).integers(0, 2, video.shape) * (np.random.default_rng(1).random(video.shape) < 0.4)
    assert find_faults(np.clip(video, 0, 255).astype(np.uint8), fps=16).frozen == 1


@pytest.mark.parametrize("side", [6, 8])
def test_a_small_subject_that_moves_is_not_frozen(clips, side):
    """It changes so few pixels that the mean over the picture stays under the threshold all the way."""
    video = clips.flat(96, (110, 110, 110), size=128)
    for t, frame in enumerate(video):
        x = 2 * t % (128 - side)
        frame[60 : 60 + side, x : x + side] += 60
    assert np.abs(video[1:].astype(int) - video[0]).mean(axis=(1, 2, 3)).max() < 0.5
    assert find_faults(video, fps=16).frozen == 0
    assert identity_drift(np.concatenate([video, video]), 16).counts


def test_a_still_scene_in_h264_is_frozen(clips, save):
    night = np.repeat(
        world.render(world.Scene(colour="red", shape="ball", motion="circle", background="stars"), 0, frames=1),
        96,
        axis=0,
    )
    path = save(night, "night.mp4", codec="libx264")
    assert evaluate_file(path, motion=False).faults.frozen > 0.9


def test_slow_motion_is_not_frozen(clips):
    """Each step is under the threshold; the second as a whole is not."""
    video = clips.walker(16 * 6, step=0.5)
    steps = np.abs(np.diff(video.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert np.median(steps) < 0.5
    assert find_faults(video, fps=16).frozen == 0


def test_a_pause_shorter_than_a_second_is_not_frozen(clips):
    video = clips.pan(64, 2)
    video[20:34] = video[20]
    assert find_faults(video, fps=16).frozen == 0


@pytest.mark.parametrize(
    ("rgb", "kind"),
    [((0, 0, 0), "black"), ((9, 4, 6), "black"), ((128, 128, 128), "blank"), ((255, 255, 255), "burnt")],
)
def test_black_blank_and_burnt_frames_are_told_apart(clips, rgb, kind):
    video = np.concatenate([clips.pan(30, 1, size=64), clips.flat(10, rgb)])
    found = find_faults(video, fps=16)
    assert getattr(found, kind) == pytest.approx(0.25)
    others = {"black", "blank", "burnt"} - {kind, "blank" if kind == "burnt" else kind}
    assert all(getattr(found, other) == 0 for other in others)


def test_a_night_with_stars_is_not_black(clips):
    night = clips.flat(40, (4, 4, 12))
    night[:, ::8, ::8] = 220
    assert find_faults(night, fps=16).black == 0


def test_a_cut_is_found_at_its_frame_and_once(clips):
    video = np.concatenate([clips.pan(48, 1, seed=0, cell=16), clips.pan(48, 1, seed=4, cell=16)])
    found = find_faults(video, fps=16)
    assert (found.cuts, found.flashes) == (1, 0)
    assert found.cuts_at == (3.0,)


def test_a_flash_is_no_pair_of_cuts(clips):
    video = clips.pan(64, 1)
    video[30] = 255
    found = find_faults(video, fps=16)
    assert (found.cuts, found.flashes) == (0, 1)
    assert found.flashes_at == (30 / 16,)


def test_a_cut_into_the_last_frame_is_found(clips):
    video = np.concatenate([clips.pan(48, 1, seed=0, cell=16), clips.pan(1, 1, seed=4, cell=16)])
    assert find_faults(video, fps=16).cuts_at == (3.0,)


def test_fast_motion_is_no_cut(clips):
    assert find_faults(clips.pan(60, 12), fps=16).cuts == 0


def test_frames_with_nan_or_infinity_are_named():
    frames = np.zeros((6, 4, 4, 3), np.float32)
    frames[2, 1, 1, 0], frames[5, 0, 0, 2] = np.nan, np.inf
    assert non_finite_frames(frames) == [2, 5]
    assert non_finite_frames(np.zeros((3, 2))) == []


def test_uint8_frames_cannot_be_asked_for_nan():
    with pytest.raises(ValueError, match="uint8, must be a float array"):
        non_finite_frames(np.zeros((2, 4, 4, 3), np.uint8))


def test_float_frames_are_refused_with_the_frames_that_hold_nan(clips):
    floats = clips.pan(6, 1).astype(np.float32)
    with pytest.raises(InputError, match=r"got float32 \[6, 96, 96, 3\], must be uint8"):
        find_faults(floats, fps=16)
    floats[4, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"with NaN or infinity in frames \[4\], must be uint8"):
        find_faults(floats, fps=16)


def test_nan_that_was_rounded_is_seen_as_black(clips):
    floats = clips.pan(20, 1, size=64) / 255
    floats[10:] = np.nan
    with np.errstate(invalid="ignore"):
        video = (np.nan_to_num(floats) * 255).astype(np.uint8)
    assert non_finite_frames(floats) == list(range(10, 20))
    assert find_faults(video, fps=16).black == 0.5
