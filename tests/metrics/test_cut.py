"""A cut that the meters are told of: nothing is measured across it, and the video's start stays its start."""

import numpy as np
import pytest

from longvid.metrics import StreamMetrics
from longvid.training import world

FPS = 16
A = world.Scene(colour="red", shape="ball", motion="circle", background="stars")
B = world.Scene(colour="blue", shape="box", motion="circle", background="sky")


def shots(*, told: bool):
    """Five seconds of each scene, one after the other."""
    meter = StreamMetrics(FPS)
    for number, scene in enumerate((A, B)):
        if number and told:
            meter.cut()
        meter.update(world.render(scene, 0, frames=80))
    return meter.report()


def alone(scene):
    meter = StreamMetrics(FPS)
    meter.update(world.render(scene, 0, frames=80))
    return meter.report()


def test_a_cut_that_is_told_is_no_fault_and_one_that_is_not_told_is():
    assert shots(told=False).faults.cuts == 1
    assert shots(told=True).faults.cuts == 0


def test_motion_and_flicker_are_those_of_the_shots():
    found, a, b = shots(told=True), alone(A), alone(B)
    for measure in ("mean", "top5", "smoothness"):
        parts = [getattr(report.motion, measure) for report in (a, b)]
        assert getattr(found.motion, measure) == pytest.approx(np.mean(parts), rel=1e-6)
    assert found.flicker.score == pytest.approx((a.flicker.score + b.flicker.score) / 2, rel=1e-6)
    assert shots(told=False).flicker.score < found.flicker.score


def test_frames_are_compared_with_their_own_shot_and_identity_with_the_first():
    found, a, b = shots(told=True), alone(A), alone(B)
    assert found.consistency.similarity[0] == pytest.approx(
        (a.consistency.similarity[0] + b.consistency.similarity[0]) / 2, rel=1e-6
    )
    assert found.identity.last > 20


def test_a_segment_that_a_cut_ends_is_left_out():
    meter = StreamMetrics(FPS)
    meter.update(world.render(A, 0, frames=100))
    meter.cut()
    meter.update(world.render(A, 0, frames=80, start=100))
    assert len(meter.report().identity.segments) == 1
    assert meter.report().identity.last < 2


def test_a_cut_just_before_the_end_keeps_the_falls_back_of_before():
    """A video that falls back to its start, and then a short last shot."""
    first, away = world.render(A, 0, frames=80), world.render(B, 0, frames=160)
    meter = StreamMetrics(FPS)
    for part in (first, away, first, away):
        meter.update(part)
    seen = meter.report().loop_back
    assert seen.events
    meter.cut()
    meter.update(world.render(B, 3, frames=3))
    assert meter.report().loop_back.events == seen.events
