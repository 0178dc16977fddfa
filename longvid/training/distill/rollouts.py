"""Rollouts that are trained: the student makes a clip by itself, as at inference, and some of its calls carry gradient.

Self-Forcing (arXiv 2506.08009, algorithm 1): block after block; a random exit step; only the call at that step has
gradient, and its prediction of the clean block is the block. Rolling Forcing (arXiv 2509.25161, sec. 3.4): the joint
window of inference; every T-th window has gradient, so that the windows that have it tile the clip without overlap and
all T noise levels are trained at once.

In both, history is detached: a block reads what earlier blocks left, and no gradient flows there.

Shape letters: B batch, C channels, F latent frames, h w latent size; n frames a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longvid.cache.policies import Policy, View
from longvid.errors import InputError
from longvid.pipelines.schedules.rolling import RollingSchedule
from longvid.training.distill.draws import Draws
from longvid.training.distill.history import FrameKeys, History, straight_through
from longvid.training.distill.network import Network
from longvid.training.distill.noise import Sigma, add_noise, clean, exact_sigma


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPlan:
    """How the student rolls out.

    sigmas: noise level of each denoising step, falling from 1. frames_per_block: n. policy: what is remembered, as at
    inference. blocks: fewest and most blocks of a clip, drawn a pass. trained_frames: the newest frames that may carry
    gradient, those that are judged. latent: (C, h, w). context_noise: timestep of the pass that writes a finished
    block's keys. rolling_share: share of the passes that roll with joint windows. sigma: noise level of a timestep.
    leak: let gradient through history as the released code does; for comparison only.
    """

    sigmas: tuple[float, ...]
    frames_per_block: int
    policy: Policy
    blocks: tuple[int, int]
    trained_frames: int
    latent: tuple[int, int, int]
    context_noise: float = 0.0
    rolling_share: float = 0.0
    sigma: Sigma = exact_sigma
    leak: bool = False

    def __post_init__(self) -> None:
        low, high = self.blocks
        if not 1 <= low <= high:
            raise InputError(f"blocks={self.blocks}: must be (fewest, most), 1 or more")
        if self.trained_frames % self.frames_per_block or self.trained_frames > low * self.frames_per_block:
            raise InputError(
                f"trained_frames={self.trained_frames}: must be whole blocks of {self.frames_per_block}, "
                f"at most the shortest rollout ({low * self.frames_per_block})"
            )
        if self.rolling_share and low < len(self.sigmas):
            raise InputError(
                f"blocks={self.blocks}: rolling over {len(self.sigmas)} steps needs at least as many blocks"
            )


def roll_out(network: Network, text: Tensor, draws: Draws, plan: RolloutPlan) -> Tensor:
    """A clip [B, C, F, h, w] with the graph of its trained calls. text: [B, T, text_dim].

    Under `torch.no_grad()` it is the same clip without a graph.
    """
    blocks = draws.integers(plan.blocks[0], plan.blocks[1] + 1)[0]
    channels, height, width = plan.latent
    noise = draws.normal((text.shape[0], channels, blocks * plan.frames_per_block, height, width))
    rolling = plan.rolling_share > 0 and draws.uniform() > 1 - plan.rolling_share
    with network.session():
        return (_rolling if rolling else _self_forcing)(network, text, draws, plan, noise)


class _Caller:
    """One rollout's model calls: a view of the history, the call, the clean prediction."""

    def __init__(self, network: Network, text: Tensor, size: tuple[int, int]) -> None:
        self.network, self.text, self.size = network, text, size
        self._read: tuple[History, View, list[tuple[Tensor, Tensor]] | None] | None = None

    def __call__(
        self, x: Tensor, timesteps: Tensor, history: History, view: View, record: bool
    ) -> tuple[Tensor, FrameKeys | None]:
        if self._read is None or self._read[0] is not history or self._read[1] != view:
            # Rotated once for all steps of a block, outside whatever no_grad the first of them stands in.
            with torch.set_grad_enabled(history.kept is not None and history.kept.keys.requires_grad):
                past = history.read(view, lambda keys, at: self.network.rotate(keys, at, *self.size))
            self._read = (history, view, past)
        timesteps = timesteps.to(x.device, torch.float32).expand(x.shape[0], x.shape[2])
        positions = view.own_positions
        return self.network(x, timesteps, self.text, positions, past=self._read[2], record=record)  # type: ignore[no-any-return]

    @torch.no_grad()
    def commit(self, x: Tensor, timestep: float, history: History, view: View) -> FrameKeys:
        keys = self(x, torch.tensor(timestep), history, view, record=True)[1]
        assert keys is not None
        return keys


def _self_forcing(network: Network, text: Tensor, draws: Draws, plan: RolloutPlan, noise: Tensor) -> Tensor:
    n, frames, trained = plan.frames_per_block, noise.shape[2], torch.is_grad_enabled()
    # One exit step for the whole clip ("same_step_across_blocks"); as many numbers are drawn as there are blocks.
    exit_step = draws.integers(0, len(plan.sigmas), frames // n)[0]
    context = float(plan.sigma(torch.tensor(plan.context_noise)))
    call, history, clip = _Caller(network, text, (noise.shape[3], noise.shape[4])), History(), []
    for start in range(0, frames, n):
        views, history = history.plan(plan.policy, start, n, n)
        x, noisy = noise[:, :, start : start + n], None
        for step in range(exit_step + 1):
            with torch.set_grad_enabled(trained and step == exit_step and start >= frames - plan.trained_frames):
                sigma = plan.sigmas[step]
                record = plan.leak and torch.is_grad_enabled()
                velocity, noisy = call(x, torch.tensor(1000 * sigma), history, views.denoise, record)
                x0 = clean(x, velocity, sigma)
            if step < exit_step:
                x = add_noise(x0, draws.normal(tuple(x0.shape)), plan.sigmas[step + 1])
        clip.append(x0)
        # The context pass: the block, noised to the context level, leaves its keys and values. No gradient.
        done = add_noise(x0.detach(), draws.normal(tuple(x0.shape)), context)
        if start + n < frames:
            keys = call.commit(done, plan.context_noise, history, views.commit)
            history = history.append(start, keys if noisy is None else straight_through(keys, noisy))
    return torch.cat(clip, dim=2)


def _rolling(network: Network, text: Tensor, draws: Draws, plan: RolloutPlan, noise: Tensor) -> Tensor:
    n, frames, trained = plan.frames_per_block, noise.shape[2], torch.is_grad_enabled()
    steps, blocks = len(plan.sigmas), frames // n
    offset = draws.integers(0, steps)[0]
    schedule = RollingSchedule(steps)
    call, history = _Caller(network, text, (noise.shape[3], noise.shape[4])), History()
    work: dict[int, Tensor] = {}
    leaks: dict[int, FrameKeys] = {}
    clip = [torch.zeros_like(noise[:, :, :n]) for _ in range(blocks)]
    for w in range(blocks + steps - 1):
        window = schedule.window(w, blocks)
        assert window is not None
        entries = window.entries
        first, last = entries[0][0], entries[-1][0]
        if entries[-1][1] == 0:
            work[last] = noise[:, :, last * n : (last + 1) * n]
        views, settled = history.plan(plan.policy, first * n, n, len(entries) * n)
        # Windows of one offset neither overlap nor leave a block out.
        chosen = w % steps == offset and (last + 1) * n > frames - plan.trained_frames
        with torch.set_grad_enabled(trained and chosen):
            x = torch.cat([work[block] for block, _ in entries], dim=2)
            levels = torch.tensor([plan.sigmas[step] for _, step in entries]).repeat_interleave(n)
            record = plan.leak and torch.is_grad_enabled()
            velocity, noisy = call(x, 1000 * levels, settled, views.denoise, record)
            x0 = torch.split(clean(x, velocity, levels.expand(x.shape[0], -1)), n, dim=2)
        if noisy is not None:
            leaks[first] = noisy.frames(n)  # the released cache stores the first block of a call, no other
        for at, ((block, step), prediction) in enumerate(zip(entries, x0, strict=True)):
            if chosen:
                clip[block] = prediction
            if step + 1 < steps:
                within = (len(entries) * n, at * n)
                draw = draws.normal(tuple(prediction.shape), within)
                work[block] = add_noise(prediction.detach(), draw, plan.sigmas[step + 1])
        if entries[0][1] + 1 == steps:
            # The oldest block is clean: it leaves its keys and values, with no added noise.
            del work[first]
            if first + 1 < blocks:
                keys = call.commit(x0[0].detach(), plan.context_noise, settled, views.commit)
                leak = leaks.pop(first, None)
                history = settled.append(first * n, keys if leak is None else straight_through(keys, leak))
    return torch.cat(clip, dim=2)
