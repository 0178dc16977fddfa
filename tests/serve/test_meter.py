"""The numbers of a running session: those of the full meter, sampled."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from longvid.metrics import StreamMetrics, extras
from longvid.serve.meter import LiveMeter
from longvid.training import world

FPS = 16
SCENE = world.Scene(colour="red", shape="ball", motion="circle", background="hills")


def moving(frames: int, size: int = 128) -> np.ndarray:
    """The embedded world, each pixel repeated to the size."""
    video = world.render(SCENE, 0, frames=frames)
    return video.repeat(size // video.shape[1], axis=1).repeat(size // video.shape[2], axis=2)


def blocks(video: np.ndarray) -> list[np.ndarray]:
    return [video[:9], *(video[at : at + 12] for at in range(9, len(video), 12))]


def test_the_numbers_are_the_full_meters_within_what_sampling_costs() -> None:
    """Every fourth frame across blocks of 9 and 12: motion stays in pixels a frame."""
    live, full = LiveMeter(FPS), StreamMetrics(FPS)
    for block in blocks(moving(189)):
        live.update(block)
        told = full.update(block)
    names = {"brightness", "contrast", "saturation", "sharpness", "motion", "start_distance", "identity_drift"}
    assert set(live.drift) == names | {"flicker", "frozen"}
    for name in names:
        assert live.drift[name] == pytest.approx(float(told[name]), rel=0.3), name
    assert live.drift["flicker"] == pytest.approx(1 - float(told["difference"]) / 255)
    assert live.drift["frozen"] == 0


@pytest.mark.parametrize("size", [128, 256])
def test_a_video_that_stands_still_is_told_within_two_seconds(size: int) -> None:
    live, video = LiveMeter(FPS), moving(57, size)
    video[33:] = video[33]
    frozen = []
    for block in blocks(video):
        live.update(block)
        frozen.append(live.drift["frozen"])
    assert frozen == [0, 0, 0, 0, 1]
    assert live.drift["motion"] == 0
    assert live.drift["flicker"] == 1


def test_frames_twice_as_large_move_twice_as_fast() -> None:
    small, large = LiveMeter(FPS), LiveMeter(FPS)
    slow = moving(57)
    for block in blocks(slow):
        small.update(block)
    for block in blocks(slow.repeat(2, axis=1).repeat(2, axis=2)):
        large.update(block)
    assert large.drift["motion"] == pytest.approx(2 * small.drift["motion"], rel=0.25)
    assert large.drift["flicker"] == pytest.approx(small.drift["flicker"], rel=1e-6)


def test_a_block_without_a_sampled_frame_keeps_the_last_numbers() -> None:
    live, video = LiveMeter(FPS), moving(12, 256)
    live.update(video[:9])
    before = live.drift["brightness"]
    live.update(video[9:11])
    assert live.drift["brightness"] == before


def test_without_opencv_motion_is_left_out_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = extras.import_module
    monkeypatch.setattr(extras, "import_module", lambda name: real("no_such_module" if name == "cv2" else name))
    live = LiveMeter(FPS)
    with caplog.at_level(logging.WARNING, "longvid.serve"):
        for block in blocks(moving(21)):
            live.update(block)
    assert "motion" not in live.drift
    assert {"brightness", "flicker", "frozen"} <= set(live.drift)
    assert caplog.text.count("longvid[eval]") == 1
