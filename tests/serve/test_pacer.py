"""The display clock that keeps generation from running ahead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid.serve.pacer import Pacer


def test_clock_starts_with_the_first_block() -> None:
    pacer = Pacer(16)
    assert pacer.wait(0, 12, 3, now=100.0) == 0
    pacer.made(0, now=105.0)
    assert pacer.ahead(12, now=105.0) == 12
    assert pacer.ahead(12, now=105.5) == 4


def test_never_further_ahead_than_the_bound() -> None:
    pacer = Pacer(16)
    pacer.made(0, now=0.0)
    # 36 frames made: a fourth block may begin when 12 of them have been shown.
    assert pacer.wait(36, 12, 3, now=0.0) == pytest.approx(12 / 16)
    assert pacer.wait(36, 12, 3, now=0.75) == 0


def test_no_race_after_a_stall() -> None:
    pacer = Pacer(10)
    pacer.made(0, now=0.0)
    pacer.made(10, now=60.0)  # a minute late
    assert pacer.ahead(20, now=60.0) == 10
    assert pacer.wait(30, 10, 2, now=60.0) == pytest.approx(1.0)


def test_a_pause_holds_the_clock() -> None:
    pacer = Pacer(10)
    pacer.made(0, now=0.0)
    pacer.hold(5.0)
    assert pacer.ahead(10, now=5.5) == pytest.approx(5)


@given(
    fps=st.floats(1, 120),
    block=st.integers(1, 48),
    blocks=st.integers(1, 6),
    delays=st.lists(st.floats(0, 5), max_size=60),
)
def test_waiting_as_told_keeps_the_bound(fps: float, block: int, blocks: int, delays: list[float]) -> None:
    pacer, now, made = Pacer(fps), 0.0, 0
    for delay in delays:
        now += pacer.wait(made, block, blocks, now) + delay
        pacer.made(made, now)
        made += block
        assert pacer.ahead(made, now) <= blocks * block + 1e-6 * made + 1e-3
