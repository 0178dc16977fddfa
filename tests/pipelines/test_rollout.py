"""The rollout loop: exact continuation, prompt switches, lengths, memory."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from longvid.cache.naive import NaiveCache
from longvid.cache.policies import (
    DeepSinkPolicy,
    EmaSinkPolicy,
    ParticipativePolicy,
    RollingPolicy,
    SlidingPolicy,
)
from longvid.errors import InputError
from longvid.models.denoiser import Denoiser
from longvid.pipelines.noise import SeededNoise
from longvid.pipelines.rollout import Rollout
from longvid.pipelines.schedules.blocks import BlockGrid
from longvid.pipelines.schedules.chunk import ChunkSchedule
from longvid.pipelines.schedules.rolling import RollingSchedule
from longvid.pipelines.schedules.sigmas import step_sigmas

METHODS = {
    "full": (ChunkSchedule, lambda: SlidingPolicy(window=60, frames_per_block=3, name="full")),
    "window": (ChunkSchedule, lambda: SlidingPolicy(window=9, frames_per_block=3)),
    "sink": (ChunkSchedule, lambda: SlidingPolicy(window=12, sink=3, positions="window", frames_per_block=3)),
    "commit-rule": (ChunkSchedule, lambda: SlidingPolicy(window=12, sink=3, frames_per_block=3, commit_window=6)),
    "deep-sink": (ChunkSchedule, lambda: DeepSinkPolicy(window=12, sink=5, frames_per_block=3)),
    "participative": (
        ChunkSchedule,
        lambda: ParticipativePolicy(window=12, sink=5, budget=10, recent=4, frames_per_block=3),
    ),
    "participative-per-head": (
        ChunkSchedule,
        lambda: ParticipativePolicy(window=12, sink=5, budget=10, recent=4, frames_per_block=3, per_head=True),
    ),
    "ema-sink": (ChunkSchedule, lambda: EmaSinkPolicy(window=9, sink=3, ema_alpha=0.9, frames_per_block=3)),
    "joint-window": (RollingSchedule, lambda: SlidingPolicy(window=9, sink=6, positions="window", frames_per_block=3)),
    "rolling": (RollingSchedule, lambda: RollingPolicy(window=12, sink=3, frames_per_block=3)),
}

REFUSED_SWITCHES = [
    ("", "must not be empty"),
    (None, "prompt=NoneType: must be text"),
    (5, "prompt=int: must be text"),
    (["a"], "prompt=list: must be text"),
    ("a[2s] | b", "has 2 parts; a switch takes one prompt without a length"),
    ("a[2s]", "has a length of 2 s; a switch takes one prompt without a length"),
]


@pytest.fixture(scope="module")
def denoiser(make_tiny_transformer):
    return Denoiser(make_tiny_transformer())


def text_of(denoiser, seed=0, batch=1):
    return denoiser.encode_text(torch.randn(batch, 5, 16, generator=torch.Generator().manual_seed(seed)))


def start(
    denoiser, method, *, frames=30, batch=1, steps=(1000, 750, 500), height=4, width=4, text=None, grid=None, **more
):
    kind, policy = METHODS[method]
    return Rollout(
        denoiser,
        kind(len(steps)),
        policy(),
        text or text_of(denoiser, batch=batch),
        grid=grid or BlockGrid(3),
        sigmas=step_sigmas(steps, 5.0),
        noise=more.pop("noise", SeededNoise(0)),
        height=height,
        width=width,
        frames=frames,
        encode=more.pop("encode", lambda prompt: text_of(denoiser, seed=len(prompt), batch=batch)),
        **more,
    )


def latents(blocks):
    return torch.cat([block.latents for block in blocks], dim=2)


@pytest.mark.parametrize("method", METHODS)
def test_blocks_come_out_in_order_and_cover_the_video(denoiser, method):
    blocks = list(start(denoiser, method))
    assert [b.index for b in blocks] == list(range(10))
    assert [b.start_frame for b in blocks] == list(range(0, 30, 3))
    assert latents(blocks).shape == (1, 4, 30, 4, 4)
    assert torch.isfinite(latents(blocks)).all()


@pytest.mark.parametrize("method", METHODS)
def test_equals_the_naive_twin(denoiser, method):
    fast, slow = start(denoiser, method), start(denoiser, method)
    slow.cache = NaiveCache(slow.policy, layers=denoiser.layers, batch=1, rotary=denoiser.rotary(4, 4))
    torch.testing.assert_close(latents(fast), latents(slow), atol=2e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_samples_rendered_alone(denoiser, method):
    both = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(9))
    batch = latents(start(denoiser, method, batch=2, text=denoiser.encode_text(both)))
    for i in range(2):
        alone = start(denoiser, method, text=denoiser.encode_text(both[i : i + 1]), noise=SeededNoise(i))
        torch.testing.assert_close(batch[i : i + 1], latents(alone), atol=5e-5, rtol=0)


@pytest.mark.parametrize("at", [0, 1, 4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_continues_exactly_from_any_block(denoiser, method, at):
    """Invariant 1: a resumed rollout equals one that never stopped, bit for bit; through safetensors and JSON."""
    import json

    whole = list(start(denoiser, method))
    first = start(denoiser, method)
    for _ in range(at):
        next(first)
    tensors, meta = first.state_dict()
    second = start(denoiser, method)
    second.load_state_dict(load(save(tensors)), json.loads(json.dumps(meta)))
    rest = list(second)
    assert torch.equal(latents(rest), latents(whole[at:]))
    if at:
        assert torch.equal(latents(list(first)), latents(whole[at:]))  # taking a state changes nothing


def test_a_state_of_other_settings_is_refused_by_name(denoiser):
    state = start(denoiser, "window").state_dict()
    with pytest.raises(InputError, match=r"sigmas=.*the saved rollout used"):
        start(denoiser, "window", steps=(1000, 500, 250)).load_state_dict(*state)
    with pytest.raises(InputError, match="height=6"):
        start(denoiser, "window", height=6).load_state_dict(*state)
    with pytest.raises(InputError, match="policy='deep-sink'"):
        start(denoiser, "deep-sink").load_state_dict(*state)


def test_endless_and_finite_videos_begin_alike(denoiser):
    for method in ("window", "rolling"):
        endless = start(denoiser, method, frames=None)
        head = [next(endless) for _ in range(5)]
        assert torch.equal(latents(head), latents(list(start(denoiser, method, frames=60))[:5])), method


@pytest.mark.parametrize("method", ["sink", "deep-sink", "participative", "ema-sink", "rolling"])
def test_renders_past_1024_latent_frames_in_flat_memory(make_tiny_transformer, method):
    """Wan's own position table ends at 1,024 latent frames (256 s)."""
    rollout = start(Denoiser(make_tiny_transformer(layers=1)), method, frames=None, steps=(1000,), height=2, width=2)
    sizes: dict[bool, int] = {}
    for block in rollout:
        if block.index > 20 and block.index % 7 == 0:
            late = block.index > 180
            size = sum(t.numel() for t in rollout.state_dict()[0].values())
            sizes[late] = max(sizes.get(late, 0), size)
        if block.start_frame > 1030:
            break
    assert torch.isfinite(block.latents).all()
    assert sizes[True] <= sizes[False]
    rollout.cache.check_integrity()


def test_dead_commits_are_not_made(denoiser):
    """The reference commits the last block, and every window of a rolling warm-up; nothing reads those."""

    def commits(method, **more):
        rollout = start(denoiser, method, **more)
        seen = []
        call = rollout._commit_call
        rollout._commit_call = lambda *a: (seen.append(1), call(*a))
        list(rollout)
        return len(seen), rollout._calls

    assert commits("window", frames=12) == (3, 12)  # 4 blocks x 3 steps
    assert commits("rolling", frames=12) == (3, 6)  # 4 + 3 - 1 windows
    # Behind a full sink of two blocks the third leaves as the fourth begins, unread.
    assert commits("joint-window", frames=18) == (2, 8)
    # Merged into the sink it is read, and the block that fills a window stays.
    assert commits("ema-sink", frames=18)[0] == 5


def test_a_commit_that_nobody_reads_would_change_nothing(denoiser):
    lean, busy = (start(denoiser, "joint-window", frames=24) for _ in range(2))
    busy.cache.reads_again = lambda frames: True
    assert torch.equal(latents(lean), latents(busy))


@pytest.mark.parametrize("method", ["window", "rolling"])
def test_making_dead_commits_would_change_nothing(denoiser, method):
    lean, busy = start(denoiser, method, frames=15), start(denoiser, method, frames=15)
    original = busy._denoise

    def denoise(window):
        finished = original(window)
        if finished is None:  # a commit call of the window's first block, as the reference makes after every window
            block = window[0][0]
            busy._open(block, block.frames)
            busy._commit_call(busy._work[block.index], 0.0, busy._text)
            busy.cache.abort()
        return finished

    busy._denoise = denoise
    assert torch.equal(latents(lean), latents(busy))


@pytest.mark.parametrize("method", ["window", "deep-sink", "participative", "rolling", "ema-sink"])
def test_given_latents_are_passed_on_and_remembered(denoiser, method):
    given = torch.randn(1, 4, 6, 4, 4)
    blocks = list(start(denoiser, method, initial=given, frames=21))
    assert torch.equal(latents(blocks[:2]), given)
    assert [b.given for b in blocks] == [True, True] + [False] * 5
    other = list(start(denoiser, method, initial=given * 2, frames=21))
    assert (latents(blocks[2:3]) - latents(other[2:3])).abs().max() > 1e-3


def test_a_first_frame_of_its_own(denoiser):
    blocks = list(start(denoiser, "window", grid=BlockGrid(3, True), frames=13))
    assert [b.latents.shape[2] for b in blocks] == [1, 3, 3, 3, 3]
    image = torch.randn(1, 4, 1, 4, 4)
    blocks = list(start(denoiser, "window", grid=BlockGrid(3, True), frames=13, initial=image))
    assert torch.equal(blocks[0].latents, image)


class TestPrompts:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("recache", ["none", "window", "all"])
    def test_a_switch_changes_what_follows_and_nothing_before(self, denoiser, method, recache):
        if method == "participative" and recache == "all":
            recache = "window"
        plain = list(start(denoiser, method))
        rollout = start(denoiser, method, recache=recache)
        blocks = [next(rollout) for _ in range(5)]
        rollout.set_prompt("another prompt")
        blocks += list(rollout)
        assert torch.equal(latents(blocks[:5]), latents(plain[:5]))
        in_flight = 2 if method == "rolling" else 0
        changed = latents(blocks[5 + in_flight :]) - latents(plain[5 + in_flight :])
        assert changed.abs().max() > 1e-4
        assert rollout.prompt == "another prompt"
        rollout.cache.check_integrity()

    def test_the_recache_reads_the_new_prompt(self, denoiser):
        """LongLive's recache once ran under the old prompt: then keys after the switch would not depend on the new."""
        found = []
        for prompt in ("x", "a longer one"):
            rollout = start(denoiser, "deep-sink", recache="window")
            for _ in range(5):
                next(rollout)
            rollout.set_prompt(prompt)
            next(rollout)
            slot = rollout.cache.slot(13) * rollout.cache.tokens_per_frame
            found.append(rollout.cache.layers[1].values[:, slot].clone())
        assert (found[0] - found[1]).abs().max() > 1e-4

    def test_a_recache_costs_one_call_and_skips_the_dead_commit(self, denoiser):
        rollout = start(denoiser, "window", recache="window")
        for _ in range(4):
            next(rollout)
        rollout.set_prompt("other")
        block = next(rollout)
        assert block.stats["model_calls"] == 3 + 1  # three steps and the recache; no commit of the block before

    def test_same_prompt_and_recache_of_a_full_history_changes_nothing(self, denoiser):
        """Re-encoding all history in one call differs from block-causal commits only through attention across blocks:
        with one block of history there is none."""
        plain = list(start(denoiser, "window", frames=9))
        rollout = start(denoiser, "window", frames=9, recache="all", encode=lambda _: text_of(denoiser))
        blocks = [next(rollout)]
        rollout.set_prompt("same")
        torch.testing.assert_close(latents(blocks + list(rollout)), latents(plain), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("method", METHODS)
    def test_a_hard_cut_forgets_the_scene_before(self, denoiser, method):
        rollout = start(denoiser, method, frames=30)
        blocks = [next(rollout) for _ in range(4)]
        rollout.set_prompt("new scene", hard_cut=True)
        blocks += list(rollout)
        drained = 4 + (2 if METHODS[method][0] is RollingSchedule else 0)
        assert [b.index for b in blocks] == list(range(11))  # one more: the cut took 3 video frames of 117
        assert [b.start_frame for b in blocks] == list(range(0, 33, 3))
        assert [b.index for b in blocks if b.new_scene] == [0, drained]
        assert blocks[drained].video_frame == 1 + 4 * (3 * drained - 1)
        assert blocks[drained + 1].video_frame == blocks[drained].video_frame + 9

        class Shifted(SeededNoise):
            def __call__(self, block, step, shape):
                return super().__call__(block + drained, step, shape)

        fresh = start(
            denoiser, method, frames=33 - 3 * drained, text=text_of(denoiser, seed=len("new scene")), noise=Shifted(0)
        )
        torch.testing.assert_close(latents(blocks[drained:]), latents(fresh), atol=0, rtol=0)

    @pytest.mark.parametrize("method", ["window", "participative", "rolling"])
    def test_scheduled_switches_resume_exactly(self, denoiser, method):
        switches = [(7, "first", False), (16, "second", True)]
        whole = list(start(denoiser, method, switches=switches, recache="window"))
        rollout = start(denoiser, method, switches=switches, recache="window")
        for _ in range(3):
            next(rollout)
        second = start(denoiser, method, recache="window")
        second.load_state_dict(*rollout.state_dict())
        assert torch.equal(latents(second), latents(whole[3:]))
        assert second.prompt == "second"

    def test_a_prompt_is_read_as_everywhere(self, denoiser):
        told = []
        rollout = start(
            denoiser,
            "window",
            switches=[(9, "kept as [parsed] | it was", False)],
            encode=lambda words: (told.append(words), text_of(denoiser))[1],
        )
        for bad, message in REFUSED_SWITCHES:
            with pytest.raises(InputError, match=message):
                rollout.set_prompt(bad)
        rollout.set_prompt(r" a \[red\]  ball ")
        list(rollout)
        assert told == ["a [red] ball", "kept as [parsed] | it was"]

    def test_batches_must_match(self, denoiser):
        with pytest.raises(InputError, match="batch of 2"):
            start(denoiser, "window").set_prompt(text_of(denoiser, batch=2))


class TestRefusals:
    def test_lengths(self, denoiser):
        with pytest.raises(InputError, match="latent frames=20: must be a multiple of 3; nearest 18 or 21"):
            start(denoiser, "window", frames=20)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (torch.zeros(1, 4, 4, 4, 4), "latent frames=4"),
            (torch.zeros(1, 5, 3, 4, 4), "shape"),
            (torch.zeros(1, 4, 30, 4, 4), "leave nothing to generate"),
            (torch.full((1, 4, 3, 4, 4), float("nan")), "NaN"),
        ],
        ids=["length", "channels", "too-many", "nan"],
    )
    def test_initial_latents(self, denoiser, given, message):
        with pytest.raises(InputError, match=message):
            start(denoiser, "window", initial=given)

    def test_a_block_that_is_not_finite(self, denoiser):
        rollout = start(denoiser, "window", noise=lambda b, s, shape: torch.full(shape, float("inf")))
        with pytest.raises(FloatingPointError, match="block 0"):
            next(rollout)

    def test_steps_and_sampler(self, denoiser):
        with pytest.raises(InputError, match="sampler='heun'"):
            start(denoiser, "window", sampler="heun")


def test_euler_is_the_deterministic_step(denoiser):
    """Only the initial noise is drawn."""
    steps = []

    class Watched(SeededNoise):
        def __call__(self, block, step, shape):
            steps.append(step)
            return super().__call__(block, step, shape)

    rollout = start(denoiser, "window", sampler="euler", noise=Watched(0))
    assert torch.isfinite(latents(rollout)).all()
    assert set(steps) == {0}


def test_step_hook_may_replace_latents(denoiser):
    plain = latents(start(denoiser, "window", frames=6))
    same = latents(start(denoiser, "window", frames=6, on_step=lambda i, t, x: None))
    halved = latents(start(denoiser, "window", frames=6, on_step=lambda i, t, x: x * 0.5))
    assert torch.equal(plain, same)
    assert (plain - halved).abs().max() > 1e-2
