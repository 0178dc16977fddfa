"""What a session keeps of the frames that it has sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid.serve.ring import FrameRing, SentFrame


def frame(i: int, *, key: bool = True, block: int = 0) -> SentFrame:
    return SentFrame(i, block, key, bytes([i % 256]) * 3)


def filled(count: int, history: int, keys: int = 1) -> FrameRing:
    ring = FrameRing(history)
    for i in range(count):
        ring.append(frame(i, key=i % keys == 0, block=i // keys))
    return ring


def test_ids_are_contiguous() -> None:
    ring = filled(2, 4)
    with pytest.raises(ValueError, match="must be 2"):
        ring.append(frame(3))


def test_nothing_unacknowledged_leaves() -> None:
    ring = filled(500, 4)
    assert (len(ring), ring.unacked) == (500, 500)


def test_acknowledged_frames_leave_but_for_the_history() -> None:
    ring = filled(20, 4)
    ring.acknowledge(15)
    assert (ring.oldest, len(ring), ring.bytes) == (12, 8, 24)
    ring.acknowledge(3)  # an old acknowledgement changes nothing
    assert (ring.acked, ring.oldest) == (15, 12)


def test_acknowledging_the_future_is_refused() -> None:
    with pytest.raises(ValueError, match="the last frame sent is 4"):
        filled(5, 4).acknowledge(5)


@pytest.mark.parametrize(("last", "start"), [(-1, 0), (5, 6), (18, 19), (19, 20)])
def test_replay_of_stills(last: int, start: int) -> None:
    assert filled(20, 64).replay_from(last) == start


@pytest.mark.parametrize(("last", "start"), [(-1, 0), (0, 0), (3, 4), (5, 4), (18, 16), (19, 20)])
def test_replay_of_a_stream_begins_at_a_key(last: int, start: int) -> None:
    assert filled(20, 64, keys=4).replay_from(last) == start


@given(
    history=st.integers(0, 12),
    keys=st.integers(1, 5),
    steps=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 40)), max_size=40),
)
def test_ring_is_bounded_and_always_replayable(history: int, keys: int, steps: list[tuple[int, int]]) -> None:
    ring = FrameRing(history)
    for count, ack in steps:
        for _ in range(count):
            i = ring.next_id
            ring.append(frame(i, key=i % keys == 0, block=i // keys))
        ring.acknowledge(min(ack, ring.next_id - 1))
        assert len(ring) <= ring.unacked + history + 2 * keys
        assert [f.id for f in ring] == list(range(ring.oldest, ring.next_id))
        assert ring.bytes == sum(len(f.data) for f in ring)
        for last in range(max(-1, ring.acked - history), ring.next_id):
            start = ring.replay_from(last)
            assert start == ring.next_id or ring.get(start).key
            assert start <= last + 1 or start == ring.oldest
