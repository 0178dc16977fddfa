"""Distribution matching distillation: the generator's and the critic's losses.

DMD (Yin et al. 2024, arXiv 2311.18828; DMD2, arXiv 2405.14867), as Self-Forcing uses it (arXiv 2506.08009, sec. 3.3):
the gradient of KL(student || data) at the student's samples is the difference of two scores, and both scores are
denoisers. Re-DMD (Reward Forcing, arXiv 2512.04678, sec. 3.3) multiplies it by exp(reward).

Shape letters: B batch, C channels, F latent frames, h w latent size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from longvid.training.distill.clip import Clip
from longvid.training.distill.draws import Draws
from longvid.training.distill.noise import Sigma, add_noise, clean, exact_sigma, score_timesteps
from longvid.training.distill.scores import Judgement, NetworkCall, guided_velocity, score_velocity


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """How a clip is judged.

    shift: warp of the level at which it is noised. guidance: of the real score, v_u + g (v_c - v_u). judgement,
    frames_per_block: see `scores`. noise_sigma, score_sigma: level of a timestep when noising and when reading a score;
    they differ only in the released code.
    """

    shift: float
    guidance: float = 4.0
    judgement: Judgement = "bidirectional"
    frames_per_block: int = 3
    noise_sigma: Sigma = exact_sigma
    score_sigma: Sigma = exact_sigma


class Matching(NamedTuple):
    """One evaluation of the two scores: timestep [B], the noised clip, and the gradient g [B, C, F, h, w]."""

    timestep: Tensor
    noisy: Tensor
    gradient: Tensor


@torch.no_grad()
def match(
    real: NetworkCall, fake: NetworkCall, x: Tensor, text: Tensor, negative: Tensor, draws: Draws, how: Judging
) -> Matching:
    """g = (x_fake - x_real) / mean|x - x_real|, at one random noise level a sample (DMD eq. 7-8)."""
    timestep = score_timesteps(draws.timesteps(x.shape[0]), how.shift)
    noisy = add_noise(x, draws.normal(tuple(x.shape)), how.noise_sigma(timestep))
    layout = {"judgement": how.judgement, "clean": x, "frames_per_block": how.frames_per_block}
    sigma = how.score_sigma(timestep)
    x_fake = clean(noisy, score_velocity(fake, noisy, timestep, text, **layout), sigma)  # type: ignore[arg-type]
    velocity = guided_velocity(real, noisy, timestep, text, negative, how.guidance, **layout)
    x_real = clean(noisy, velocity, sigma)
    return Matching(timestep, noisy, dmd_gradient(x, x_fake, x_real))


def dmd_gradient(x: Tensor, x_fake: Tensor, x_real: Tensor) -> Tensor:
    """(x_fake - x_real) / mean|x - x_real| a sample; where that is 0 / 0 there is nothing left to learn: 0."""
    scale = (x - x_real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    return torch.nan_to_num((x_fake - x_real) / scale)


def generator_loss(clip: Clip, gradient: Tensor, weight: Tensor | None = None) -> Tensor:
    """L = mean over samples of weight / 2 * mean (x - stopgrad(x - g))^2, in float64: dL/dx = weight * g / elements.

    weight: [B], exp(beta * reward) of Re-DMD (its eq. 9), a constant for the gradient.
    """
    x = clip.latents.double()
    target = (x - gradient.double()).detach()
    error = (x - target).square()
    if clip.counted is not None:
        error = error[:, :, clip.counted]
    each = 0.5 * error.mean(dim=(1, 2, 3, 4))
    return (each if weight is None else each * weight.detach().to(each)).mean()


def critic_loss(fake: NetworkCall, x: Tensor, text: Tensor, draws: Draws, how: Judging) -> Tensor:
    """Flow matching of the critic on the student's own clips: mean (v - (noise - x))^2, unweighted.

    x: [B, C, F, h, w] without graph.
    """
    timestep = score_timesteps(draws.timesteps(x.shape[0]), how.shift)
    noise = draws.normal(tuple(x.shape))
    noise_sigma, score_sigma = how.noise_sigma(timestep), how.score_sigma(timestep)
    noisy = add_noise(x, noise, noise_sigma)
    layout = {"judgement": how.judgement, "clean": x, "frames_per_block": how.frames_per_block}
    velocity = score_velocity(fake, noisy, timestep, text, **layout)  # type: ignore[arg-type]
    # v = (x_sigma - x0) / sigma: the same velocity, unless the score's x0 was read at another level (released code).
    ratio = (score_sigma / noise_sigma).to(velocity).reshape(-1, 1, 1, 1, 1)
    return (velocity * ratio - (noise - x)).square().mean()
