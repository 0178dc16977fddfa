"""What a token selector knows of its tokens."""

from __future__ import annotations

import pytest
import torch
from cache_cases import MORE, N, Player, make

from longvid.cache.selection import TokenSelector

T = 4  # tokens of a frame


def test_a_frame_is_whole_when_every_head_has_it():
    """Frames of 4 tokens, two heads: one token that differs in one head ends the run."""
    selector = TokenSelector(MORE["participative-per-head"](), torch.zeros(1, 11 * T, 2, 12), T)
    selector.commit([0, 1, 2, 3, 4])

    def whole():
        selector.begin_recache(keep_sink=False, start=5)  # of all calls the one that opens a block and moves no token
        selector.length = 5 * T
        return selector.whole_frames()

    assert whole() == 5
    selector.places[0, 2 * T + 1, 1] = 3
    assert whole() == 2
    selector.places[0, 2 * T + 1, 1] = 1
    selector.frames[0, 3 * T, 0] = 2
    assert whole() == 1


@pytest.mark.parametrize("name", [name for name in MORE if name.startswith("participative")])
def test_whole_frames_are_counted_once_a_block_and_are_what_each_call_would_count(name, monkeypatch):
    """Across compressions, a block that is tried again, a recache, a snapshot and a new scene."""
    counted = []
    count = TokenSelector._count_whole
    monkeypatch.setattr(TokenSelector, "_count_whole", lambda self, start: counted.append(start) or count(self, start))
    player, seen = Player(make(MORE[name](), layers=1)), set()
    (store,) = player.cache.layers

    def calls(start, *kinds):
        counted.clear()
        for kind in kinds:
            player.call(kind, N)
            seen.add(store.selector.whole_frames())
            assert store.selector.whole_frames() == count(store.selector, start)
        assert counted == [start]

    def block(start):
        player.cache.begin(start, N)
        calls(start, "denoise", "denoise", "commit")
        player.cache.commit()

    for start in range(0, 24, N):
        block(start)
    player.cache.begin(24, N)
    calls(24, "denoise")
    player.cache.abort()
    block(24)
    player.cache.begin_recache(range(24, 27), keep_sink=False)
    calls(24, "commit")
    player.cache.commit_recache()
    block(27)
    player.cache.restore(*player.cache.snapshot())
    block(30)
    player.cache.reset()
    block(0)
    assert len(seen) > 2
