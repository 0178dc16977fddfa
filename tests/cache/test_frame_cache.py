"""FrameKVCache against its naive twin, on random keys and values, and its verbs."""

from __future__ import annotations

import pytest
import torch
from cache_cases import POLICIES, N, Player, make
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from longvid.cache import FrameKVCache
from longvid.cache.naive import NaiveCache
from longvid.cache.policies import (
    DeepSinkPolicy,
    EmaSinkPolicy,
    ParticipativePolicy,
    RollingPolicy,
    SlidingPolicy,
)
from longvid.errors import InputError


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", POLICIES)
def test_equals_the_naive_twin(name, batch):
    policy = POLICIES[name]()
    fast, slow = (Player(make(policy, kind, batch=batch), batch=batch) for kind in (FrameKVCache, NaiveCache))
    for start in range(0, 39, N):
        torch.testing.assert_close(fast.block(start), slow.block(start), atol=2e-6, rtol=0)
        fast.cache.check_integrity()


@given(
    n=st.integers(1, 3),
    sink=st.integers(0, 4),
    extra=st.integers(0, 5),
    positions=st.sampled_from(["absolute", "window"]),
)
@settings(max_examples=25, deadline=None)
def test_any_window_and_sink_equal_the_naive_twin(n, sink, extra, positions):
    policy = SlidingPolicy(window=sink + n + extra, sink=sink, positions=positions, frames_per_block=n)
    fast, slow = Player(make(policy, layers=1)), Player(make(policy, NaiveCache, layers=1))
    for start in range(0, 8 * n, n):
        torch.testing.assert_close(fast.block(start, n), slow.block(start, n), atol=2e-6, rtol=0)
        fast.cache.check_integrity()


def test_rolling_window_equals_the_naive_twin():
    """Five blocks in a call, one committed: warm-up, steady state and drain."""
    policy = RollingPolicy(window=15, sink=3, frames_per_block=N)
    fast, slow = Player(make(policy)), Player(make(policy, NaiveCache))
    for w in range(10):
        first, last = max(0, w - 2), min(w, 7)
        out = []
        for player in (fast, slow):
            player.cache.begin(first * N, N, (last - first + 1) * N)
            out.append([player.call("denoise", (last - first + 1) * N)])
            if w >= 2:
                player.cache.begin(first * N, N)
                out[-1].append(player.call("commit", N))
                player.cache.commit()
        for a, b in zip(*out, strict=True):
            torch.testing.assert_close(a, b, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", [n for n in POLICIES if not n.startswith("participative")])
@pytest.mark.parametrize("keep_sink", [True, False], ids=["keep-sink", "new-sink"])
def test_recache_equals_the_naive_twin(name, keep_sink):
    policy = POLICIES[name]()
    fast, slow = (Player(make(policy, kind)) for kind in (FrameKVCache, NaiveCache))
    for at, start in enumerate(range(0, 39, N)):
        if at in (2, 7):
            count = fast.cache.resident_frames
            results = []
            for player in (fast, slow):
                player.cache.begin_recache(range(start - count, start), keep_sink)
                results.append(player.call("commit", count))
                player.cache.commit_recache()
            torch.testing.assert_close(*results, atol=2e-6, rtol=0)
        torch.testing.assert_close(fast.block(start), slow.block(start), atol=2e-6, rtol=0)
        fast.cache.check_integrity()


@pytest.mark.parametrize("name", POLICIES)
def test_snapshot_through_safetensors_is_exact(name):
    policy = POLICIES[name]()
    player = Player(make(policy))
    for start in range(0, 27, N):
        player.block(start)
    tensors, meta = player.cache.snapshot()
    state = player.generator.get_state()
    expected = [player.block(start) for start in range(27, 42, N)]
    other = Player(make(policy))
    other.block(0)
    other.cache.restore(load(save(tensors)), meta)
    other.generator.set_state(state)
    for start, wanted in zip(range(27, 42, N), expected, strict=True):
        assert torch.equal(other.block(start), wanted)


@pytest.mark.parametrize("name", POLICIES)
def test_abort_and_retry_gives_the_same(name):
    player, other = Player(make(POLICIES[name]())), Player(make(POLICIES[name]()))
    for start in range(0, 33, N):
        wanted = player.block(start)
        state = other.generator.get_state()
        other.block(start, calls=1, commit=False)
        other.cache.abort()
        other.generator.set_state(state)
        torch.testing.assert_close(other.block(start), wanted, atol=0, rtol=0)
        other.cache.check_integrity()


def test_absolute_positions_rotate_a_key_once():
    """Nothing that does not change is rotated again: no re-phase at all under absolute positions."""
    player = Player(make(POLICIES["sink"]()))
    for start in range(0, 60, N):
        player.block(start)
    assert player.cache.stats.rephased_frames == 0
    assert player.cache.layers[0].raw is None


def test_only_sinks_keep_unroped_keys_when_only_sinks_move():
    cache = make(POLICIES["deep-sink"]())
    assert cache.layers[0].raw.shape[1] == 5 * cache.tokens_per_frame


def test_a_bf16_sink_does_not_rot():
    """The release rotates the sink in place once a block: 15 % off after four minutes. One rotation of the total angle
    stays at bf16's own rounding."""
    policy = DeepSinkPolicy(window=12, sink=5, frames_per_block=N)
    cache = make(policy, layers=1, dim=24, dtype=torch.bfloat16)
    player = Player(cache, dim=24, dtype=torch.bfloat16)
    for start in range(0, 939, N):
        player.block(start, calls=1)
    store, t = cache.layers[0], cache.tokens_per_frame
    shift = cache._memory["sink_shift"]
    raw, tables = store.raw.float(), cache.rotary
    exact = tables.rotate(raw, [i + shift for i in range(5)])
    error = (store.keys[:, : 5 * t].float() - exact).norm() / exact.norm()
    assert error < 3e-3

    rotten, (cos, sin) = raw.to(torch.bfloat16), tables.at([3] * 5)
    time = tables.at([0] * 5)
    for _ in range(shift // 3):
        rotten = tables.apply(rotten, cos, sin)
        rotten = tables.apply(rotten, time[0], -time[1])  # undo the spatial part of the table
    assert (
        rotten.float()
        - tables.rotate(raw, [shift] * 5).mul(0).add(tables.apply(tables.rotate(raw, [shift] * 5), time[0], -time[1]))
    ).norm() / raw.norm() > 10 * error


def test_an_ema_sink_in_bf16_has_a_float32_master():
    """0.999 x rounds back to x in bf16: without a master the sink would stand still or grow."""
    policy = EmaSinkPolicy(window=9, sink=3, ema_alpha=0.999, frames_per_block=N)
    half, full = (Player(make(policy, layers=1, dtype=d), dtype=d) for d in (torch.bfloat16, torch.float32))
    for start in range(0, 900, N):
        half.block(start, calls=0)
        full.block(start, calls=0)
    t = 3 * half.cache.tokens_per_frame
    for name in ("raw", "values"):
        a, b = (getattr(p.cache.layers[0], name)[:, :t].float() for p in (half, full))
        assert (a - b).norm() / b.norm() < 4e-3


def test_ema_sink_is_the_average_that_the_paper_writes():
    policy = EmaSinkPolicy(window=9, sink=3, ema_alpha=0.7, frames_per_block=N)
    cache = make(policy, layers=1)
    player, written = Player(cache), []
    for start in range(0, 21, N):
        player.block(start, calls=0)
        t = 3 * cache.tokens_per_frame
        slot = cache.slot(start) * cache.tokens_per_frame
        written.append(cache.layers[0].values[:, slot : slot + t].clone())
    sink = written[0]
    for block in written[1:5]:  # blocks 1..4 have left a window of three blocks
        sink = 0.7 * sink + 0.3 * block
    torch.testing.assert_close(cache.layers[0].values[:, :t], sink, atol=1e-6, rtol=0)
    assert [cache.role(f) for f in cache.resident] == ["merged"] * 3 + ["recent"] * 6


def test_a_static_block_in_front_of_the_average_stays_to_the_bit_and_the_average_is_the_same():
    beside = Player(make(EmaSinkPolicy(window=12, sink=6, static=3, ema_alpha=0.7, frames_per_block=N), layers=1))
    t, written = 3 * beside.cache.tokens_per_frame, []
    for start in range(0, 24, N):
        beside.block(start, calls=0)
        slot = beside.cache.slot(start) * beside.cache.tokens_per_frame
        written.append([getattr(beside.cache.layers[0], n)[:, slot : slot + t].clone() for n in ("raw", "values")])
    average = written[1]
    for block in written[2:6]:  # blocks 2..5 have left: two of sink and two recent ones are there
        average = [0.7 * a + 0.3 * b for a, b in zip(average, block, strict=True)]
    for name, first, mean in zip(("raw", "values"), written[0], average, strict=True):
        stored = getattr(beside.cache.layers[0], name)
        assert torch.equal(stored[:, :t], first)
        torch.testing.assert_close(stored[:, t : 2 * t], mean, atol=1e-6, rtol=0)
    roles = [beside.cache.role(f) for f in beside.cache.resident]
    assert roles == ["sink"] * 3 + ["merged"] * 3 + ["recent"] * 6


def test_reset_leaves_nothing_of_the_scene_before():
    """The release resets two indices; sink phase, reuse counters and queries leak into the next prompt."""
    for name, policy in POLICIES.items():
        used, fresh = Player(make(policy()), seed=1), Player(make(policy()), seed=2)
        for start in range(0, 45, N):
            used.block(start)
        used.cache.reset()
        used.generator.manual_seed(2)
        for start in range(0, 33, N):
            assert torch.equal(used.block(start), fresh.block(start)), name


def test_verbs_come_in_pairs():
    cache = make(POLICIES["window"]())
    with pytest.raises(ValueError, match="no block is open"):
        cache.commit()
    with pytest.raises(ValueError, match="no block is open"):
        cache.view("denoise")
    player = Player(cache)
    player.block(0)
    cache.begin(3, 3)
    with pytest.raises(ValueError, match=r"start=6: block \[3, 4, 5\] is open"):
        cache.begin(6, 3)
    with pytest.raises(InputError, match="is open"):
        cache.snapshot()
    cache.abort()
    with pytest.raises(ValueError, match="frame 2 is resident"):
        cache.begin(0, 3)
    assert cache.resident == (0, 1, 2)


def test_restore_names_what_differs():
    tensors, meta = make(POLICIES["window"]()).snapshot()
    with pytest.raises(InputError, match=r"policy='deep-sink'.*'sink'"):
        make(POLICIES["deep-sink"]()).restore(tensors, meta)
    with pytest.raises(InputError, match="shape"):
        make(POLICIES["window"](), heads=3).restore(tensors, meta)


def test_integrity_finds_a_poisoned_value():
    player = Player(make(POLICIES["sink"]()))
    player.block(0)
    player.cache.check_integrity()
    player.cache.layers[1].keys[0, 0, 0, 0] = float("nan")
    with pytest.raises(RuntimeError, match=r"slot 0.*not finite"):
        player.cache.check_integrity()


def test_participative_selection_stops_at_the_reuse_limit():
    policy = ParticipativePolicy(window=12, sink=4, budget=12, recent=4, max_reuse=1, frames_per_block=N)
    player = Player(make(policy, layers=1))
    for start in range(0, 60, N):
        player.block(start)
        selector = player.cache.layers[0].selector
        assert int(selector.counts[:, : selector.length].max()) <= 1
    player.cache.check_integrity()


def test_gradients_do_not_flow_into_history():
    """The release writes in place and leaks gradient into earlier blocks; here it is detached, as in the papers."""
    player = Player(make(POLICIES["sink"](), layers=1))
    player.block(0)
    cache, store = player.cache, player.cache.layers[0]
    cache.begin(3, 3)
    q, k, v = (torch.randn(1, 12, 2, 12, requires_grad=True) for _ in range(3))
    with torch.enable_grad():
        keys, _ = store.read(cache.view("denoise"), q, k, v)
        keys.sum().backward()
    assert k.grad is not None
    assert not store.keys.requires_grad
    other = k.detach()
    with torch.no_grad():
        again, _ = store.read(cache.view("denoise"), q, other, v)
    torch.testing.assert_close(again.sort(dim=1).values, keys.detach().sort(dim=1).values)
