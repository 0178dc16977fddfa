"""Noise levels of training. x_sigma = (1 - sigma) x0 + sigma noise; the model predicts v = noise - x0.

Shape letters: B batch, C channels, F latent frames, h w latent size. Levels are [B], or [B, F], or one number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Sigma = Callable[[Tensor], Tensor]
"""Timesteps (0..1000) -> sigmas, float64."""


def exact_sigma(timesteps: Tensor) -> Tensor:
    """sigma = t / 1000. (The released code looks t up on a grid, and on two different grids: docs/training.md.)"""
    return timesteps.double() / 1000.0


def wide(level: Tensor | float, x: Tensor) -> Tensor:
    """A level, shaped to broadcast over latents [B, C, F, h, w], in float64."""
    level = torch.as_tensor(level, dtype=torch.float64, device=x.device)
    if level.ndim < 2:
        return level.reshape(-1, 1, 1, 1, 1)
    return level[:, None, :, None, None]


def add_noise(x: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    s = wide(sigma, x)
    return ((1 - s) * x.double() + s * noise.double()).to(x.dtype)


def clean(x: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """x0 = x - sigma v."""
    return (x.double() - wide(sigma, x) * velocity.double()).to(x.dtype)


def score_timesteps(integers: Tensor, shift: float, bounds: tuple[float, float] = (20.0, 980.0)) -> Tensor:
    """The timestep [B] at which a clip is judged: uniform integers 0..999, warped by the shift, kept off the ends."""
    u = integers.double() / 1000.0
    warped = shift * u / (1.0 + (shift - 1.0) * u)
    return (1000.0 * warped).clamp(*bounds)
