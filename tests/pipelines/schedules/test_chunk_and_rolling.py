"""Schedules on integers: which block is at which step in which call."""

from __future__ import annotations

from itertools import count, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longvid.errors import InputError
from longvid.pipelines.schedules.blocks import BlockGrid
from longvid.pipelines.schedules.chunk import ChunkSchedule
from longvid.pipelines.schedules.rolling import RollingSchedule
from longvid.pipelines.schedules.sigmas import even_steps, shift_sigma, sigma_grid, step_sigmas


def calls(schedule, blocks):
    out = []
    for w in count():
        window = schedule.window(w, blocks)
        if window is None:
            return out
        out.append(window.entries)


@given(steps=st.integers(1, 8), blocks=st.integers(1, 20), kind=st.sampled_from([ChunkSchedule, RollingSchedule]))
def test_every_block_takes_every_step_once_and_in_order(steps, blocks, kind):
    seen = {}
    for entries in calls(kind(steps), blocks):
        assert [b for b, _ in entries] == list(range(entries[0][0], entries[0][0] + len(entries)))
        for block, step in entries:
            assert seen.setdefault(block, -1) == step - 1
            seen[block] = step
    assert seen == dict.fromkeys(range(blocks), steps - 1)


@given(steps=st.integers(1, 7), blocks=st.integers(1, 20))
def test_rolling_windows_rise_in_noise_and_finish_one_block_at_a_time(steps, blocks):
    windows = calls(RollingSchedule(steps), blocks)
    assert len(windows) == blocks + steps - 1
    finished = [b for entries in windows for b, step in entries if step == steps - 1]
    assert finished == list(range(blocks))
    for entries in windows:
        assert [step for _, step in entries] == sorted((step for _, step in entries), reverse=True)
        assert len(entries) <= steps


@given(steps=st.integers(1, 7), blocks=st.integers(1, 12), kind=st.sampled_from([ChunkSchedule, RollingSchedule]))
def test_an_endless_video_begins_like_a_long_one(steps, blocks, kind):
    schedule = kind(steps)
    for w in range(blocks):
        assert schedule.window(w, None) == schedule.window(w, 1000)
    assert all(schedule.entered(w) <= schedule.entered(w + 1) for w in range(20))
    for w in range(20):
        entered = {b for v in range(w) for b, _ in schedule.window(v, None).entries}
        assert schedule.entered(w) == len(entered)


def test_rolling_window_of_the_release():
    windows = calls(RollingSchedule(5), 7)
    assert windows[0] == ((0, 0),)
    assert windows[4] == ((0, 4), (1, 3), (2, 2), (3, 1), (4, 0))
    assert windows[6] == ((2, 4), (3, 3), (4, 2), (5, 1), (6, 0))
    assert windows[-1] == ((6, 4),)


@given(n=st.integers(1, 6), alone=st.booleans(), blocks=st.integers(1, 30))
def test_blocks_tile_the_video(n, alone, blocks):
    grid = BlockGrid(n, alone)
    tiles = [grid[i] for i in range(blocks)]
    assert tiles[0].start == 0
    assert all(a.end == b.start for a, b in pairwise(tiles))
    assert tiles[0].frames == (1 if alone else n)
    assert grid.count(tiles[-1].end) == blocks
    assert grid.round_up(tiles[-1].end) == tiles[-1].end
    if n > 1 and blocks > 1:
        assert grid.round_up(tiles[-1].end - 1) == tiles[-1].end
        with pytest.raises(InputError, match=f"nearest {tiles[-2].end} or {tiles[-1].end}"):
            grid.count(tiles[-1].end - 1)


def test_warped_steps_are_the_published_ones():
    self_forcing = [1000 * s for s in step_sigmas((1000, 750, 500, 250), 5.0)]
    assert self_forcing == pytest.approx([1000, 937.5, 833.3333, 625], abs=1e-3)
    rolling = [1000 * s for s in step_sigmas((1000, 800, 600, 400, 200), 5.0)]
    assert rolling == pytest.approx([1000, 952.3810, 882.3529, 769.2308, 555.5556], abs=1e-3)
    assert step_sigmas((700, 300), 5.0, warp=False) == (0.7, 0.3)
    assert even_steps(4) == (1000, 750, 500, 250)


@given(sigma=st.floats(0, 1), shift=st.floats(0.1, 20))
@example(sigma=1.0, shift=0.1)  # 1.0000000000000002 before it was held
def test_the_shift_keeps_the_ends_and_the_order(sigma, shift):
    assert 0 <= shift_sigma(sigma, shift) <= 1
    assert shift_sigma(1.0, shift) == pytest.approx(1)
    assert shift_sigma(0.0, shift) == 0
    grid = sigma_grid(shift, 50)
    assert all(a > b for a, b in pairwise(grid))
