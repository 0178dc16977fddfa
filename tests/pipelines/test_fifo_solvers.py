"""One step of frames at different levels."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from longvid.pipelines.schedules.fifo import FifoSchedule
from longvid.pipelines.solvers import (
    DDIMSolver,
    FlowSolver,
    classifier_free_guidance,
    ddim_step,
    euler_step,
    frame_axis,
    guided_step,
    noise_from_velocity,
    stochastic_step,
    x0_from_velocity,
)

SCHEDULE = FifoSchedule(window_frames=6, num_partitions=2, shift=3.0)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def level_sigmas(levels: torch.Tensor) -> torch.Tensor:
    return frame_axis(torch.tensor(SCHEDULE.sigmas, dtype=torch.float64)[levels])


def test_euler_is_the_line_between_x0_and_noise() -> None:
    x, v = normal(1, 2, 6, 3, 3), normal(1, 2, 6, 3, 3, seed=1)
    levels = torch.arange(3, 9)
    s, s_next = level_sigmas(levels), level_sigmas(levels - 1)
    line = (1 - s_next) * x0_from_velocity(x, v, s) + s_next * noise_from_velocity(x, v, s)
    torch.testing.assert_close(euler_step(x, v, s, s_next), line)


def test_euler_agrees_with_diffusers_scalar_step_at_every_level() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=list(SCHEDULE.sigmas[:0:-1]))
    x, v = normal(1, 2, 1, 3, 3).float(), normal(1, 2, 1, 3, 3, seed=1).float()
    for level, timestep in zip(range(SCHEDULE.levels, 0, -1), scheduler.timesteps, strict=True):
        theirs = scheduler.step(v, timestep, x).prev_sample
        ours = FlowSolver(schedule=SCHEDULE, solver="euler").step(x, v, torch.tensor([level]))
        torch.testing.assert_close(ours, theirs)


def test_diffusers_per_token_step_walks_the_other_way() -> None:
    """Why solvers.py has its own Euler: with per-token timesteps diffusers' dt has the opposite sign."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    x, v = normal(1, 5, 2).float(), normal(1, 5, 2, seed=1).float()
    per_token = torch.full((1, 5), 500.0)
    theirs = scheduler.step(v, scheduler.timesteps[2], x, per_token_timesteps=per_token).prev_sample
    torch.testing.assert_close(theirs, euler_step(x, -v, torch.tensor(0.5), torch.tensor(0.25)))
    assert (theirs - euler_step(x, v, torch.tensor(0.5), torch.tensor(0.25))).abs().max() > 0.1


def test_perfect_velocity_lands_on_the_clean_frame() -> None:
    clean, noise = normal(1, 2, 1, 3, 3), normal(1, 2, 1, 3, 3, seed=1)
    for solver in ("euler", "ab2"):
        x, before = noise, None
        step = FlowSolver(schedule=SCHEDULE, solver=solver)
        for level in range(SCHEDULE.levels, 0, -1):
            has = None if before is None else torch.tensor([True])
            x = step.step(x, noise - clean, torch.tensor([level]), v_before=before, has_before=has)
            before = noise - clean
        torch.testing.assert_close(x, clean)


def test_stochastic_step_keeps_the_noise_level() -> None:
    """From the exact law of level l, the step lands on the exact law of level l - 1."""
    for eta in (0.0, 0.5, 1.0):
        s, s_next = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
        clean, noise, fresh = torch.zeros(1), normal(200_000), normal(200_000, seed=1)
        x = (1 - s) * clean + s * noise
        out = stochastic_step(x, noise - clean, s, s_next, fresh, eta)
        assert out.std().item() == pytest.approx(0.6, abs=4e-3)
        carried = (out * noise).mean() / 0.6
        assert carried.item() == pytest.approx(
            1.0 if eta == 0 else (1 - eta**2 * (0.64 - 0.09) / 0.64) ** 0.5, abs=2e-2
        )


def test_last_step_adds_no_noise_and_first_step_is_finite() -> None:
    x, v, z = normal(1, 1, 2, 2, 2), normal(1, 1, 2, 2, 2, seed=1), normal(1, 1, 2, 2, 2, seed=2)
    out = FlowSolver(schedule=SCHEDULE, solver="euler", eta=1.0).step(x, v, torch.tensor([1, SCHEDULE.levels]), noise=z)
    torch.testing.assert_close(out[:, :, 0], (x - level_sigmas(torch.tensor([1])) * v)[:, :, 0])
    assert out.isfinite().all()


def test_ab2_is_euler_for_frames_without_a_past() -> None:
    x, v, before = normal(1, 2, 4, 3, 3), normal(1, 2, 4, 3, 3, seed=1), normal(1, 2, 4, 3, 3, seed=2)
    levels = torch.tensor([4, 5, 6, SCHEDULE.levels])
    has = torch.tensor([True, False, True, False])
    ab2 = FlowSolver(schedule=SCHEDULE, solver="ab2").step(x, v, levels, v_before=before, has_before=has)
    euler = FlowSolver(schedule=SCHEDULE, solver="euler").step(x, v, levels)
    different = (ab2 - euler).abs().amax(dim=(0, 1, 3, 4)) > 1e-6
    assert different.tolist() == has.tolist()


def test_ab2_is_exact_for_a_velocity_that_is_linear_in_sigma() -> None:
    def velocity(s: torch.Tensor) -> torch.Tensor:
        return 2.0 + 3.0 * s

    x0 = normal(1, 1, 1, 1, 1)
    level = torch.tensor([5])
    s, s_next, s_before = (level_sigmas(level + d) for d in (0, -1, 1))
    out = FlowSolver(schedule=SCHEDULE, solver="ab2").step(
        x0, velocity(s), level, v_before=velocity(s_before), has_before=torch.tensor([True])
    )
    exact = x0 + 2.0 * (s_next - s) + 1.5 * (s_next**2 - s**2)
    torch.testing.assert_close(out, exact)


def test_ddim_without_noise_is_euler_in_other_coordinates() -> None:
    """s = sqrt(1 - a) / (sqrt a + sqrt(1 - a)), x_flow = x_vp / (sqrt a + sqrt(1 - a))."""
    a, a_prev = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.45, dtype=torch.float64)
    clean, eps = normal(1, 2, 1, 3, 3), normal(1, 2, 1, 3, 3, seed=1)
    x = a.sqrt() * clean + (1 - a).sqrt() * eps
    vp, _ = ddim_step(x, eps, a, a_prev, torch.zeros(()))

    def scale(alpha: torch.Tensor) -> torch.Tensor:
        return alpha.sqrt() + (1 - alpha).sqrt()

    s, s_next = ((1 - alpha).sqrt() / scale(alpha) for alpha in (a, a_prev))
    torch.testing.assert_close(euler_step(x / scale(a), eps - clean, s, s_next), vp / scale(a_prev))


def test_guidance_descends_its_loss() -> None:
    x, v = normal(1, 2, 3, 4, 4), normal(1, 2, 3, 4, 4, seed=1)
    s, s_next = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)

    def loss(y: torch.Tensor) -> torch.Tensor:
        return (y**2).sum()

    for exact in (False, True):
        plain = guided_step(x, v, 2 * x, s, s_next, 0.0, exact=exact)
        guided = guided_step(x, v, 2 * x, s, s_next, 0.3, exact=exact)
        torch.testing.assert_close(plain, euler_step(x, v, s, s_next))
        assert loss(guided) < loss(plain)


def test_exact_guidance_samples_the_tilted_gaussian() -> None:
    """x0 ~ N(0, 1) weighted by exp(-g (x0 - 2)^2 / 2) is N(2 g / (1 + g), 1 / (1 + g)): v + g s/(1-s) grad L, exactly.

    With L_s the log of the averaged weight at level s, the guided velocity must be the velocity of the tilted law.
    """
    g, s = 0.7, torch.tensor(0.4, dtype=torch.float64)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)

    def velocity(mean: float, variance: float) -> torch.Tensor:
        total = (1 - s) ** 2 * variance + s**2
        x0 = mean + (1 - s) * variance / total * (x - (1 - s) * mean)
        return (x - x0) / s  # v = eps - x0 = (x - x0) / s

    total = (1 - s) ** 2 + s**2
    mean, variance = (1 - s) / total * x, s**2 / total  # of x0 given x
    log_weight = -0.5 * g * (mean - 2) ** 2 / (1 + g * variance)
    (score,) = torch.autograd.grad(-log_weight.sum(), x)
    tilted = velocity(2 * g / (1 + g), 1 / (1 + g))
    plain = velocity(0.0, 1.0)
    ours = (guided_step(x, plain, score, s, s - 0.1, 1.0, exact=True) - x) / -0.1
    torch.testing.assert_close(ours, tilted)


def test_guidance_scale_one_is_the_conditional_prediction() -> None:
    u, c = normal(4), normal(4, seed=1)
    torch.testing.assert_close(classifier_free_guidance(u, c, 1.0), c)
    torch.testing.assert_close(classifier_free_guidance(u, c, 0.0), u)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "unipc"}, "solver='unipc'"),
        ({"eta": -0.1, "solver": "euler"}, "eta=-0.1"),
        ({"eta": float("nan"), "solver": "euler"}, "eta=nan"),
        ({"eta": 1.0, "solver": "ab2"}, "needs solver='euler'"),
    ],
    ids=["unknown", "negative", "nan", "stochastic-ab2"],
)
def test_a_solver_that_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowSolver(schedule=SCHEDULE, **change)


def test_a_stochastic_step_without_noise_is_refused() -> None:
    x = normal(1, 1, 1, 2, 2)
    with pytest.raises(ValueError, match="noise=None"):
        FlowSolver(schedule=SCHEDULE, solver="euler", eta=0.5).step(x, x, torch.tensor([3]))
    with pytest.raises(ValueError, match="noise=None"):
        DDIMSolver(schedule=SCHEDULE, eta=0.5).step(x, x, torch.tensor([3]))
