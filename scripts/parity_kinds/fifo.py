"""Golden cases of FIFO-Diffusion and Ouroboros-Diffusion, run through longvid's public classes.


The queue cases use closed-form stand-ins for the model, which couple the frames of a window and depend on their order,
on each frame's level and on the prompt, so that a wrong window, timestep, order or guidance branch shows. With m the
mean over the window's frames and d_j = x_j - x_{j-1} (d_0 = 0):

    eps_j = (0.6 + 0.4 tau_j) tanh(x_j) + 0.2 (1 - tau_j) m + 0.1 cos(pi tau_j) d_j + 0.05 c    tau = t / 1000
    v_j   = (0.5 + 0.5 s_j)   tanh(x_j) - 0.2 (1 - s_j)   m + 0.1 cos(pi s_j)   d_j + 0.05 c    s   = sigma
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from longvid.models.subject_attention import attend_with_subject, gather_subject
from longvid.models.subject_mask import dilated_mask
from longvid.pipelines import tail as tails
from longvid.pipelines.queue import LatentQueue
from longvid.pipelines.schedules.fifo import FifoSchedule, Window
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

Pairs = Iterator[tuple[str, Tensor, Tensor]]


def _stand_in(x: Tensor, level: Tensor, cond: Tensor, *, base: float, sign: float) -> Tensor:
    mean = x.mean(dim=2, keepdim=True)
    step = torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, 1:] - x[:, :, :-1]], dim=2)
    level = frame_axis(level.to(x))
    slope = base + (1.0 - base) * level
    coupling = sign * 0.2 * (1.0 - level) * mean + 0.1 * torch.cos(torch.pi * level) * step
    return slope * torch.tanh(x) + coupling + 0.05 * cond[:, None, None, None].to(x)


def _noise_model(x: Tensor, timesteps: Tensor, cond: Tensor) -> Tensor:
    return _stand_in(x, timesteps / 1000.0, cond, base=0.6, sign=1.0)


def _velocity_model(x: Tensor, timesteps: Tensor, cond: Tensor) -> Tensor:
    return _stand_in(x, timesteps / 1000.0, cond, base=0.5, sign=-1.0)


def _fact(case: dict[str, Any], meta: dict[str, Any], key: str, default: Any = None) -> Any:
    return case.get(key, meta.get(key, default))


def _run_queue(
    queue: LatentQueue,
    predict: Callable[[Tensor, Tensor], Tensor],
    tensors: dict[str, Tensor],
    step_noise: Callable[[int, tuple[Window, ...]], Tensor | None],
    coherent: tails.CoherentTail | None = None,
) -> Pairs:
    exits = []
    passes = tensors["enqueue_noise"].shape[0]
    before, after, velocities = [], [], []
    for index in range(passes):
        before.append(queue.latents_BCQhw.clone())
        windows = queue.windows()
        predictions = {window: predict(*queue.read(window)) for window in windows}
        if index == 0 and "call_in_iter0" in tensors:
            noisiest_first = windows[::-1]
            yield "call_in", torch.stack([queue.read(w)[0] for w in noisiest_first]), tensors["call_in_iter0"]
            ours = torch.stack([predictions[w] for w in noisiest_first])
            if "call_v_iter0" in tensors:
                yield "call_v", ours, tensors["call_v_iter0"]
        queue.denoise(predictions, noise=step_noise(index, windows))
        after.append(queue.latents_BCQhw.clone())
        if queue.velocity_BCQhw is not None:
            velocities.append(queue.velocity_BCQhw.clone())
        fresh = tensors["enqueue_noise"][index]
        if coherent is not None:
            fresh = coherent.sample(queue.tail, tensors["renoise_noise"][index], fresh)
        exits.append(queue.shift(fresh))
    yield "exit_latent", torch.cat(exits, dim=2), tensors["exit_latent"]
    yield "queue_before", torch.stack(before), tensors["queue_before"]
    yield "queue_after_pass", torch.stack(after), tensors["queue_after_pass"]
    if "queue_final" in tensors:
        yield "queue_final", queue.latents_BCQhw, tensors["queue_final"]
    if velocities and "v_last" in tensors:
        context = queue.schedule.context_slots
        yield "v_last", torch.stack(velocities)[..., context:, :, :], tensors["v_last"][..., context:, :, :]


def _ddim_fifo_queue(case: dict[str, Any], tensors: dict[str, Tensor], meta: dict[str, Any]) -> Pairs:
    schedule = FifoSchedule(
        window_frames=_fact(case, meta, "f"),
        num_partitions=_fact(case, meta, "n"),
        lookahead=_fact(case, meta, "lookahead"),
        init="renoise",
    )
    solver = DDIMSolver(schedule=schedule, eta=_fact(case, meta, "eta", 0.0))
    for name, ours in zip(("ddim_alphas", "ddim_alphas_prev", "ddim_sigmas"), solver.alphas(), strict=True):
        yield name, ours, tensors[name]
    yield "timesteps", solver.timesteps(), tensors["timesteps"].double()

    clip = tensors["base_video"]
    queue = LatentQueue(schedule, solver, _frame_shape(clip), dtype=clip.dtype)
    queue.fill(clip, tensors["init_noise"])
    cond = torch.tensor(_fact(case, meta, "cond"), dtype=clip.dtype)
    scale = _fact(case, meta, "cfg_scale", 1.0)

    def predict(x: Tensor, timesteps: Tensor) -> Tensor:
        conditional = _noise_model(x, timesteps, cond)
        if scale == 1.0:
            return conditional
        return classifier_free_guidance(_noise_model(x, timesteps, torch.zeros_like(cond)), conditional, scale)

    def step_noise(index: int, windows: tuple[Window, ...]) -> Tensor | None:
        if "ddim_noise" not in tensors:
            return None
        noise = torch.zeros_like(queue.latents_BCQhw)  # drawn window by window, noisiest first; a slot takes its own
        for window, drawn in zip(windows[::-1], tensors["ddim_noise"][index], strict=True):
            kept = slice(window.keep - window.start, window.end_keep - window.start)
            noise[:, :, window.keep : window.end_keep] = drawn[:, :, kept]
        return noise

    yield from _run_queue(queue, predict, tensors, step_noise)


def _flow_fifo_queue(case: dict[str, Any], tensors: dict[str, Tensor], meta: dict[str, Any]) -> Pairs:
    schedule = FifoSchedule(
        window_frames=_fact(case, meta, "f"),
        num_partitions=_fact(case, meta, "n"),
        lookahead=_fact(case, meta, "lookahead"),
        shift=_fact(case, meta, "shift"),
        context=_fact(case, meta, "context", "clean"),
        init="renoise",
    )
    order = _fact(case, meta, "order", 1)
    solver = FlowSolver(schedule=schedule, solver="ab2" if order == 2 else "euler")
    yield "sigmas", torch.tensor(schedule.sigmas, dtype=torch.float64), tensors["sigmas"]
    yield "levels", torch.tensor(schedule.slot_levels).double(), tensors["levels"].double()

    clip = tensors["base_video"]
    queue = LatentQueue(schedule, solver, _frame_shape(clip), dtype=clip.dtype)
    queue.fill(clip, tensors["init_noise"])
    cond = torch.tensor(_fact(case, meta, "cond"), dtype=clip.dtype)
    facts = _fact(case, meta, "tail")
    coherent = None
    if facts:
        coherent = tails.CoherentTail(gain=facts["dc"], cutoff=facts["d_s"], retain=facts["a"])
        yield "lpf", coherent.mask(*clip.shape[-2:])[0], tensors["lpf"]
    yield from _run_queue(queue, lambda x, t: _velocity_model(x, t, cond), tensors, lambda *_: None, coherent)


def _frame_shape(clip: Tensor) -> tuple[int, int, int, int]:
    batch, channels, _, height, width = clip.shape
    return batch, channels, height, width


def _fifo_windows(case: dict[str, Any], tables: dict[str, Any], meta: dict[str, Any]) -> Pairs:
    """``tables``: the parsed JSON, ``f{f}_n{n}_{la|nola}`` to context slots, levels and windows."""
    for key, table in tables.items():
        f, n, mode = key.split("_")
        schedule = FifoSchedule(window_frames=int(f[1:]), num_partitions=int(n[1:]), lookahead=mode == "la")
        ours = [[w.start, w.keep, w.end] for w in schedule.steady_windows]
        yield (
            f"{key}.windows",
            torch.tensor(ours).double(),
            torch.tensor(table["windows_start_firstupdated_end"]).double(),
        )
        sizes = torch.tensor([schedule.context_slots, schedule.levels]).double()
        yield f"{key}.sizes", sizes, torch.tensor([table["P"], table["T"]]).double()


def _flow_steps(case: dict[str, Any], tensors: dict[str, Tensor], meta: dict[str, Any]) -> Pairs:
    levels = _fact(case, meta, "levels")
    sigmas = FifoSchedule(
        window_frames=_fact(case, meta, "T"), num_partitions=1, shift=_fact(case, meta, "shift"), lookahead=False
    ).sigmas
    here = torch.tensor([sigmas[level] for level in levels], dtype=torch.float64)
    following = torch.tensor([sigmas[level - 1] for level in levels], dtype=torch.float64)
    yield "sigma", here, tensors["sigma"]
    yield "sigma_next", following, tensors["sigma_next"]
    x, v, z, grad = (tensors[name] for name in ("x", "v", "z", "grad"))
    s, s_next = frame_axis(here).to(x), frame_axis(following).to(x)
    for name, golden in tensors.items():
        if name == "x0_hat":
            yield name, x0_from_velocity(x, v, s), golden
        elif name == "eps_hat":
            yield name, noise_from_velocity(x, v, s), golden
        elif name == "euler":
            yield name, euler_step(x, v, s, s_next), golden
        elif name.startswith("stochastic_eta"):
            yield name, stochastic_step(x, v, s, s_next, z, float(name.removeprefix("stochastic_eta"))), golden
        elif name.startswith("guided_"):
            form, scale = name.removeprefix("guided_").split("_form_gamma")
            yield name, guided_step(x, v, grad, s, s_next, float(scale), exact=form == "exact"), golden


def _freq_filters(case: dict[str, Any], tensors: dict[str, Tensor], meta: dict[str, Any]) -> Pairs:
    for name, golden in tensors.items():
        if name.startswith("mix_out_"):
            kind, cutoff, time_cutoff = name.removeprefix("mix_out_").rsplit("_", 2)
            x = tensors["mix_x"]
            mask = tails.low_pass(kind, x.shape[-3:], cutoff=float(cutoff), time_cutoff=float(time_cutoff))
            yield name, tails.frequency_mix(x, tensors["mix_noise"], mask), golden
        elif not name.startswith("mix_"):
            kind, *parts = name.split("_")
            frames, height, width = (int(part[1:]) for part in parts[:3])
            cutoff, time_cutoff = (float(part[2:]) for part in parts[3:])
            shape = (frames, height, width)
            yield name, tails.low_pass(kind, shape, cutoff=cutoff, time_cutoff=time_cutoff), golden


def _ouroboros_tail(case: dict[str, Any], tensors: dict[str, Tensor], meta: dict[str, Any]) -> Pairs:
    latents = tensors["latents_in"]
    cutoff, time_cutoff = _fact(case, meta, "d_s", 0.25), _fact(case, meta, "d_t", 1.0)
    mask = tails.low_pass("gaussian", (1, *latents.shape[-2:]), cutoff=cutoff, time_cutoff=time_cutoff)
    yield "lpf", mask, tensors["lpf"]
    renoised = tails.forward_chain(latents[:, :, -1], tensors["betas_used"], tensors["renoise_noise"])[:, :, None]
    yield "renoised", renoised, tensors["renoised"]
    if "renoise_gain" in tensors:
        coherent = tails.CoherentTail(retain=float(tensors["renoise_gain"]), cutoff=cutoff)
        equivalent = coherent.renoise(latents[:, :, -1:], tensors["renoise_equiv_noise"])
        yield "renoised_as_one_gaussian", equivalent, tensors["renoised"]
    entering = tails.frequency_mix(renoised, tensors["eta"], mask)
    yield "latents_out", torch.cat([latents[:, :, 1:], entering], dim=2), tensors["latents_out"]


def _ouroboros_sacfa(case: dict[str, Any], tensors: dict[str, Tensor], meta: dict[str, Any]) -> Pairs:
    x, heads = tensors["x"], _fact(case, meta, "heads")
    token_hw = tuple(_fact(case, meta, "token_hw"))
    mask = dilated_mask(tensors["mask_in"], token_hw)
    yield "mask", mask.double(), tensors["mask_bool"].double()

    def project(name: str) -> Tensor:
        return functional.linear(x, tensors[name]).unflatten(-1, (heads, -1))

    def output(hidden: Tensor) -> Tensor:
        return functional.linear(hidden.flatten(-2), tensors["w_o"], tensors["b_o"])

    query, key, value = project("w_q"), project("w_k"), project("w_v")
    frames = x.shape[0]
    # The published layer attends within each frame: frames are the batch, and the subject's keys of all of them
    # are appended to each.
    subject = gather_subject(
        key.flatten(0, 1)[None], value.flatten(0, 1)[None], mask.flatten()[None], limit=mask.numel()
    ).expand(frames)
    yield "y_plain", output(attend_with_subject(query, key, value, None)), tensors["y_plain"]
    yield "y_sacfa", output(attend_with_subject(query, key, value, subject)), tensors["y_sacfa"]


def _ouroboros_guided_step(case: dict[str, Any], tensors: dict[str, Tensor], meta: dict[str, Any]) -> Pairs:
    stepped, clean = ddim_step(
        tensors["sample"],
        tensors["noise_pred"],
        frame_axis(tensors["alpha"]),
        frame_axis(tensors["alpha_prev"]),
        frame_axis(tensors["sigma"]),
        noise=tensors["noise"],
        score=tensors["score"],
        guidance=_fact(case, meta, "guide_scale"),
    )
    yield "x_prev", stepped, tensors["x_prev"]
    yield "pred_x0", clean, tensors["pred_x0"]


PAIRS = {
    "ddim_fifo_queue": _ddim_fifo_queue,
    "flow_fifo_queue": _flow_fifo_queue,
    "fifo_windows": _fifo_windows,
    "flow_steps": _flow_steps,
    "freq_filters": _freq_filters,
    "ouroboros_tail": _ouroboros_tail,
    "ouroboros_sacfa": _ouroboros_sacfa,
    "ouroboros_guided_step": _ouroboros_guided_step,
}


def run(case: dict[str, Any], directory: Path) -> float:
    """Largest absolute difference over everything that the case records."""
    path = directory / case["file"]
    if path.suffix == ".json":
        tensors, meta = json.loads(path.read_text()), {}
    else:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
    pairs = PAIRS[case["kind"]](case, tensors, meta)
    return max(_difference(ours, golden) for _name, ours, golden in pairs)


def _difference(ours: Tensor, golden: Tensor) -> float:
    if ours.shape != golden.shape or not ours.isfinite().all():
        return float("inf")
    return (ours - golden).abs().max().item()


RUNNERS = dict.fromkeys(PAIRS, run)
