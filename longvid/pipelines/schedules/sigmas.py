"""Flow-matching noise levels: sigma in [0, 1], timestep = 1000 * sigma, x_sigma = (1 - sigma) x0 + sigma noise."""

from __future__ import annotations

from collections.abc import Sequence


def shift_sigma(sigma: float, shift: float) -> float:
    """sigma' = k sigma / (1 + (k - 1) sigma) (Esser et al. 2024, eq. 23)."""
    return min(1.0, shift * sigma / (1.0 + (shift - 1.0) * sigma))  # rounding may reach beyond 1


def step_sigmas(steps: Sequence[float], shift: float = 1.0, warp: bool = True) -> tuple[float, ...]:
    """The noise level of each step of a timestep list such as 1000, 750, 500, 250, warped by the shift or as it is."""
    return tuple(shift_sigma(t / 1000.0, shift) if warp else t / 1000.0 for t in steps)


def even_steps(count: int) -> tuple[float, ...]:
    """`count` timesteps from 1000 down, evenly spaced before the warp; 4 gives 1000, 750, 500, 250."""
    return tuple(1000.0 * (count - i) / count for i in range(count))


def sigma_grid(shift: float, points: int = 1000) -> tuple[float, ...]:
    """The training grid of `points` levels, falling: u_i = 1 - i / points, shifted."""
    return tuple(shift_sigma(1.0 - i / points, shift) for i in range(points))
