"""The queue itself: what goes in, what comes out, and in which law."""

import pytest
import torch

from longvid.pipelines.queue import LatentQueue, run_first_clip
from longvid.pipelines.schedules.fifo import FifoSchedule, Window
from longvid.pipelines.solvers import FlowSolver, frame_axis

SIZES = [(4, 3, True), (4, 3, False), (5, 2, True), (7, 1, True), (2, 5, True)]
IDS = [f"f{f}-n{n}-{'lookahead' if la else 'plain'}" for f, n, la in SIZES]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coupled(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """A stand-in velocity that depends on every frame of the window, on their order and on each one's level."""
    s = frame_axis(timesteps.to(x) / 1000)
    return (0.5 + s) * torch.tanh(x) - 0.2 * (1 - s) * x.mean(2, keepdim=True) + 0.1 * x.roll(1, dims=2)


def single(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    return (0.3 + frame_axis(timesteps.to(x) / 1000)) * torch.sin(x)


def make(
    f: int, n: int, lookahead: bool, *, solver: str = "ab2", init: str = "renoise", **more: object
) -> tuple[LatentQueue, FifoSchedule]:
    schedule = FifoSchedule(window_frames=f, num_partitions=n, lookahead=lookahead, init=init, **more)
    queue = LatentQueue(schedule, FlowSolver(schedule=schedule, solver=solver), (1, 2, 2, 3), dtype=torch.float64)
    return queue, schedule


def one_pass(queue: LatentQueue, model: object, seed: int) -> torch.Tensor:
    queue.denoise({w: model(*queue.read(w)) for w in queue.windows()})
    return queue.shift(normal(1, 2, 2, 3, seed=seed))


@pytest.mark.parametrize(("f", "n", "lookahead"), SIZES, ids=IDS)
@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_frames_that_do_not_see_each_other_leave_as_an_ordinary_sampler_makes_them(
    f: int, n: int, lookahead: bool, solver: str
) -> None:
    queue, schedule = make(f, n, lookahead, solver=solver)
    queue.fill(normal(1, 2, f, 2, 3), normal(1, 2, schedule.slots, 2, 3, seed=1))
    exits = [one_pass(queue, single, seed=100 + p) for p in range(schedule.levels + 4)]
    step = FlowSolver(schedule=schedule, solver=solver)
    for late in range(1, 4):  # frames that entered as noise, after pass 0, 1, 2
        x, before = normal(1, 2, 2, 3, seed=100 + late - 1)[:, :, None], None
        for level in range(schedule.levels, 0, -1):
            v = single(x, torch.tensor([1000 * schedule.sigmas[level]], dtype=torch.float64))
            has = None if before is None else torch.tensor([True])
            x = step.step(x, v, torch.tensor([level]), v_before=before, has_before=has)
            before = v
        torch.testing.assert_close(exits[schedule.levels + late - 1], x)


@pytest.mark.parametrize(("f", "n", "lookahead"), SIZES, ids=IDS)
def test_windows_read_the_state_before_the_pass(f: int, n: int, lookahead: bool) -> None:
    """The published loop writes in place, noisiest window first; that is the same, and the other order is not."""
    queue, schedule = make(f, n, lookahead, solver="euler")
    queue.fill(normal(1, 2, f, 2, 3), normal(1, 2, schedule.slots, 2, 3, seed=1))
    start = queue.latents_BCQhw.clone()
    queue.denoise({w: coupled(*queue.read(w)) for w in queue.windows()})

    def in_place(windows: list[Window]) -> torch.Tensor:
        x = start.clone()
        for w in windows:
            v = coupled(x[:, :, w.start : w.end], queue.timesteps_Q[w.start : w.end])
            kept = slice(w.keep - w.start, w.end_keep - w.start)
            x[:, :, w.keep : w.end_keep] = queue.solver.step(
                x[:, :, w.keep : w.end_keep], v[:, :, kept], queue.levels(w)[kept]
            )
        return x

    torch.testing.assert_close(queue.latents_BCQhw, in_place(list(queue.windows())[::-1]))
    if lookahead and n > 1:
        assert (queue.latents_BCQhw - in_place(list(queue.windows()))).abs().max() > 1e-5


@pytest.mark.parametrize(("f", "n", "lookahead"), SIZES, ids=IDS)
def test_a_trajectory_queue_lets_the_clip_s_frames_out_first(f: int, n: int, lookahead: bool) -> None:
    """With frames that do not see each other, the first f exits are the clip itself: nothing was re-noised."""
    queue, schedule = make(f, n, lookahead, solver="euler", init="trajectory")
    clip = run_first_clip(queue, normal(1, 2, f, 2, 3), single, None)
    exits = [one_pass(queue, single, seed=100 + p) for p in range(schedule.passes(f))]
    torch.testing.assert_close(torch.cat(exits[schedule.warmup_passes :], dim=2), clip)


@pytest.mark.parametrize(("f", "n", "lookahead"), SIZES, ids=IDS)
def test_warm_up_never_reads_an_empty_slot(f: int, n: int, lookahead: bool) -> None:
    queue, schedule = make(f, n, lookahead, init="trajectory")
    run_first_clip(queue, normal(1, 2, f, 2, 3), coupled, None)
    queue.latents_BCQhw[:, :, : schedule.first_slot(0)] = float("nan")
    for index in range(schedule.slots + 3):
        leaving = one_pass(queue, coupled, seed=index)
        assert leaving.isfinite().all() == (schedule.exit_frame(index) is not None)


@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_a_saved_queue_goes_on_bit_exactly(solver: str) -> None:
    queue, schedule = make(5, 2, True, solver=solver)
    queue.fill(normal(1, 2, 5, 2, 3), normal(1, 2, schedule.slots, 2, 3, seed=1))
    for index in range(3):
        one_pass(queue, coupled, seed=index)
    saved = queue.state_dict()
    straight = [one_pass(queue, coupled, seed=10 + i) for i in range(6)]
    again, _ = make(5, 2, True, solver=solver)
    again.load_state_dict(*saved)
    resumed = [one_pass(again, coupled, seed=10 + i) for i in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_a_state_of_another_queue_is_refused() -> None:
    queue, _ = make(5, 2, True)
    tensors, meta = queue.state_dict()
    other, _ = make(4, 3, True)
    with pytest.raises(ValueError, match="latents of shape"):
        other.load_state_dict(tensors, meta)
    euler, _ = make(5, 2, True, solver="euler")
    with pytest.raises(ValueError, match="another solver"):
        euler.load_state_dict(tensors, meta)


def test_calls_in_the_wrong_order_are_refused() -> None:
    queue, schedule = make(4, 2, True)
    queue.fill(normal(1, 2, 4, 2, 3), normal(1, 2, schedule.slots, 2, 3, seed=1))
    with pytest.raises(RuntimeError, match="before denoise"):
        queue.shift(normal(1, 2, 2, 3))
    predictions = {w: coupled(*queue.read(w)) for w in queue.windows()}
    with pytest.raises(RuntimeError, match="is missing"):
        queue.denoise(dict(list(predictions.items())[1:]))
    queue.denoise(predictions)
    with pytest.raises(RuntimeError, match="twice"):
        queue.denoise(predictions)
    with pytest.raises(RuntimeError, match="middle of a pass"):
        queue.state_dict()


def test_latents_are_kept_in_float32_when_the_model_answers_in_bfloat16() -> None:
    schedule = FifoSchedule(window_frames=4, num_partitions=2)
    queue = LatentQueue(schedule, FlowSolver(schedule=schedule), (1, 2, 2, 3))
    queue.fill(normal(1, 2, 4, 2, 3), normal(1, 2, schedule.slots, 2, 3, seed=1))
    queue.denoise({w: coupled(*queue.read(w)).bfloat16() for w in queue.windows()})
    assert queue.shift(normal(1, 2, 2, 3)).dtype == torch.float32


def exact_velocity(rho: float) -> object:
    """E[eps - x0 | x, levels] of unit-variance AR(1) frames: linear in x, and exact for any levels."""

    def velocity(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        s = timesteps / 1000
        index = torch.arange(len(s), dtype=torch.float64)
        prior = rho ** (index[:, None] - index).abs()
        keep, noise = torch.diag(1 - s), torch.diag(s)
        law = torch.linalg.inv(keep @ prior @ keep + noise @ noise)
        gain = (noise - prior @ keep) @ law  # E[eps | x] = S C^-1 x, E[x0 | x] = P (1 - S) C^-1 x
        return torch.einsum("ij,bcjhw->bcihw", gain, x)

    return velocity


def exit_law(solver: str, levels: int, shift: float) -> tuple[float, float]:
    """Variance and lag-1 correlation of the exits, propagated exactly: every input noise is a batch row of its own."""
    schedule = FifoSchedule(window_frames=levels, num_partitions=1, lookahead=False, shift=shift, init="renoise")
    passes = 4 * levels
    inputs = schedule.levels + passes
    queue = LatentQueue(schedule, FlowSolver(schedule=schedule, solver=solver), (inputs, 1, 1, 1), dtype=torch.float64)
    basis = torch.eye(inputs, dtype=torch.float64)
    queue.latents_BCQhw = basis[:, None, : schedule.levels, None, None].clone()
    model, exits = exact_velocity(0.9), []
    for index in range(passes):
        queue.denoise({w: model(*queue.read(w)) for w in queue.windows()})
        exits.append(queue.shift(basis[:, schedule.levels + index][:, None, None, None]).flatten())
    last, before = exits[-1], exits[-2]
    return float(last @ last), float(last @ before / (last.norm() * before.norm()))


def test_with_the_exact_model_the_exits_have_the_true_law() -> None:
    """Diagonal denoising is legitimate: the exits' variance goes to 1 and their correlation to 0.9, and AB2 gets
    there from far fewer levels than Euler."""
    euler_var, _ = exit_law("euler", 16, 1.0)
    ab2_var, ab2_corr = exit_law("ab2", 16, 1.0)
    assert euler_var == pytest.approx(0.833, abs=2e-3)
    assert ab2_var == pytest.approx(0.9875, abs=2e-3)
    assert ab2_corr == pytest.approx(0.8958, abs=2e-3)
    assert exit_law("ab2", 32, 1.0)[0] == pytest.approx(0.9963, abs=2e-3)


@pytest.mark.parametrize("eta", [0.0, 0.5], ids=["deterministic", "stochastic"])
def test_the_first_clip_s_noise_goes_where_the_queue_is(eta: float) -> None:
    """Noise is drawn on the CPU, for the same video everywhere; "meta" stands for an accelerator."""
    schedule = FifoSchedule(window_frames=4, num_partitions=2)
    solver = FlowSolver(schedule=schedule, solver="euler", eta=eta)
    queue = LatentQueue(schedule, solver, (1, 2, 2, 3), device="meta")
    draw = (lambda level: normal(1, 2, 4, 2, 3, seed=level)) if eta else None
    clip = run_first_clip(queue, normal(1, 2, 4, 2, 3), lambda x, _: torch.zeros_like(x), draw)
    assert clip.device.type == "meta"
