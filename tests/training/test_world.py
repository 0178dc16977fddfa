"""The procedural world: determinism, direct access to any frame, endlessness, and the identity that seeds alone fix."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid.training import world

SCENE = world.Scene(colour="red", shape="ball", motion="bounce", background="hills")
scenes = st.builds(world.Scene, **{name: st.sampled_from(options) for name, options in world.CHOICES.items()})


@given(scene=scenes, seed=st.integers(0, 2**31), start=st.integers(0, 20_000))
@settings(max_examples=20, deadline=None)
def test_any_frame_can_be_rendered_directly(scene: world.Scene, seed: int, start: int) -> None:
    together = world.render(scene, seed, start=start, frames=3, size=32)
    alone = world.render(scene, seed, start=start + 2, frames=1, size=32)
    assert np.array_equal(together[2], alone[0])


@given(scene=scenes, seed=st.integers(0, 2**31), t=st.floats(0, 3600))
@settings(max_examples=100, deadline=None)
def test_the_subject_stays_in_the_picture(scene: world.Scene, seed: int, t: float) -> None:
    ident = world.identity(scene, seed)
    x, y, _ = world.trajectory(scene, ident, np.array([t]))
    assert ident.radius * 0.9 < x[0] < 1 - ident.radius * 0.9
    assert ident.radius * 0.8 < y[0] < 1 - ident.radius * 0.8


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_motion_does_not_repeat_within_ten_minutes(motion: str) -> None:
    scene = world.Scene(colour="red", shape="ball", motion=motion, background="sky")
    t = np.arange(0, 600, 0.25)
    x, y, tilt = world.trajectory(scene, world.identity(scene, 3), t)
    path = np.stack([x, y, tilt], 1)
    for lag in range(8, len(t) // 2, 8):
        assert np.abs(path[lag:] - path[:-lag]).max() > 0.01, f"repeats after {lag * 0.25} s"


def test_faster_words_mean_faster_motion() -> None:
    t = np.arange(0, 60, 1 / world.FPS)
    speeds = []
    for speed in world.SPEEDS:
        scene = world.Scene(colour="red", shape="ball", motion="drift", background="sky", speed=speed)
        x, y, _ = world.trajectory(scene, world.identity(scene, 1), t)
        speeds.append(np.hypot(np.diff(x), np.diff(y)).mean())
    assert speeds[0] * 1.3 < speeds[1] < speeds[2] / 1.3


def test_seeds_give_other_identities_and_captions_do_not() -> None:
    a, b = world.identity(SCENE, 1), world.identity(SCENE, 2)
    assert a != b
    other = world.Scene(colour="red", shape="star", motion="drift", background="sea")
    assert world.identity(other, 1) == a


@pytest.mark.parametrize("background", world.BACKGROUNDS)
def test_backgrounds_differ_from_each_other_and_between_seeds(background: str) -> None:
    scene = world.Scene(colour="red", shape="ball", motion="drift", background=background)
    a, b = (world.render(scene, seed, frames=1, size=64, subjects=0)[0].astype(int) for seed in (1, 2))
    assert np.abs(a - b).mean() > 1.0


def test_there_are_as_many_scenes_as_promised_and_a_tenth_is_held_out() -> None:
    assert (len(world.COLOURS), len(world.SHAPES), len(world.MOTIONS)) == (8, 6, 5)
    assert (len(world.BACKGROUNDS), len(world.SPEEDS)) == (7, 3)
    scenes_ = [
        world.Scene(**dict(zip(world.CHOICES, c, strict=True))) for c in itertools.product(*world.CHOICES.values())
    ]
    held = [s for s in scenes_ if world.is_held_out(s)]
    assert 0.08 < len(held) / len(scenes_) < 0.12
    for name, options in world.CHOICES.items():
        assert {getattr(s, name) for s in held} == set(options), name


def test_an_unknown_choice_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"colour='teal': must be one of red"):
        world.Scene(colour="teal", shape="ball", motion="bounce", background="sky")
