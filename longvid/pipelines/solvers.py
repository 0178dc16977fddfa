"""One denoising step for frames that are at different noise levels.

Flow matching: ``x = (1 - s) x0 + s eps``, the model predicts ``v = eps - x0``, so that ``x0 = x - s v`` and
``eps = x + (1 - s) v``. Every function takes sigmas that broadcast against ``x``; a queue passes ``[F, 1, 1]`` for
latents ``[B, C, F, h, w]``, so each frame takes the step of its own level.

Do not reach for ``FlowMatchEulerDiscreteScheduler.step(per_token_timesteps=...)`` here: with timesteps per token its
``dt`` is ``sigma - sigma_next``, the opposite sign of its own scalar path, so it walks back into the noise unless the
caller negates ``v`` (tests/pipelines/test_fifo_solvers.py shows it).

Shape letters: B batch, C channels, F latent frames, h w latent height and width, T levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longvid.errors import InputError
from longvid.pipelines.schedules.fifo import FifoSchedule

SOLVERS = ("ab2", "euler")
# Guidance in its exact form divides by the share of clean signal, which is none at level T.
LEAST_CLEAN = 1e-3


def x0_from_velocity(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """Clean latents that ``v`` points at: ``x0 = x - s v``."""
    return x - sigma * v


def noise_from_velocity(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """Noise that ``v`` points away from: ``eps = x + (1 - s) v``."""
    return x + (1.0 - sigma) * v


def classifier_free_guidance(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """``u + w (c - u)``; ``w = 1`` is the conditional prediction alone."""
    return unconditional + scale * (conditional - unconditional)


def euler_step(x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """``x' = x + (s' - s) v``, which equals ``(1 - s') x0 + s' eps``."""
    return x + (sigma_next - sigma) * v


def adams_bashforth_velocity(v: Tensor, v_before: Tensor, sigma: Tensor, sigma_next: Tensor, before: Tensor) -> Tensor:
    """Velocity of a second-order Adams-Bashforth step with unequal step sizes.

    ``(1 + r) v - r v_before`` with ``r = (s' - s) / (2 (s - s_before))``: ``v_before`` is the velocity that *this
    frame* had one pass ago, at ``before``, whatever slot it was in then.
    """
    r = (sigma_next - sigma) / (2.0 * (sigma - before))
    return (1.0 + r) * v - r * v_before


def stochastic_step(x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Tensor, eta: float) -> Tensor:
    """DDIM's stochastic step in flow coordinates; ``eta = 0`` is Euler, ``eta = 1`` ancestral.

    ``x' = (1 - s') x0 + sqrt(s'^2 - w^2) eps + w z`` with ``w = eta (s'/s) sqrt(s^2 - ((1 - s)/(1 - s'))^2 s'^2)``.
    At ``s' = 0`` nothing is added; at ``s = 1`` (level T) all noise may be replaced.
    """
    # 1 - s' is never 0: s' is the sigma after a step, so below 1.
    kept = ((1.0 - sigma) / (1.0 - sigma_next)) * sigma_next
    w = eta * sigma_next / sigma * (sigma**2 - kept**2).clamp_min(0.0).sqrt()
    clean = x0_from_velocity(x, v, sigma)
    direction = noise_from_velocity(x, v, sigma)
    return (1.0 - sigma_next) * clean + (sigma_next**2 - w**2).clamp_min(0.0).sqrt() * direction + w * noise


def guided_step(
    x: Tensor, v: Tensor, score: Tensor, sigma: Tensor, sigma_next: Tensor, scale: float, *, exact: bool = False
) -> Tensor:
    """Euler step that also descends a loss ``L``, given ``score = dL/dx``.

    ``exact=False`` is Ouroboros' step (its Eq. 6, only the noise direction is moved) carried over to flow:
    ``x' = x + (s' - s) v - g s' s score``. ``exact=True`` samples the law weighted by ``exp(-g L)``:
    ``x' = x + (s' - s) (v + g s / (1 - s) score)``, with ``1 - s`` held at 1e-3 or more.
    """
    if exact:
        return euler_step(x, v + scale * sigma / (1.0 - sigma).clamp_min(LEAST_CLEAN) * score, sigma, sigma_next)
    return euler_step(x, v, sigma, sigma_next) - scale * sigma_next * sigma * score


def frame_axis(values: Tensor) -> Tensor:
    """``[F]`` to ``[F, 1, 1]``, which broadcasts against ``[B, C, F, h, w]``."""
    return values[:, None, None]


@dataclass(frozen=True, kw_only=True)
class FlowSolver:
    """Flow-matching step of a whole queue.

    Args:
        schedule: gives sigma of each slot.
        solver: ``"ab2"`` (second order from each frame's own previous velocity, at no model call) or ``"euler"``.
            A queue advances every frame by one level a pass, so a frame's last velocity is always one level back:
            with the exact model AB2 halves or better the error in variance and in frame-to-frame correlation.
        eta: 0 deterministic, 1 ancestral. Noise in between calls contradicts AB2's extrapolation, so it needs Euler.

    Raises:
        InputError: unknown solver, eta outside [0, 1], eta with AB2.
    """

    schedule: FifoSchedule
    solver: str = "ab2"
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise InputError(f"solver={self.solver!r}: must be one of {', '.join(SOLVERS)}")
        if not 0.0 <= self.eta <= 1.0:
            raise InputError(f"eta={self.eta!r}: must be between 0 (deterministic) and 1 (ancestral)")
        if self.eta and self.solver != "euler":
            raise InputError(f"eta={self.eta}: a stochastic step needs solver='euler', not {self.solver!r}")

    @property
    def multistep(self) -> bool:
        return self.solver == "ab2"

    def timesteps(self) -> Tensor:
        """Timestep that each slot is announced with, float64 ``[Q]``: ``1000 s``."""
        return torch.tensor(self.schedule.slot_sigmas, dtype=torch.float64) * 1000.0

    def sigma_at(self, levels: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Sigma ``[F, 1, 1]`` of integer levels ``[F]``."""
        table = torch.tensor(self.schedule.sigmas, dtype=torch.float64)
        return frame_axis(table[levels.cpu()]).to(device=device, dtype=dtype)

    def add_noise(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Latents at ``levels``: ``(1 - s) x0 + s eps``."""
        sigma = self.sigma_at(levels, clean.dtype, clean.device)
        return (1.0 - sigma) * clean + sigma * noise

    def step(
        self,
        x: Tensor,
        v: Tensor,
        levels: Tensor,
        *,
        v_before: Tensor | None = None,
        has_before: Tensor | None = None,
        noise: Tensor | None = None,
        score: Tensor | None = None,
        guidance: float = 0.0,
        exact: bool = False,
    ) -> Tensor:
        """Take every frame one level down.

        Args:
            x, v: latents and velocity ``[B, C, F, h, w]``.
            levels: integer level of each frame before the step ``[F]``, 1 or more.
            v_before, has_before: each frame's velocity of the pass before and whether there was one (AB2).
            noise: standard normal noise like ``x``; needed when ``eta > 0``.
            score, guidance, exact: ``dL/dx`` of a loss, its scale and form; see ``guided_step``.
        """
        sigma = self.sigma_at(levels, x.dtype, x.device)
        sigma_next = self.sigma_at(levels - 1, x.dtype, x.device)
        if self.multistep and v_before is not None and has_before is not None:
            top = self.schedule.levels
            before = self.sigma_at((levels + 1).clamp_max(top), x.dtype, x.device)
            # The frame at level T has just entered and has no velocity yet; keep its ratio finite.
            before = torch.where(before > sigma, before, sigma + 1.0)
            extrapolated = adams_bashforth_velocity(v, v_before, sigma, sigma_next, before)
            v = torch.where(frame_axis(has_before.to(x.device)), extrapolated, v)
        if score is not None and exact:
            v = v + guidance * sigma / (1.0 - sigma).clamp_min(LEAST_CLEAN) * score
        if self.eta:
            if noise is None:
                raise InputError(f"noise=None: eta={self.eta} needs fresh noise at every step")
            stepped = stochastic_step(x, v, sigma, sigma_next, noise, self.eta)
        else:
            stepped = euler_step(x, v, sigma, sigma_next)
        if score is not None and not exact:
            stepped = stepped - guidance * sigma_next * sigma * score
        return stepped


def ddim_step(
    x: Tensor,
    eps: Tensor,
    alpha: Tensor,
    alpha_prev: Tensor,
    spread: Tensor,
    *,
    noise: Tensor | None = None,
    score: Tensor | None = None,
    guidance: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """DDIM step of a noise-predicting model, and the clean latents it aims at.

    ``x' = sqrt(a') x0 + sqrt(1 - a' - w^2) (eps - g sqrt(1 - a) score) + w z``. With ``score = dL/dx`` this is
    Ouroboros' self-recurrent step (Eq. 6): only the direction is moved, ``x0`` is left alone.

    Args:
        alpha, alpha_prev: cumulative alphas before and after the step, broadcasting against ``x``.
        spread: ``w``, the standard deviation of the added noise.
    """
    clean = (x - (1.0 - alpha).sqrt() * eps) / alpha.sqrt()
    direction = eps if score is None else eps - guidance * (1.0 - alpha).sqrt() * score
    stepped = alpha_prev.sqrt() * clean + (1.0 - alpha_prev - spread**2).clamp_min(0.0).sqrt() * direction
    if noise is not None:
        stepped = stepped + spread * noise
    return stepped, clean


@dataclass(frozen=True, kw_only=True)
class DDIMSolver:
    """FIFO's own step, for noise-predicting models and for comparison with the published code.

    The reference's constants are kept, its quirk too: its last level has ``alpha_prev = alpha``, so with ``eta = 0``
    a frame leaves with residual noise of ``sqrt(1 - alpha_0)``.

    Args:
        schedule: its ``shift`` plays no part here.
        eta: 0 deterministic, 1 ancestral.
        train_steps, beta_start, beta_end: of the scaled-linear training schedule.
    """

    schedule: FifoSchedule
    eta: float = 0.0
    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    @property
    def multistep(self) -> bool:
        return False

    def train_alphas(self) -> Tensor:
        """Cumulative alpha of every training timestep, float64 ``[train_steps]``."""
        root = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_steps, dtype=torch.float64)
        return torch.cumprod(1.0 - root**2, dim=0)

    def level_timesteps(self) -> Tensor:
        """Training timestep of levels ``1 .. T``, ascending: ``round(linspace(0, train_steps - 1, T))``."""
        return torch.linspace(0, self.train_steps - 1, self.schedule.levels, dtype=torch.float64).round().long()

    def alphas(self) -> tuple[Tensor, Tensor, Tensor]:
        """``alpha``, ``alpha_prev`` and noise spread of levels ``1 .. T``, float64."""
        train = self.train_alphas()
        alpha = train[self.level_timesteps()]
        alpha_prev = torch.cat([train[:1], alpha[:-1]])
        spread = self.eta * ((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)).sqrt()
        return alpha, alpha_prev, spread

    def timesteps(self) -> Tensor:
        """Timestep that each slot is announced with, float64 ``[Q]``; context slots take the lowest level's."""
        levels = torch.tensor(self.schedule.slot_levels).clamp_min(1)
        return self.level_timesteps()[levels - 1].double()

    def add_noise(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Latents at ``levels`` (level 0 counts as the lowest): ``sqrt(a) x0 + sqrt(1 - a) eps``."""
        alpha = frame_axis(self.alphas()[0][levels.cpu().clamp_min(1) - 1]).to(clean)
        return alpha.sqrt() * clean + (1.0 - alpha).sqrt() * noise

    def step(
        self,
        x: Tensor,
        v: Tensor,
        levels: Tensor,
        *,
        v_before: Tensor | None = None,
        has_before: Tensor | None = None,
        noise: Tensor | None = None,
        score: Tensor | None = None,
        guidance: float = 0.0,
        exact: bool = False,
    ) -> Tensor:
        """As ``FlowSolver.step``, with predicted noise in place of velocity; ``v_before`` is not used.

        Raises:
            InputError: ``exact`` guidance, which is written for flow, or ``eta`` without noise.
        """
        if exact and score is not None:
            raise InputError("exact=True: the exact form is for flow matching; DDIM has the published one")
        if self.eta and noise is None:
            raise InputError(f"noise=None: eta={self.eta} needs fresh noise at every step")
        index = levels.cpu() - 1
        alpha, alpha_prev, spread = (frame_axis(values[index]).to(x) for values in self.alphas())
        stepped, _ = ddim_step(
            x, v, alpha, alpha_prev, spread, noise=noise if self.eta else None, score=score, guidance=guidance
        )
        return stepped
