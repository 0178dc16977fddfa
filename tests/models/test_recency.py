"""The recency bias: its rule on integers, calls against an explicit softmax, rollouts against a shorter memory."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longvid.cache import FrameKVCache
from longvid.cache.policies import ParticipativePolicy, SlidingPolicy
from longvid.config import AttentionConfig, CacheConfig, MethodConfig, ScheduleConfig
from longvid.errors import InputError
from longvid.models.attend import attend_for_method
from longvid.models.attention import AttentionCall
from longvid.models.recency import GAMMA, Recency, recency_attend
from longvid.models.rope import RotaryTables

ROWS, COLUMNS, BLOCK, HEADS, DIM = 2, 3, 3, 2, 12
TOKENS = ROWS * COLUMNS
SEVEN_BLOCKS = 4 * (7 * BLOCK - 1) + 1  # video frames
OVERWHELMING = 1e6

calls = st.builds(
    lambda n, sink, history, own, window, beta, order: (
        Recency(beta, n, sink * n, window if window < 0 else window + (sink + 1) * n),
        tuple(range((sink + history) * n, (sink + history + own) * n)),
        tuple(order.sample(range((sink + history + own) * n), (sink + history + own) * n)),
    ),
    n=st.integers(1, 4),
    sink=st.integers(0, 3),
    history=st.integers(0, 6),
    own=st.integers(1, 4),
    window=st.sampled_from([-1, 0, 3, 8, 12]),
    beta=st.floats(0.1, 100),
    order=st.randoms(use_true_random=False),
)


class TestTheRuleOnIntegers:
    def test_a_full_window_of_self_forcing_with_a_sink(self):
        """Window 21, sink 3, blocks of 3: five blocks of history, the oldest four behind the newest."""
        recency = Recency(4.0, 3, sink=3, window=21)
        bias = recency.bias((30, 31, 32), (0, 1, 2, *range(15, 33)))
        parts = [round(-value / 4.0, 6) for value in bias[::3]]
        assert parts == [0, 1, *(round((past / 4) ** GAMMA, 6) for past in (3, 2, 1)), 0, 0]
        assert all(bias[i] == bias[i + 1] == bias[i + 2] for i in range(0, 21, 3))

    def test_the_exponent_lies_between_the_papers_four(self):
        assert pytest.approx(math.prod(0.1 * 2**t for t in (1, 2, 3, 4)) ** 0.25) == GAMMA

    @given(calls)
    def test_sink_newest_block_and_own_frames_are_free(self, call):
        recency, own, keys = call
        for frame, value in zip(keys, recency.bias(own, keys), strict=True):
            free = frame < recency.sink or frame >= own[0] - recency.frames_per_block
            assert (value == 0) == free

    @given(calls)
    def test_it_grows_with_age_and_stays_within_beta(self, call):
        recency, own, keys = call
        bias = dict(zip(keys, recency.bias(own, keys), strict=True))
        past = [bias[frame] for frame in range(recency.sink, own[0])]
        assert past == sorted(past)
        assert all(-recency.beta <= value <= 0 for value in past)

    @given(calls)
    def test_only_distance_counts_and_no_order(self, call):
        recency, own, keys = call
        sinkless = Recency(recency.beta, recency.frames_per_block, 0, recency.window)
        bias = dict(zip(keys, sinkless.bias(own, keys), strict=True))
        later = sinkless.bias([frame + 60 for frame in own], [frame + 60 for frame in sorted(keys)])
        assert [bias[frame] for frame in sorted(keys)] == list(later)

    def test_a_joint_window_changes_no_distance_and_no_span(self):
        recency = Recency(4.0, 3, sink=3, window=21)
        one = recency.bias(range(30, 33), range(33))
        assert recency.bias(range(30, 45), range(45)) == one + (0.0,) * 12

    def test_without_a_window_the_oldest_frame_that_is_read_gets_beta(self):
        assert Recency(4.0, 2, sink=2).bias((12, 13), (0, 1, 6, 11))[2] == -4.0

    def test_a_first_frame_that_is_a_block_of_its_own_is_the_oldest(self):
        recency = Recency(4.0, 3)
        assert [recency.distance(7, frame) for frame in range(10)] == [3, 2, 2, 2, 1, 1, 1, 0, 0, 0]


def softmax_in_float64(query, keys, values, bias):
    q, k, v = (x.double().transpose(1, 2) for x in (query, keys, values))
    scores = q @ k.transpose(2, 3) / math.sqrt(DIM) + torch.tensor(bias, dtype=torch.float64).repeat_interleave(TOKENS)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def cache_of(policy):
    rotary = RotaryTables(DIM, ROWS, COLUMNS)
    return FrameKVCache(policy, layers=1, batch=2, heads=HEADS, head_dim=DIM, rotary=rotary)


def tokens_of(view, generator):
    return (torch.randn(2, len(view.own_frames) * TOKENS, HEADS, DIM, generator=generator) for _ in range(3))


@pytest.mark.parametrize("joint", [1, 2], ids=["own-block", "joint-window"])
def test_calls_on_a_cache_equal_a_softmax_in_float64(joint):
    """Slots are taken in rings, so keys lie in another order than frames."""
    recency = Recency(4.0, BLOCK, sink=3, window=18)
    attend, cache = recency_attend(recency), cache_of(SlidingPolicy(window=18, sink=3, frames_per_block=BLOCK))
    generator, unordered = torch.Generator().manual_seed(0), False
    for start in range(0, 10 * BLOCK, BLOCK):
        cache.begin(start, BLOCK, joint * BLOCK)
        for kind in ("denoise", "commit"):
            view = cache.view(kind)
            query, key, value = tokens_of(view, generator)
            keys, values = cache.layers[0].read(view, query, key, value)
            call = AttentionCall(2, view.cos, view.sin, view=view, tokens_per_frame=TOKENS)
            out = attend(query, keys, values, call=call, store=cache.layers[0])
            bias = recency.bias(view.own_frames, view.key_frames)
            unordered |= list(view.key_frames) != sorted(view.key_frames)
            assert any(bias) == (start >= 3 * BLOCK)
            assert (out - softmax_in_float64(query, keys, values, bias)).abs().max() < 1e-5
        cache.commit()
    assert unordered


def test_under_autograd_the_same_frames_are_biased():
    """There a call's own keys stand at the end and not in their slots."""
    attend = recency_attend(Recency(4.0, BLOCK, window=12))
    cache, generator = cache_of(SlidingPolicy(window=12, frames_per_block=BLOCK)), torch.Generator().manual_seed(0)
    for start in range(0, 6 * BLOCK, BLOCK):
        cache.begin(start, BLOCK)
        view = cache.view("commit")
        query, key, value = tokens_of(view, generator)
        call = AttentionCall(2, view.cos, view.sin, view=view, tokens_per_frame=TOKENS)
        outs = []
        for graph in (False, True):
            own = key.clone().requires_grad_(graph)
            keys, values = cache.layers[0].read(view, query, own, value)
            outs.append(attend(query, keys, values, call=call, store=cache.layers[0]))
        assert (outs[0] - outs[1]).abs().max() < 1e-5
        cache.commit()
    outs[1].sum().backward()
    assert own.grad.abs().max() > 0


def test_tokens_without_frames_are_refused():
    cache = cache_of(ParticipativePolicy(window=9, sink=3, budget=6, recent=3, frames_per_block=BLOCK))
    cache.begin(0, BLOCK)
    view, x = cache.view("denoise"), torch.zeros(2, BLOCK * TOKENS, HEADS, DIM)
    with pytest.raises(InputError, match=r"attention\.recency=4: .*belong to no frame"):
        recency_attend(Recency(4.0, BLOCK))(x, x, x, call=AttentionCall(2, view.cos, view.sin, view=view))


def latents(pipe, method, cache, recency=0.0):
    pipe.use_method(method, {"cache": cache, "attention": {"kind": "dense", "recency": recency}})
    return pipe("a red ball", num_frames=SEVEN_BLOCKS, seed=0, output_type="latent").frames


@pytest.mark.parametrize("method", ["self-forcing", "reward-forcing", "rolling-forcing", "radial"])
def test_a_rollout_with_it_differs_from_where_history_begins(make_tiny_pipe, method):
    cache = {"window": 15} if method == "reward-forcing" else {}  # of 9, it keeps one block of history
    pipe = make_tiny_pipe(method)
    difference = latents(pipe, method, cache) - latents(pipe, method, cache, 4.0)
    by_frame = difference.abs().amax(dim=(0, 1, 3, 4))
    assert by_frame[: 2 * BLOCK].max() < 1e-6  # another kernel may run without a bias
    assert by_frame[-1] > 1e-4


@pytest.mark.parametrize("sink", [0, BLOCK], ids=["no-sink", "sink"])
def test_an_overwhelming_bias_is_a_memory_of_sink_and_newest_block(tiny_pipe, sink):
    """At absolute positions a frame that weighs nothing is one that is not there."""
    cache = {"policy": "sink", "sink": sink, "window": 21}
    biased = latents(tiny_pipe, "self-forcing", cache, OVERWHELMING)
    shorter = latents(tiny_pipe, "self-forcing", cache | {"window": sink + 2 * BLOCK})
    assert (biased - shorter).abs().max() < 1e-5
    assert (biased - latents(tiny_pipe, "self-forcing", cache)).abs().max() > 1e-3


def test_off_is_plain_dense_attention():
    assert attend_for_method(MethodConfig(name="x")) is None
    assert attend_for_method(MethodConfig(name="x", attention=AttentionConfig(recency=4.0))) is not None


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        (CacheConfig(policy="sink", sink=3, window=12), (3, 12)),
        (CacheConfig(policy="window", sink=3, window=12), (0, 12)),
        (CacheConfig(policy="full", sink=3), (0, -1)),
        (CacheConfig(policy="sink", sink=3, window=-1), (3, -1)),
        (CacheConfig(policy="radial", sink=1), (1, -1)),
    ],
    ids=lambda value: f"{value.policy}-{value.window}" if isinstance(value, CacheConfig) else "",
)
def test_sink_and_window_are_the_policys(cache, expected):
    recency = Recency.of(MethodConfig(name="x", cache=cache, attention=AttentionConfig(recency=4.0)))
    assert (recency.sink, recency.window) == expected


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda on: AttentionConfig(recency=-1.0), "attention.recency=-1.0: must be a finite number, at least 0"),
        (lambda on: AttentionConfig(recency=math.inf), "attention.recency=inf: must be a finite number"),
        (lambda on: AttentionConfig(recency=4.0, kind="radial"), 'attention.recency=4.0: needs attention.kind="dense"'),
        (lambda on: AttentionConfig(recency=4.0, backend="flash"), "attention.backend='flash': takes no bias"),
        (
            lambda on: MethodConfig(name="x", attention=on, schedule=ScheduleConfig(kind="fifo", frames_per_block=1)),
            "attention.recency=4.0: needs a cache of past frames",
        ),
        (
            lambda on: MethodConfig(name="x", attention=on, cache=CacheConfig(policy="participative", sink=3)),
            "attention.recency=4.0: needs whole frames",
        ),
    ],
    ids=["negative", "infinite", "radial", "flash", "fifo", "participative"],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(InputError) as caught:
        make(AttentionConfig(recency=4.0))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["deep-forcing", "fifo", "radial"])
def test_a_published_method_that_cannot_is_refused_at_once(make_tiny_pipe, method):
    with pytest.raises(InputError, match=r"attention\.recency=4"):
        make_tiny_pipe(method).use_method(method, {"attention": {"recency": 4}})
