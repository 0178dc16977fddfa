"""Cache policies on integers alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid.cache.policies import (
    DeepSinkPolicy,
    EmaSinkPolicy,
    ParticipativePolicy,
    RollingPolicy,
    SlidingPolicy,
    policy_from_config,
)
from longvid.config import CacheConfig
from longvid.errors import InputError


def run(policy, blocks, n, window=None, first=0):
    """Play `blocks` blocks; yields (start, resident before the block, plan)."""
    resident, memory, start = [], {}, 0
    for b in range(blocks):
        size = first if b == 0 and first else n
        plan = policy.plan(resident, start, size, window or size, memory)
        yield start, list(resident), plan
        resident = [f for f in resident if f not in plan.evict] + list(range(start, start + size))
        memory, start = plan.memory, start + size


sizes = st.integers(1, 4)
block_counts = st.integers(1, 25)


@given(n=sizes, sink=st.integers(0, 7), extra=st.integers(0, 12), blocks=block_counts, first=st.integers(0, 2))
def test_sliding_window_keeps_sink_and_newest(n, sink, extra, blocks, first):
    first = min(first, n)
    policy = SlidingPolicy(window=sink + n + extra, sink=sink, frames_per_block=n)
    for start, _, plan in run(policy, blocks, n, first=first):
        size = len(plan.denoise.own_positions)
        room = policy.window - size
        history = list(range(start))
        expected = (
            history if len(history) <= room else history[:sink] + history[len(history) - (room - sink) :][: room - sink]
        )
        assert list(plan.denoise.frames) == expected
        assert plan.denoise.positions == plan.denoise.frames
        assert plan.commit == plan.denoise


@given(n=sizes, sink=st.integers(0, 7), extra=st.integers(0, 12), blocks=block_counts)
def test_window_positions_count_from_zero_and_never_exceed_the_window(n, sink, extra, blocks):
    policy = SlidingPolicy(window=sink + n + extra, sink=sink, frames_per_block=n, positions="window")
    for _, _, plan in run(policy, blocks, n):
        positions = plan.denoise.positions + plan.denoise.own_positions
        assert list(positions) == list(range(len(positions)))
        assert len(positions) <= policy.window


@given(n=sizes, window=st.integers(1, 6), commit=st.integers(0, 6), blocks=block_counts)
def test_commit_window_reads_only_the_newest_frames(n, window, commit, blocks):
    commit = 0 if commit == 0 else n + commit
    policy = SlidingPolicy(window=n * (window + 1) + 2, sink=2, frames_per_block=n, commit_window=commit)
    for start, _, plan in run(policy, blocks, n):
        if not commit:
            assert plan.commit == plan.denoise
            continue
        assert plan.commit.own_positions == plan.denoise.own_positions
        wanted = [f for f in plan.denoise.frames if f >= start - (commit - n)]
        assert list(plan.commit.frames) == wanted
        assert len(wanted) + n <= commit


@given(n=sizes, sink=st.integers(1, 9), tail=st.integers(1, 5), blocks=st.integers(1, 30))
def test_deep_sink_released_hole_is_one_block_and_paper_variant_has_none(n, sink, tail, blocks):
    window = sink + tail * n + n
    window += -window % n  # the released hole is exactly one block when the window fills up in whole blocks
    for hole_free, hole in ((False, n), (True, 0)):
        policy = DeepSinkPolicy(window=window, sink=sink, frames_per_block=n, hole_free=hole_free)
        for start, _, plan in run(policy, blocks, n):
            frames, positions = plan.denoise.frames, plan.denoise.positions
            if start + n <= window:
                assert positions == frames  # nothing has left: no shift
                continue
            head, rest = positions[:sink], positions[sink:] + plan.denoise.own_positions
            assert list(rest) == list(range(rest[0], start + n))
            assert rest[0] - head[-1] - 1 == hole
            assert list(head) == list(range(head[0], head[0] + sink))


def test_deep_sink_shifts_of_the_released_code():
    """Window 21, sink 10: shift 0 at the first roll, then 3 a block (recorded in the goldens' rope_shifts)."""
    policy = DeepSinkPolicy(window=21, sink=10, frames_per_block=3)
    shifts = [plan.denoise.positions[0] for start, _, plan in run(policy, 13, 3) if start >= 21]
    assert shifts == [0, 3, 6, 9, 12, 15]


@given(n=sizes, tail=st.integers(1, 5), still=st.integers(0, 2), blocks=block_counts)
def test_ema_sink_merges_every_evicted_block_once_and_no_static_one(n, tail, still, blocks):
    static, sink = still * n, (still + 1) * n
    policy = EmaSinkPolicy(window=n * (tail + still + 2), sink=sink, static=static, frames_per_block=n)
    merged = []
    for start, resident, plan in run(policy, blocks, n):
        if plan.merge:
            merged += plan.merge.evicted
            assert plan.merge.into == tuple(resident[static:sink]) == tuple(range(static, sink))
        assert plan.denoise.own_positions[-1] < policy.window
        assert merged == list(range(sink, max(sink, start + n - policy.window + sink)))


def test_ema_sink_refuses_an_evicted_span_of_another_length():
    """The release overwrites the sink in that case."""
    policy = EmaSinkPolicy(window=10, sink=3, frames_per_block=3)
    with pytest.raises(
        InputError, match=r"window=10: 2 frames leave at frame 9, but the EMA sink holds 3; use a window of 9 or 12"
    ):
        list(run(policy, 5, 3))
    with pytest.raises(InputError, match=r"sink=4.*use sink=3"):
        EmaSinkPolicy(window=9, sink=4, frames_per_block=3)


@given(n=st.integers(1, 3), steps=st.integers(1, 5), extra=st.integers(0, 9), b=st.integers(0, 30), q=st.integers(1, 5))
def test_rolling_rule(n, steps, extra, b, q):
    """Section 3.5 of the release: what a call of q blocks that starts at block b sees."""
    q = min(q, steps)
    window = n * steps + n + extra
    policy = RollingPolicy(window=window, sink=n, frames_per_block=n)
    resident, memory = [], {}
    for i in range(b):
        plan = policy.plan(resident, i * n, n, n, memory)
        resident = [f for f in resident if f not in plan.evict] + list(range(i * n, (i + 1) * n))
    s, call = b * n, q * n
    plan = policy.plan(resident, s, n, call, memory)
    if s == 0:
        assert plan.denoise.frames == ()
        return
    r = max(0, min(window - call - n, s - n))
    assert plan.denoise.frames == tuple(range(n)) + tuple(range(s - r, s))
    assert plan.denoise.positions == tuple(range(s - r - n, s))
    assert s + call - 1 - plan.denoise.positions[0] < window
    seen = min(window, s + n)
    assert plan.commit.frames == tuple(range(s + n - seen, s)) == plan.commit.positions
    assert plan.commit.own_positions == tuple(range(s, s + n))


tokens = st.integers(1, 5)


@given(
    sink=st.integers(0, 6),
    recent=st.integers(3, 6),
    c=st.integers(0, 4),
    slack=st.integers(0, 6),
    blocks=st.integers(1, 40),
    t=tokens,
)
def test_participative_counts(sink, recent, c, slack, blocks, t):
    n = 3
    policy = ParticipativePolicy(
        window=sink + recent + c + slack, sink=sink, budget=sink + recent + c, recent=recent, frames_per_block=n
    )
    cached = queries = 0
    for _ in range(blocks):
        queries += n * t
        if policy.triggers(cached, n * t, t):
            keep = policy.keep(cached, n * t, queries, t)
            assert 0 <= keep.sink <= keep.recent_start <= keep.total == cached + n * t
            assert keep.total - keep.recent_start >= n * t
            kept = keep.sink + min(keep.top, keep.recent_start - keep.sink) + keep.total - keep.recent_start
            assert kept <= policy.window * t
            cached = kept
        else:
            cached += n * t
        assert cached <= policy.window * t
        queries += 5 * n * t


def test_participative_released_triggers_and_shifts():
    """Window 21, budget 16: triggers at 21, 27, 33...; shifts 5, 6, 6 (recorded in the goldens)."""
    policy = ParticipativePolicy(window=21, sink=10, budget=16, recent=4, frames_per_block=3)
    cached, shifts, origin, starts = 0, [0], None, []
    for start in range(0, 45, 3):
        if policy.triggers(cached, 3, 1):
            keep = policy.keep(cached, 3, 4, 1)
            kept = keep.sink + keep.top + keep.total - keep.recent_start
            shift, origin = policy.sink_shift(start, kept, 1, origin)
            shifts.append(shift)
            starts.append(start)
            cached = kept
        else:
            cached += 3
    assert starts == [21, 27, 33, 39]
    assert [b - a for a, b in pairwise(shifts)] == [5, 6, 6, 6]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlidingPolicy(window=5, sink=3, frames_per_block=3), "window=5.*use 6 or more"),
        (lambda: SlidingPolicy(window=9, frames_per_block=3, commit_window=2), "commit_window=2.*one block"),
        (lambda: SlidingPolicy(window=9, frames_per_block=3, positions="x"), "positions='x'"),
        (lambda: DeepSinkPolicy(window=9, sink=0, frames_per_block=3), "sink=0.*at least 1"),
        (lambda: DeepSinkPolicy(window=9, sink=8, frames_per_block=3), "window=9.*use 11 or more"),
        (lambda: EmaSinkPolicy(window=9, sink=3, frames_per_block=3, ema_alpha=1.5), "ema_alpha=1.5"),
        (lambda: EmaSinkPolicy(window=9, sink=3, static=3, frames_per_block=3), "behind its 3 static.*use sink=6"),
        (lambda: EmaSinkPolicy(window=9, sink=5, static=2, frames_per_block=3), "static=2: must be whole blocks of 3"),
        (lambda: RollingPolicy(window=4, sink=3, frames_per_block=3), "window=4"),
        (
            lambda: ParticipativePolicy(window=21, sink=10, budget=12, recent=4, frames_per_block=3),
            "budget=12.*use 14 or more",
        ),
        (
            lambda: ParticipativePolicy(window=21, sink=10, budget=16, recent=2, frames_per_block=3),
            "recent=2.*current block",
        ),
        (
            lambda: ParticipativePolicy(window=15, sink=10, budget=16, recent=4, frames_per_block=3),
            "window=15.*budget",
        ),
    ],
)
def test_impossible_combinations_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (CacheConfig(policy="full"), SlidingPolicy),
        (CacheConfig(policy="window", window=21), SlidingPolicy),
        (CacheConfig(policy="sink", window=12, sink=3), SlidingPolicy),
        (CacheConfig(policy="deep-sink", window=21, sink=10), DeepSinkPolicy),
        (CacheConfig(policy="participative", window=21, sink=10), ParticipativePolicy),
        (CacheConfig(policy="ema-sink", window=9, sink=3), EmaSinkPolicy),
        (CacheConfig(policy="ema-sink", window=12, sink=6, static=3), EmaSinkPolicy),
        (CacheConfig(policy="rolling", window=21, sink=3), RollingPolicy),
    ],
    ids=lambda x: getattr(x, "policy", ""),
)
def test_policies_from_config(config, kind):
    policy = policy_from_config(config, 3, total_frames=30)
    assert type(policy) is kind
    assert policy.capacity == {"full": 30, "rolling": 24}.get(config.policy, config.window)


def test_an_endless_video_cannot_keep_everything():
    with pytest.raises(InputError, match="endless"):
        policy_from_config(CacheConfig(policy="full"), 3)
