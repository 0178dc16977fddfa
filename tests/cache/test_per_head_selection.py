"""Participative compression where each head keeps tokens of its own choice (cache.per_head)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch.nn.functional import scaled_dot_product_attention

from longvid.cache import FrameKVCache
from longvid.cache.naive import NaiveCache
from longvid.cache.policies import ParticipativePolicy, policy_from_config
from longvid.config import AttentionConfig, CacheConfig
from longvid.errors import InputError
from longvid.kernels.attention.naive import token_mask
from longvid.kernels.radial import RadialSpec, rollout_blocks
from longvid.models.attend import attend_for
from longvid.models.attention import AttentionCall
from longvid.models.rope import RotaryTables

N, HEADS, DIM, ROWS, COLUMNS = 3, 3, 12, 2, 2  # frames a block; 4 tokens a frame
T = ROWS * COLUMNS
KINDS = (FrameKVCache, NaiveCache)
SETTINGS = {
    "sum": {"window": 12, "sink": 4, "budget": 9, "recent": 4, "max_reuse": 2},
    "max": {"window": 11, "sink": 2, "budget": 11, "recent": 3, "max_reuse": 1, "fusion": "max"},
    "unify": {"window": 12, "sink": 4, "budget": 10, "recent": 4, "max_reuse": 3, "unify": True, "hole_free": True},
    "no-sink-no-limit": {"window": 9, "sink": 0, "budget": 7, "recent": 3, "max_reuse": 0},
}
every_setting = pytest.mark.parametrize("name", SETTINGS)


def policy(name: str = "sum", per_head: bool = True, **changes) -> ParticipativePolicy:
    return ParticipativePolicy(**(SETTINGS[name] | {"frames_per_block": N, "per_head": per_head} | changes))


def make(rule, kind=FrameKVCache, *, layers=1, batch=1, heads=HEADS):
    rotary = RotaryTables(DIM, ROWS, COLUMNS)
    return kind(rule, layers=layers, batch=batch, heads=heads, head_dim=DIM, rotary=rotary)


class Player:
    """Feeds a cache random blocks and collects what attention gives; `alike`: all heads get the same."""

    def __init__(self, cache, *, batch=1, heads=HEADS, alike=False, seed=0):
        self.cache, self.batch, self.heads, self.alike = cache, batch, heads, alike
        self.generator = torch.Generator().manual_seed(seed)

    def call(self, kind):
        view, out = self.cache.view(kind), []
        for layer in self.cache.layers:
            drawn = 1 if self.alike else self.heads
            shape = (self.batch, N * T, drawn, DIM)
            q, k, v = (
                torch.randn(shape, generator=self.generator).expand(-1, -1, self.heads, -1).contiguous()
                for _ in range(3)
            )
            q = self.cache.rotary.apply(q, view.cos, view.sin)
            keys, values = layer.read(view, q, k, v)
            out.append(scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, keys, values))))
        return torch.stack(out)

    def block(self, start):
        self.cache.begin(start, N)
        out = [self.call("denoise"), self.call("commit")]
        self.cache.commit()
        return torch.stack(out)


def compressions(player, blocks=14):
    """Plays blocks; yields (start, selector, its choice) after each block that compressed."""
    (store,) = player.cache.layers
    choices = []
    store.selector.on_choice = choices.append
    for start in range(0, blocks * N, N):
        before = len(choices)
        player.block(start)
        if len(choices) > before:
            yield start, store.selector, choices[-1]


@every_setting
@pytest.mark.parametrize("batch", [1, 2])
def test_equals_the_naive_twin(name, batch):
    """There a head is a sample by itself."""
    fast, slow = (Player(make(policy(name), kind, layers=2, batch=batch), batch=batch) for kind in KINDS)
    for start in range(0, 39, N):
        torch.testing.assert_close(fast.block(start), slow.block(start), atol=2e-6, rtol=0)
        fast.cache.check_integrity()


@given(
    sink=st.integers(0, 4),
    extra=st.integers(0, 3),
    slack=st.integers(0, 4),
    limit=st.integers(0, 2),
    fusion=st.sampled_from(["sum", "max"]),
    unify=st.booleans(),
)
@settings(max_examples=25)
def test_any_setting_equals_the_naive_twin(sink, extra, slack, limit, fusion, unify):
    budget = sink + N + extra
    rule = ParticipativePolicy(
        window=budget + slack, sink=sink, budget=budget, recent=N, max_reuse=limit, fusion=fusion, unify=unify,
        frames_per_block=N, per_head=True,
    )  # fmt: skip
    fast, slow = (Player(make(rule, kind)) for kind in KINDS)
    for start in range(0, 8 * N, N):
        torch.testing.assert_close(fast.block(start), slow.block(start), atol=2e-6, rtol=0)


@every_setting
def test_each_head_keeps_its_own_best_and_all_keep_sink_and_recent(name):
    rule = policy(name)
    player = Player(make(rule, batch=2), batch=2)
    differ = False
    for _, selector, seen in compressions(player):
        sink, length = rule.sink * T, seen.scores.shape[1]
        first_recent = length - rule.recent * T
        assert seen.scores.shape == seen.counts_before.shape == (2, length, HEADS)
        candidates = range(sink, first_recent)
        for b in range(2):
            for h in range(HEADS):
                scores, counts = seen.scores[b, :, h].tolist(), seen.counts_before[b, :, h].tolist()
                assert all(math.isinf(s) == (i not in candidates) for i, s in enumerate(scores))
                allowed = [i for i in candidates if not rule.max_reuse or counts[i] < rule.max_reuse]
                best = sorted(allowed, key=lambda i: -scores[i])[: seen.chosen.shape[1]]
                assert seen.chosen[b, :, h].tolist() == sorted(best)
        differ |= bool((seen.chosen != seen.chosen[..., :1]).any())
        # [sink | chosen | recent], the block just committed counted in
        frames, places = selector.frames[:, : selector.length], selector.places[:, : selector.length]
        for x in (frames, places):
            for part in (x[:, :sink], x[:, sink + seen.chosen.shape[1] :]):
                assert torch.equal(part, part[:1, :, :1].expand_as(part))
        assert frames[0, :sink, 0].tolist() == [i // T for i in range(sink)]
        newest = int(frames.max())
        recent = [f for f in range(newest - rule.recent + 1, newest + 1) for _ in range(T)]
        assert frames[0, sink + seen.chosen.shape[1] :, 0].tolist() == recent
    assert differ


def test_scores_are_the_dot_products_of_one_head():
    """Counted out at a compression, from the keys that were there."""
    player = Player(make(policy()))
    (store,) = player.cache.layers
    choices = []
    store.selector.on_choice = choices.append
    for start in range(0, 12, N):
        player.block(start)
    cached = store.keys[:, : store.selector.length].clone()
    player.cache.begin(12, N)
    player.call("denoise")
    queries, scores = store.selector.queries, choices[-1].scores
    for h in range(HEADS):
        wanted = torch.einsum("rd,td->t", queries[0, :, h], cached[0, :, h]) / math.sqrt(DIM)
        inside = torch.isfinite(scores[0, :, h]).nonzero()[:, 0]
        assert len(inside)
        torch.testing.assert_close(scores[0, inside, h], wanted[inside], atol=1e-5, rtol=0)


@every_setting
def test_identical_heads_choose_what_one_choice_for_all_chooses(name):
    own, shared = (Player(make(policy(name, per_head)), alike=True) for per_head in (True, False))
    seen = 0
    played = (compressions(player) for player in (own, shared))
    for (start, a, mine), (other, b, theirs) in zip(*played, strict=True):
        assert start == other
        assert (a.choices, b.choices) == (HEADS, 1)
        assert torch.equal(mine.chosen, theirs.chosen.expand_as(mine.chosen))
        for ours, known in ((a.counts, b.counts), (a.frames, b.frames), (a.places, b.places)):
            known = known[:, : b.length]
            assert torch.equal(ours[:, : a.length], known.expand(-1, -1, HEADS))
        seen += 1
    assert seen > 2
    torch.testing.assert_close(own.block(42), shared.block(42), atol=0, rtol=0)


def test_one_head_is_one_choice():
    own, shared = (Player(make(policy("sum", x), heads=1), heads=1) for x in (True, False))
    for start in range(0, 39, N):
        assert torch.equal(own.block(start), shared.block(start))


@pytest.mark.parametrize("limit", [1, 2])
def test_every_head_counts_its_own_reuse(limit):
    """Counters follow their token: a head's count is how often that token, by frame and place, was in its choice."""
    player = Player(make(policy(max_reuse=limit)))
    (store,) = player.cache.layers
    chosen_often: dict[tuple[int, int, int], int] = {}
    reached, choices = False, []
    store.selector.on_choice = choices.append
    for start in range(0, 60, N):
        frames, places = store.selector.frames.clone(), store.selector.places.clone()
        player.block(start)
        selector = store.selector
        if choices:
            chosen = choices.pop().chosen
            for h in range(HEADS):
                for i in chosen[0, :, h].tolist():
                    token = (h, int(frames[0, i, h]), int(places[0, i, h]))
                    chosen_often[token] = chosen_often.get(token, 0) + 1
                    assert chosen_often[token] <= limit
        for h in range(HEADS):
            for i in range(selector.length):
                token = (h, int(selector.frames[0, i, h]), int(selector.places[0, i, h]))
                assert int(selector.counts[0, i, h]) == chosen_often.get(token, 0)
        reached |= int(selector.counts[:, : selector.length].max()) == limit
    assert reached


@every_setting
def test_snapshot_through_safetensors_is_exact_and_goes_on_alike(name):
    player = Player(make(policy(name), layers=2))
    for start in range(0, 27, N):
        player.block(start)
    tensors, meta = player.cache.snapshot()
    state = player.generator.get_state()
    expected = [player.block(start) for start in range(27, 42, N)]
    other = Player(make(policy(name), layers=2))
    other.block(0)
    other.cache.restore(load(save(tensors)), meta)
    again, facts = other.cache.snapshot()
    assert facts == meta
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    other.generator.set_state(state)
    for start, wanted in zip(range(27, 42, N), expected, strict=True):
        assert torch.equal(other.block(start), wanted)


@pytest.mark.parametrize("mine", [True, False], ids=["shared-into-per-head", "per-head-into-shared"])
def test_a_snapshot_of_the_other_kind_is_refused_before_anything_changes(mine):
    theirs, ours = Player(make(policy(per_head=not mine))), Player(make(policy(per_head=mine)))
    for start in range(0, 15, N):
        theirs.block(start)
        ours.block(start)
    kept = ours.cache.snapshot()[0]
    with pytest.raises(InputError, match=f"per_head={mine}: the snapshot was taken with {not mine}; restore with"):
        ours.cache.restore(*theirs.cache.snapshot())
    assert all(torch.equal(x, kept[key]) for key, x in ours.cache.snapshot()[0].items())


def test_a_snapshot_from_before_there_were_choices_is_understood():
    player = Player(make(policy(per_head=False)))
    for start in range(0, 27, N):
        player.block(start)
    tensors, meta = player.cache.snapshot()
    state = player.generator.get_state()
    wanted = player.block(27)
    del meta["per_head"]
    for key in ("counts", "frames", "places"):
        tensors[f"selector.0.{key}"] = tensors[f"selector.0.{key}"].squeeze(-1)
    other = Player(make(policy(per_head=False)))
    other.cache.restore(tensors, meta)
    other.generator.set_state(state)
    assert torch.equal(other.block(27), wanted)


@every_setting
def test_a_new_scene_remembers_nothing(name):
    used, fresh = Player(make(policy(name)), seed=1), Player(make(policy(name)), seed=2)
    for start in range(0, 39, N):
        used.block(start)
    used.cache.reset()
    used.generator.manual_seed(2)
    for start in range(0, 33, N):
        assert torch.equal(used.block(start), fresh.block(start))


def test_unified_phases_are_consecutive_frames_for_every_head():
    """Each head's i-th chosen token is read in frame first + i // T, at the place that this head's token has."""
    rule = policy("unify")
    player = Player(make(rule, batch=2), batch=2)
    tables, unlike = player.cache.rotary, False
    for start, selector, choice in compressions(player):
        (store,) = player.cache.layers
        sink, count = rule.sink * T, choice.chosen.shape[1]
        first_recent = start + N - rule.recent
        first = first_recent - -(-count // T)
        for b in range(2):
            for h in range(HEADS):
                raw = store.raw[b, sink : sink + count, h]
                for i in range(count):
                    place = int(selector.places[b, sink + i, h])
                    cos, sin = (x[place : place + 1] for x in tables.at([first + i // T]))
                    wanted = tables.apply(raw[i].reshape(1, 1, 1, DIM), cos, sin).flatten()
                    torch.testing.assert_close(store.keys[b, sink + i, h], wanted, atol=1e-6, rtol=0)
        places = selector.places[:, sink : sink + count]
        unlike |= bool((places != places[..., :1]).any())
    assert unlike


def test_resident_frames_are_those_of_any_head():
    player = Player(make(policy()))
    for start, selector, _ in compressions(player):
        held = {f for h in range(HEADS) for f in selector.frames[0, : selector.length, h].tolist()}
        assert player.cache.resident == tuple(sorted(held))
        roles = [player.cache.role(f) for f in player.cache.resident]
        assert roles == ["sink"] * 4 + ["selected"] * (len(held) - 8) + ["recent"] * 4
        assert player.cache.resident[-1] == start + N - 1


# ---------------------------------------------------------------- attention beside it


@pytest.mark.parametrize("batch", [1, 2])
def test_radial_attention_bands_what_is_whole_for_all_heads(batch):
    rows, columns, block = 6, 16, 2  # frames of 96 tokens, wider than the bands
    tokens = rows * columns
    rule = ParticipativePolicy(window=9, sink=2, budget=7, recent=3, max_reuse=2, frames_per_block=block, per_head=True)
    cache = FrameKVCache(rule, layers=1, batch=batch, heads=2, head_dim=12, rotary=RotaryTables(12, rows, columns))
    attend = attend_for(AttentionConfig(kind="radial", backend="gather"), sink_frames=2)
    spec = RadialSpec.for_grid(tokens, sink_frames=2, anchor="key")
    generator, (store,), banded = torch.Generator().manual_seed(0), cache.layers, False
    choices = []
    store.selector.on_choice = choices.append
    for start in range(0, 8 * block, block):
        cache.begin(start, block)
        for kind in ("denoise", "commit"):
            view = cache.view(kind)
            q, k, v = (torch.randn(batch, block * tokens, 2, 12, generator=generator) for _ in range(3))
            keys, values = store.read(view, q, k, v)
            call = AttentionCall(batch, view.cos, view.sin, view=view, tokens_per_frame=tokens)
            out = attend(q, keys, values, call=call, store=store)
            loose = 2 * tokens + choices[-1].chosen.shape[1] if choices else 0
            oldest = start - (store.selector.length - loose) // tokens
            mask = torch.ones(block * tokens, keys.shape[1], dtype=torch.bool)
            frames = range(oldest, start + block)
            rows_of = rollout_blocks(range(start, start + block), frames, tokens, spec, dense_chunk=True)
            mask[:, loose:] = token_mask(rows_of)[0]
            banded |= not mask.all()
            truth = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, keys, values)), mask)
            assert (out - truth.transpose(1, 2)).abs().max() < 1e-5, (start, kind)
        cache.commit()
    assert banded


# ---------------------------------------------------------------- from the configuration


@pytest.mark.parametrize("per_head", [True, False])
def test_the_configuration_reaches_the_policy(per_head):
    assert policy_from_config(CacheConfig(policy="participative", sink=10, per_head=per_head), 3).per_head is per_head
    assert CacheConfig().per_head is False


def test_a_rollout_with_it_works_differs_and_repeats(make_tiny_pipe):
    """Window 9 of 30 latent frames: several compressions. Radial attention takes it too; bands of 4-token frames hold
    all, so that it gives the same."""
    small = {"cache": {"window": 9, "sink": 2, "budget": 7, "recent": 3}}
    arguments = {"num_frames": 4 * 29 + 1, "seed": 0, "output_type": "latent"}
    pipe = make_tiny_pipe("deep-forcing", steps=[1000, 500])
    shared = pipe.use_method("deep-forcing", small)("a red ball", **arguments).frames
    pipe.use_method("deep-forcing", {"cache": small["cache"] | {"per_head": True}})
    own = pipe("a red ball", **arguments).frames
    assert own.shape == shared.shape
    assert torch.isfinite(own).all()
    assert torch.equal(own[:, :, :9], shared[:, :, :9])  # nothing was left out yet
    assert (own - shared).abs().max() > 1e-4
    assert torch.equal(pipe("a red ball", **arguments).frames, own)
    radial = pipe("a red ball", attention="radial", **arguments).frames
    torch.testing.assert_close(radial, own, atol=1e-3, rtol=0)
