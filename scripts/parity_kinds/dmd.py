"""One training step of distillation: kind ``dmd_step``.

A case names up to three files: ``generator`` (every random draw of a generator pass in order, what it led to, and the
gradients of the released code), ``critic`` (the same of a critic pass) and ``detached_gradients`` (the generator's
gradients with detached history). All three are reproduced by longvid.training.distill; the released code's gradients by
letting history leak as its in-place cache does, and by its two noise grids. The error is relative: of a loss, and of
every tensor against its own largest value (gradients: or a hundredth of the largest of all, for those that are almost
zero).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longvid.cache.policies import Policy, RollingPolicy, SlidingPolicy
from longvid.models.checkpoints import load_transformer
from longvid.models.checkpoints.layouts import extract, to_diffusers_names
from longvid.models.rope import ExactTimesteps
from longvid.pipelines.schedules.sigmas import step_sigmas
from longvid.training.distill.clip import Clip, judged_clip
from longvid.training.distill.dmd import Judging, critic_loss, generator_loss, match
from longvid.training.distill.network import Network
from longvid.training.distill.rollouts import RolloutPlan, roll_out

from .forwards import nearest_sigma
from .golden import config, frames_second, read

SCORE_SHIFT = 8.0  # the released score wrappers look sigma up on their default grid, the noise on the configured one
TRAINED_FRAMES = 21
ROLLING_SINK = 3


class RecordedDraws:
    """A file's draws in place of a seed; every number must be asked for, in its order."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._left = [(name, tensors[name]) for name in sorted(t for t in tensors if t.startswith("draw_"))]

    def _next(self, kind: str) -> Tensor:
        if not self._left:
            raise ValueError(f"draws: the file has none left, {kind} was asked for")
        name, value = self._left.pop(0)
        if name.split("_", 2)[2] not in (kind, f"{kind}_like"):
            raise ValueError(f"draws: {name} comes next, {kind} was asked for")
        return value

    def integers(self, low: int, high: int, count: int = 1) -> list[int]:
        numbers = [int(i) for i in self._next("randint").flatten()]
        if not all(low <= i < high for i in numbers):
            raise ValueError(f"draws: {numbers} are not all in [{low}, {high})")
        return numbers

    def uniform(self) -> float:
        return float(self._next("rand"))

    def timesteps(self, batch: int) -> Tensor:
        return self._next("randint").reshape(batch)

    def normal(self, shape: tuple[int, ...], within: tuple[int, int] | None = None) -> Tensor:
        draw = self._next("randn")
        if draw.ndim == 4:  # [B * F, C, h, w]
            draw = draw.unflatten(0, (shape[0], -1))
        if within is not None and draw.shape[1] == within[0]:
            draw = draw[:, within[1] : within[1] + shape[2]]
        if tuple(frames_second(draw).shape) != shape:
            raise ValueError(f"draws: the file has {tuple(draw.shape)} where {shape} is asked for")
        return frames_second(draw)

    def finish(self) -> None:
        if self._left:
            raise ValueError(f"draws: {len(self._left)} of the file's were never asked for, first {self._left[0][0]}")


class Step:
    """The facts that both passes of a case share."""

    def __init__(self, case: dict[str, Any], directory: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        facts = config(directory)
        n = case.get("num_frame_per_block", case.get("frames_per_block", facts["num_frame_per_block"]))
        shift = case.get("timestep_shift", facts["timestep_shift"])
        draws = [name.split("_", 2)[2] for name in sorted(tensors) if name.startswith("draw_")]
        rolling = "rand" in draws  # Rolling Forcing's passes flip a coin
        steps = (
            meta.get("steps")
            or case.get("steps")
            or facts["rf_denoising_step_list" if rolling else "sf_denoising_step_list"]
        )
        trained = case.get("trained_frames", TRAINED_FRAMES)
        most = meta.get("frames_max") or case.get("frames_max") or tensors["draw_001_randn"].shape[1]
        noise = tensors["draw_001_randn"]
        policy: Policy = SlidingPolicy(window=trained, frames_per_block=n)
        if rolling:
            policy = RollingPolicy(
                window=facts.get("rf_max_attention_frames", trained),
                sink=facts.get("rf_sink_frames", ROLLING_SINK),
                frames_per_block=n,
                cache_frames=max(most, noise.shape[1]),
            )

        def sigma(t: Tensor) -> Tensor:
            return nearest_sigma(t, shift)

        def score_sigma(t: Tensor) -> Tensor:
            return nearest_sigma(t, case.get("score_shift", SCORE_SHIFT))

        self.plan = RolloutPlan(
            sigmas=step_sigmas(steps, shift, case.get("warp", True)),
            frames_per_block=n,
            policy=policy,
            blocks=(trained // n, max(most // n, trained // n)),
            trained_frames=trained,
            latent=(noise.shape[2], noise.shape[3], noise.shape[4]),
            context_noise=case.get("context_noise", 0),
            rolling_share=0.5 if rolling else 0.0,
            sigma=sigma,
        )
        self.judging = Judging(
            shift=shift,
            guidance=1.0 + case.get("real_guidance_scale", 3.0),
            frames_per_block=n,
            noise_sigma=sigma,
            score_sigma=score_sigma,
        )
        self.draws, self.text = RecordedDraws(tensors), tensors["prompt_embeds"]

    def clip(self, generator: Network, leak: bool = False) -> Clip:
        plan = dataclasses.replace(self.plan, leak=leak)
        latents = roll_out(generator, self.text, self.draws, plan)
        return judged_clip(latents, plan.trained_frames, plan.frames_per_block, vae=None)


def network(case: dict[str, Any], directory: Path, role: str) -> Network:
    model = load_transformer(directory / case["weights"][role], config=config(directory)["model"], dtype=torch.float32)
    model.condition_embedder.timesteps_proj = ExactTimesteps(model.config.freq_dim)
    return Network(model.eval())


def relative(ours: Tensor, golden: Tensor, floor: float = 0.0) -> float:
    """Largest difference as a share of the golden tensor's largest value, at least `floor`."""
    if ours.shape != golden.shape or not bool(torch.isfinite(ours).all()):
        return float("inf")
    scale = max(float(golden.abs().max()), floor)
    worst = float((ours.double() - golden.double()).abs().max())
    return worst / scale if scale else worst


def gradients(network: Network, tensors: dict[str, Tensor]) -> list[float]:
    """Errors of the gradients that the file holds; a parameter without any gradient is an error too."""
    named = {name.removeprefix("grad."): t for name, t in tensors.items() if name.startswith("grad.")}
    golden = to_diffusers_names(extract(named, source="gradients"))
    ours = {name: p.grad for name, p in network.transformer.named_parameters() if p.grad is not None}
    if not set(golden) <= set(ours) or len(ours) != len(list(network.parameters())):
        return [float("inf")]
    floor = 0.01 * max(float(t.abs().max()) for t in golden.values())
    return [relative(ours[name], t, floor) for name, t in golden.items()]


def generator_step(
    case: dict[str, Any],
    directory: Path,
    file: str,
    compare: Callable[[Network, Tensor, Any, Clip], list[float]],
    leak: bool,
) -> list[float]:
    tensors, meta = read(directory / file)
    step = Step(case, directory, tensors, meta)
    generator, real, fake = (network(case, directory, role) for role in ("generator", "real", "fake"))
    clip = step.clip(generator, leak)
    matching = match(real, fake, clip.latents.detach(), step.text, tensors["negative_embeds"], step.draws, step.judging)
    step.draws.finish()
    loss = generator_loss(clip, matching.gradient)
    loss.backward()
    return compare(generator, loss, matching, clip)


def dmd_step(case: dict[str, Any], directory: Path) -> float:
    errors: list[float] = []
    tensors, _ = read(directory / case["generator"])

    def whole(generator: Network, loss: Tensor, matching: Any, clip: Clip) -> list[float]:
        batch, frames = clip.latents.shape[0], clip.latents.shape[2]
        found = [
            relative(loss.detach(), tensors["loss"]),
            relative(frames_second(clip.latents.detach()), tensors["pred"]),
            relative(frames_second(matching.noisy), tensors["noisy"]),
            relative(frames_second(matching.gradient), tensors["kl_grad"]),
            relative(matching.timestep[:, None].expand(-1, frames), tensors["dmd_timestep"].double()),
        ]
        if (clip.counted is None) != ("gradient_mask" not in tensors):
            return [float("inf")]
        if clip.counted is not None:
            found.append(relative(clip.counted.expand(batch, -1).double(), tensors["gradient_mask"].double()))
        return found + gradients(generator, tensors)

    errors += generator_step(case, directory, case["generator"], whole, leak=True)
    if case.get("detached_gradients"):
        detached, _ = read(directory / case["detached_gradients"])
        errors += generator_step(case, directory, case["generator"], lambda g, *_: gradients(g, detached), leak=False)
    if case.get("critic"):
        errors += critic_step(case, directory)
    return max(errors)


def critic_step(case: dict[str, Any], directory: Path) -> list[float]:
    tensors, meta = read(directory / case["critic"])
    step = Step(case, directory, tensors, meta)
    generator, fake = (network(case, directory, role) for role in ("generator", "fake"))
    with torch.no_grad():
        clip = step.clip(generator)
    loss = critic_loss(fake, clip.latents, step.text, step.draws, step.judging)
    step.draws.finish()
    loss.backward()
    return [relative(loss.detach(), tensors["loss"]), *gradients(fake, tensors)]


RUNNERS = {"dmd_step": dmd_step}
