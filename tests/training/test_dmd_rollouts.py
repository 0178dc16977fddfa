"""Training rollouts: the clips of inference, gradient where it belongs and nowhere else."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from longvid.cache.policies import EmaSinkPolicy, RollingPolicy, SlidingPolicy
from longvid.errors import InputError
from longvid.models.denoiser import Denoiser
from longvid.pipelines.rollout import Rollout
from longvid.pipelines.schedules.blocks import BlockGrid
from longvid.pipelines.schedules.chunk import ChunkSchedule
from longvid.pipelines.schedules.rolling import RollingSchedule
from longvid.training.distill.draws import SeededDraws
from longvid.training.distill.network import Network
from longvid.training.distill.rollouts import RolloutPlan, roll_out

SIGMAS = (1.0, 0.9, 0.6)
POLICIES = {
    "all": SlidingPolicy(window=18, frames_per_block=3),
    "window": SlidingPolicy(window=9, frames_per_block=3),
    "sink": SlidingPolicy(window=9, sink=3, frames_per_block=3),
    "relative": SlidingPolicy(window=9, sink=1, positions="window", frames_per_block=3),
    "ema": EmaSinkPolicy(window=9, sink=3, ema_alpha=0.5, frames_per_block=3),
    "ema-behind-static": EmaSinkPolicy(window=12, sink=6, static=3, ema_alpha=0.5, frames_per_block=3),
    "rolling": RollingPolicy(window=12, sink=3, frames_per_block=3),
}


def a_plan(policy="all", **changes):
    plan = RolloutPlan(
        sigmas=SIGMAS,
        frames_per_block=3,
        policy=POLICIES[policy],
        blocks=(6, 6),
        trained_frames=18,
        latent=(4, 4, 4),
    )
    return dataclasses.replace(plan, **changes)


class ChosenDraws(SeededDraws):
    """Seeded draws with a chosen length, exit step or offset, and the noise of (block, step) that Rollout asks for."""

    def __init__(self, choice: int, rolling: bool = False) -> None:
        super().__init__(0, "test")
        self.choice, self.rolling, self.asked, self.noise = choice, rolling, 0, {}

    def integers(self, low, high, count=1):
        self.asked += 1
        return [low] if self.asked == 1 else [self.choice] * count

    def uniform(self):
        return 0.99 if self.rolling else 0.0


class Keyed(ChosenDraws):
    """Noise that depends on (block, step) alone, so that training and inference draw the same."""

    def __init__(self, choice, steps, rolling=False, blocks=6):
        super().__init__(choice, rolling)
        self.order = self._rolling_order(steps, blocks) if rolling else self._chunk_order(choice, blocks)

    @staticmethod
    def _chunk_order(exit_step, blocks):
        # per block: a draw before each further step, then one for the context pass (not part of the rollout's noise)
        return [(b, s) for b in range(blocks) for s in [*range(1, exit_step + 1), None]]

    @staticmethod
    def _rolling_order(steps, blocks):
        schedule = RollingSchedule(steps)
        calls = (schedule.window(w, blocks).entries for w in range(blocks + steps - 1))
        return [(b, s + 1) for entries in calls for b, s in entries if s + 1 < steps]

    def normal(self, shape, within=None):
        if shape[2] > 3:
            return torch.cat([keyed(b, 0, (*shape[:2], 3, *shape[3:])) for b in range(shape[2] // 3)], dim=2)
        block, step = self.order.pop(0)
        return torch.zeros(shape) if step is None else keyed(block, step, shape)


def keyed(block, step, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * block + step))


def inference(network, text, plan, schedule):
    denoiser = Denoiser(network.transformer)
    rollout = Rollout(
        denoiser,
        schedule,
        plan.policy,
        denoiser.encode_text(text),
        grid=BlockGrid(3),
        sigmas=plan.sigmas,
        noise=keyed,
        height=4,
        width=4,
        frames=18,
        context_noise=plan.context_noise,
    )
    latents = torch.cat([block.latents for block in rollout], dim=2)
    denoiser.release()
    return latents


@pytest.fixture
def text():
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("policy", list(POLICIES))
def test_the_last_exit_step_gives_the_clip_of_inference(network, text, policy):
    plan = a_plan(policy)
    clip = roll_out(network, text, Keyed(2, 3), plan)
    expected = inference(network, text, plan, ChunkSchedule(3))
    torch.testing.assert_close(clip.detach(), expected, atol=2e-4, rtol=1e-4)


def test_every_offsets_windows_give_the_blocks_of_inference(network, text):
    """Block b leaves window b + T - 1 clean; over the T offsets every block does so once in a window with gradient."""
    plan = a_plan("rolling", rolling_share=1.0)
    expected = inference(network, text, plan, RollingSchedule(3))
    seen = set()
    for offset in range(3):
        with torch.no_grad():
            clip = roll_out(network, text, Keyed(offset, 3, rolling=True), plan)
        for block in range(6):
            if (block + 2) % 3 == offset:
                span = slice(3 * block, 3 * block + 3)
                torch.testing.assert_close(clip[:, :, span], expected[:, :, span], atol=2e-4, rtol=1e-4)
                seen.add(block)
    assert seen == set(range(6))


def gradient_of(network, latents, frames):
    """Each parameter's gradient of a random projection of some frames."""
    network.zero_grad(set_to_none=True)
    probe = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
    (latents * probe)[:, :, frames].sum().backward(retain_graph=True)
    return torch.cat([p.grad.flatten() for p in network.parameters()])


class Watched(Network):
    """Counts the calls that carry gradient, and keeps the pasts that they read."""

    def __init__(self, transformer, **how):
        super().__init__(transformer, **how)
        self.calls, self.pasts = [], []

    def _run(self, latents, timesteps, text, positions, mask, past, record):
        self.calls.append((latents.shape[2], float(timesteps.max()), torch.is_grad_enabled()))
        self.pasts += [x for layer in past or () for x in layer]
        return super()._run(latents, timesteps, text, positions, mask, past, record)


@pytest.mark.parametrize("rolling", [False, True], ids=["self-forcing", "rolling-forcing"])
def test_history_receives_no_gradient(network, text, rolling):
    watched = Watched(network.transformer)
    plan = a_plan("rolling", rolling_share=1.0 if rolling else 0.0)
    clip = roll_out(watched, text, ChosenDraws(1, rolling), plan)
    assert clip.requires_grad
    assert watched.pasts
    assert not any(past.requires_grad for past in watched.pasts)


def test_a_leak_is_there_when_it_is_asked_for_and_changes_the_gradient_alone(network, text):
    """The negative control of the test above."""
    detached = roll_out(network, text, ChosenDraws(1), a_plan("window"))
    leaking = roll_out(network, text, ChosenDraws(1), a_plan("window", leak=True))
    torch.testing.assert_close(detached, leaking, atol=1e-5, rtol=1e-5)
    one, other = (gradient_of(network, x, slice(6, 18)) for x in (detached, leaking))
    assert (one - other).norm() > 0.01 * one.norm()


def test_a_blocks_gradient_is_its_own_calls_gradient(network, text):
    """Detached history: what block 2 teaches does not depend on blocks 0 and 1 having a graph."""
    whole = roll_out(network, text, ChosenDraws(1), a_plan(trained_frames=18))
    late = roll_out(network, text, ChosenDraws(1), a_plan(trained_frames=12))
    torch.testing.assert_close(
        gradient_of(network, whole, slice(6, 9)), gradient_of(network, late, slice(6, 9)), atol=1e-5, rtol=1e-4
    )


def test_only_the_exit_step_has_gradient_and_only_in_the_judged_frames(network, text):
    watched = Watched(network.transformer)
    roll_out(watched, text, ChosenDraws(1), a_plan(trained_frames=12))
    with_gradient = [call for call in watched.calls if call[2]]
    assert with_gradient == [(3, pytest.approx(900.0), True)] * 4
    # 6 blocks x (2 steps + commit), without the last commit, which nobody reads
    assert len(watched.calls) == 6 * 3 - 1


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_windows_with_gradient_do_not_overlap_and_cover_every_block(network, text, offset):
    watched = Watched(network.transformer)
    clip = roll_out(watched, text, ChosenDraws(offset, rolling=True), a_plan("rolling", rolling_share=1.0))
    assert sum(frames for frames, _, gradient in watched.calls if gradient) == 18
    for block in range(6):
        assert gradient_of(network, clip, slice(3 * block, 3 * block + 3)).norm() > 0


def test_without_gradient_it_is_the_same_clip(network, text):
    for rolling in (False, True):
        plan = a_plan("rolling", rolling_share=1.0 if rolling else 0.0)
        with torch.no_grad():
            silent = roll_out(network, text, ChosenDraws(2, rolling), plan)
        assert not silent.requires_grad
        torch.testing.assert_close(roll_out(network, text, ChosenDraws(2, rolling), plan).detach(), silent)


def test_recomputing_activations_changes_nothing(network, text):
    saving = Network(network.transformer, recompute=True)
    one, other = (
        gradient_of(network, roll_out(n, text, ChosenDraws(1), a_plan("window")), slice(0, 18))
        for n in (network, saving)
    )
    torch.testing.assert_close(one, other)


def test_bfloat16_has_gradients_close_to_float32s(network, text):
    """A cast of the weights that was made under no_grad and then reused would cut them off entirely."""
    low = Network(network.transformer, precision=torch.bfloat16)
    one, other = (
        gradient_of(network, roll_out(n, text, ChosenDraws(1), a_plan("window")), slice(0, 18)) for n in (network, low)
    )
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.98


def test_a_context_level_noises_what_is_remembered_not_what_is_shown(network, text):
    quiet = roll_out(network, text, ChosenDraws(1), a_plan())
    noisy = roll_out(network, text, ChosenDraws(1), a_plan(context_noise=200.0))
    torch.testing.assert_close(quiet[:, :, :3], noisy[:, :, :3])
    assert (quiet - noisy)[:, :, 3:].abs().max() > 1e-3


def test_lengths_are_drawn_between_the_bounds(network, text):
    plan = a_plan(blocks=(2, 4), trained_frames=6)
    lengths = {roll_out(network, text[:1], SeededDraws(0, "lengths", i), plan).shape[2] // 3 for i in range(12)}
    assert lengths == {2, 3, 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_frames": 21}, "at most the shortest rollout"),
        ({"trained_frames": 4}, "whole blocks of 3"),
        ({"blocks": (3, 2), "trained_frames": 3}, "fewest, most"),
        ({"blocks": (2, 6), "trained_frames": 6, "rolling_share": 0.5}, "at least as many blocks"),
    ],
    ids=lambda c: ",".join(c) if isinstance(c, dict) else "",
)
def test_plans_that_cannot_be(changes, message):
    with pytest.raises(InputError, match=message):
        a_plan(**changes)


def test_draws_depend_on_the_place_and_shared_ones_not_on_the_process():
    one, same, other = SeededDraws(0, "a", 1), SeededDraws(0, "a", 1, rank=0), SeededDraws(0, "a", 1, rank=1)
    shape = (1, 2, 3, 2, 2)
    noise = one.normal(shape)
    assert torch.equal(noise, same.normal(shape))
    assert not torch.equal(noise, other.normal(shape))
    assert not torch.equal(noise, SeededDraws(0, "a", 2).normal(shape))
    assert one.integers(0, 1000, 8) == other.integers(0, 1000, 8)
    assert one.uniform() == other.uniform()
