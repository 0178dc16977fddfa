"""The subject's path against the caption's: videos and paths of the world, whose motion and speed are known."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from longvid.errors import InputError
from longvid.metrics.oracle import Oracle
from longvid.metrics.trajectory import NOISE, STILL, measure_trajectory, tell_motion, wobbled, world_speed
from longvid.training import world

PROBE = Path(__file__).resolve().parents[2] / "benchmarks" / "probe.safetensors"


def scene_with(motion, speed="normal", background="sunset"):
    return world.Scene(colour="green", shape="star", background=background, motion=motion, speed=speed)


def path(scene, *, seed=0, seconds=20.0, fps=world.FPS, start=0.0, rate=1.0):
    """What a probe without error would read of a world video that runs ``rate`` times as fast."""
    t = start + rate * np.arange(round(seconds * fps)) / fps
    x, y, _ = world.trajectory(scene, world.identity(scene, seed), t)
    return {"x": x, "y": y, "count": np.ones(len(x), int)}


@cache
def probe():
    from longvid.training.probe import load_probe

    return load_probe(PROBE)[0]


def judged(frames, scene):
    oracle = Oracle(scene, probe(), world.FPS)
    oracle.update(frames)
    return oracle.trajectory()


@pytest.fixture(scope="module", params=world.MOTIONS)
def video(request):
    """Scene and frames, ten seconds of each motion."""
    torch.set_num_threads(1)
    scene = scene_with(request.param)
    return scene, world.render(scene, 11, start=500, frames=160)


def test_a_video_of_the_world_goes_its_captions_way_at_its_speed_and_twice_as_fast_when_played_so(video):
    scene, frames = video
    found, double = judged(frames, scene), judged(frames[::2], scene)
    assert found.told == (scene.motion,) * 2
    assert found.motion_right == double.motion_right == 1
    assert found.speed_ratio == pytest.approx(1, abs=0.2)
    assert double.speed_ratio == pytest.approx(2 * found.speed_ratio, rel=0.1)


def test_a_video_of_another_motion_is_told_as_that_one(video):
    scene, frames = video
    asked = scene_with(world.MOTIONS[world.MOTIONS.index(scene.motion) - 1])
    found = judged(frames[:80], asked)
    assert (found.motion, found.motion_right) == (scene.motion, 0)


def test_a_frozen_video_has_no_speed_and_no_motion():
    scene = scene_with("circle")
    found = judged(np.repeat(world.render(scene, 3, frames=1), 80, axis=0), scene)
    assert (found.speed, found.speed_ratio, found.told, found.motion_right) == (0, 0, (STILL,), 0)


@pytest.mark.parametrize(
    ("seconds", "wobble", "floor"), [(5, False, 0.98), (2, False, 0.94), (5, True, 0.95), (2, True, 0.90)]
)
def test_paths_that_were_not_calibrated_on_are_told_apart(seconds, wobble, floor):
    """The world's own under the probe's noise, and such as wobble: the shares right are in docs/metrics.md."""
    rng = np.random.default_rng(7)
    right = []
    for motion in world.MOTIONS:
        for speed in world.SPEEDS:
            for _ in range(20):
                seed, start = 10**6 + int(rng.integers(10**6)), rng.uniform(0, 300)
                seen = path(scene_with(motion, speed), seed=seed, seconds=seconds, start=start)
                if wobble:
                    x, y = (wobbled(seen[name], world.FPS, rng) for name in ("x", "y"))
                else:
                    x, y = (seen[name] + NOISE * rng.standard_normal(len(seen[name])) for name in ("x", "y"))
                right.append(tell_motion(x, y, world.FPS) == motion)
    assert np.mean(right) >= floor


@pytest.mark.parametrize("motion", world.MOTIONS)
@pytest.mark.parametrize("fps", [8, 16, 48])
def test_the_frame_rate_changes_neither_speed_nor_kind(motion, fps):
    found = measure_trajectory(path(scene_with(motion), fps=fps, seconds=60), scene_with(motion), fps)
    assert found.motion_right >= 0.9
    assert found.speed_ratio == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_the_speed_word_is_part_of_what_was_asked_for(motion):
    slow, fast = (world_speed(motion, speed, 16) for speed in ("slow", "fast"))
    assert fast / slow == pytest.approx(1.6 / 0.6, rel=0.1)
    seen = path(scene_with(motion, "fast"), seconds=60)
    ratios = [measure_trajectory(seen, scene_with(motion, speed), 16).speed_ratio for speed in ("fast", "slow")]
    assert ratios[1] / ratios[0] == pytest.approx(fast / slow)


def test_nothing_is_measured_across_a_gap():
    """Forty frames a run, each at another place: no window has five seconds, and the jumps are no speed."""
    seen = path(scene_with("drift"), seconds=10)
    seen |= {"x": np.repeat([0.2, 0.5, 0.8, 0.3], 40), "y": np.full(160, 0.5)}
    found = measure_trajectory(seen, scene_with("drift"), 16, cuts=[40, 80, 120])
    assert found.told == (STILL,) * 4
    assert measure_trajectory(seen, scene_with("drift"), 16).told != found.told
    short = measure_trajectory(seen, scene_with("drift"), 16, cuts=range(0, 160, 20))
    assert (short.told, short.motion) == ((), None)
    assert np.isnan(short.motion_right)


def test_the_oracle_hands_its_cuts_on(monkeypatch):
    from longvid.training import probe as probes

    def read(frames, at):
        names = {name: np.full(len(frames), name) for name in ("colour", "shape", "background", "pattern")}
        place = {"x": np.full(len(frames), at.pop(0)), "y": np.full(len(frames), 0.5), "radius": np.ones(len(frames))}
        return names | place | {"count": np.ones(len(frames), int)}

    monkeypatch.setattr(probes, "score_frames", read)
    oracle = Oracle(scene_with("drift"), [0.2, 0.8], fps=16)
    assert oracle.trajectory() is None
    for _ in range(2):
        oracle.update(np.zeros((40, 4, 4, 3), np.uint8))
        oracle.cut()
    assert oracle.trajectory().told == (STILL, STILL)


def test_frames_without_exactly_one_subject_are_bridged_and_windows_that_lack_too_many_are_left_out():
    scene = scene_with("circle")
    seen = path(scene, seconds=10)
    whole = measure_trajectory(seen, scene, 16)
    lost = np.arange(160) % 5 == 0
    lost[80:110] = True
    holed = {name: np.where(lost, {"x": 9.0, "y": -9.0, "count": 2}[name], value) for name, value in seen.items()}
    found = measure_trajectory(holed, scene, 16)
    assert found.told == ("circle",)
    assert found.speed == pytest.approx(whole.speed, rel=0.1)
    none = measure_trajectory(seen | {"count": np.zeros(160, int)}, scene, 16)
    assert none.motion is None
    assert np.isnan([none.speed, none.speed_ratio, none.motion_right]).all()


def test_a_frame_rate_that_is_none_is_refused():
    with pytest.raises(InputError, match="fps=0"):
        measure_trajectory(path(scene_with("hop")), scene_with("hop"), 0)


def test_frames_of_another_size_are_not_the_probes():
    with pytest.raises(InputError, match="64x32 pixels, the probe reads 128x128"):
        judged(np.zeros((2, 32, 64, 3), np.uint8), scene_with("hop"))
