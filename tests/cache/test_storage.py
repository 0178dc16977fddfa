"""What a cache allocates: all of it when it is made, none on the device "meta", and no more than it counts."""

from __future__ import annotations

import pytest
from cache_cases import MORE, N, Player, make
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid.cache.policies import (
    DeepSinkPolicy,
    EmaSinkPolicy,
    RadialPolicy,
    RollingPolicy,
    SlidingPolicy,
)


@pytest.mark.parametrize(
    ("name", "window"),
    [(name, N) for name in MORE] + [(name, 3 * N) for name in MORE if not name.startswith("participative")],
)
def test_storage_is_allocated_once_and_counted_whole(name, window, cache_storages):
    """Memory is flat: all bytes are there from the start, and at the same place after many blocks and a restore."""
    cache, other = (make(MORE[name](), layers=1, window=window) for _ in range(2))
    made, others = cache_storages(cache), cache_storages(other)
    unallocated = make(MORE[name](), layers=1, window=window, device="meta")
    assert not cache_storages(unallocated)
    assert sum(made.values()) == cache.nbytes == unallocated.nbytes
    player = Player(cache)
    for start in range(0, 48, N):
        for kind, frames in (("denoise", window), ("commit", N)):
            cache.begin(start, N, frames)
            player.call(kind, frames)
        cache.commit()
    other.restore(*cache.snapshot())
    assert cache_storages(cache) == made
    assert cache_storages(other) == others
    assert len(cache._phases) == cache.policy.capacity
    assert cache.resident_frames <= cache.policy.capacity


sizes = st.integers(0, 5)


@given(
    kind=st.sampled_from(["sliding", "deep", "ema", "rolling", "radial"]),
    n=st.integers(1, 4),
    sink=sizes,
    extra=st.integers(0, 8),
    commit=st.none() | sizes,
    joint=st.integers(0, 3),
    first_alone=st.booleans(),
    age=st.sampled_from([-1, 10, 30]),
    frames=st.sampled_from([None, 40]),
    dense=st.sampled_from([1, 2, 4, 8]),
)
@settings(max_examples=150)
def test_no_call_gathers_more_than_its_policy_foretells(
    kind, n, sink, extra, commit, joint, first_alone, age, frames, dense
):
    """Scratch is allocated for that: of every view whose tokens do not lie side by side."""
    commit = 0 if commit is None else n + commit
    sink = {"deep": max(sink, 1), "rolling": max(sink, 1), "ema": n}.get(kind, sink)
    base = {"frames_per_block": n, "sink": sink}
    if kind != "rolling":
        base["commit_window"] = commit
    policy = {
        "sliding": lambda: SlidingPolicy(window=sink + n + extra, **base),
        "deep": lambda: DeepSinkPolicy(window=sink + n + extra, **base),
        "ema": lambda: EmaSinkPolicy(window=n * (2 + extra), **base),
        "rolling": lambda: RollingPolicy(window=sink + n + joint * n + extra, cache_frames=sink + n + extra, **base),
        "radial": lambda: RadialPolicy(window=age, dense=dense, frames=frames, **base),
    }[kind]()
    cache = make(policy, layers=1, heads=1, dim=2, rows=1, columns=1)
    start, most = 0, 0
    while start < (frames or 90):
        block = 1 if first_alone and kind != "ema" and not start else n
        for call, window in (("denoise", block + joint * n), ("commit", block)):
            cache.begin(start, block, window)
            view = cache.view(call)
            if view.hi < 0 and view.spans:
                most = max(most, sum(b - a for a, b in view.spans) + window)
        cache.commit()
        start += block
    assert most <= policy.gathered((1 + joint) * n if joint else 0)
