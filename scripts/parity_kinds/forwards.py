"""Single forwards of the causal and the bidirectional model, and the noise schedule.

Block-causal and teacher-forced forwards are evaluated block by block through the cache: the same numbers as one masked
forward over the whole clip, which is what was recorded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longvid.cache.policies import SlidingPolicy
from longvid.pipelines.schedules.sigmas import sigma_grid, step_sigmas

from .golden import config, denoiser, difference, frames_second, read


def nearest_sigma(timesteps: Tensor, shift: float) -> Tensor:
    """The reference's lookup: the grid level nearest to each timestep (so 0 becomes the smallest level, not 0)."""
    grid = torch.tensor(sigma_grid(shift), dtype=torch.float64)
    index = (grid[:, None] * 1000.0 - timesteps.double().reshape(1, -1)).abs().argmin(dim=0)
    return grid[index].reshape(timesteps.shape)


def clean(x: Tensor, velocity: Tensor, timesteps: Tensor, shift: float) -> Tensor:
    """x0 = x - sigma v; all [B, F, C, h, w]."""
    sigma = nearest_sigma(timesteps, shift)[..., None, None, None]
    return (x.double() - sigma * velocity.double()).float()


def blockwise(
    directory: Path,
    x: Tensor,
    timesteps: Tensor,
    prompt: Tensor,
    sizes: list[int],
    window: int = -1,
    clean_x: Tensor | None = None,
    clean_t: float = 0.0,
) -> Tensor:
    """Velocity [B, F, C, h, w]; every block is denoised, then itself (or its clean copy) enters the cache."""
    model = denoiser(directory)
    text = model.encode_text(prompt)
    frames = sum(sizes)
    policy = SlidingPolicy(window=frames if window == -1 else window, frames_per_block=max(sizes))
    cache = model.new_cache(policy, batch=x.shape[0], height=x.shape[3], width=x.shape[4])
    out, start = [], 0
    for size in sizes:
        span = slice(start, start + size)
        cache.begin(start, size)
        latents, t = frames_second(x[:, span]), timesteps[:, span]
        if clean_x is None:
            out.append(model(latents, t, text, cache, "commit"))
        else:
            out.append(model(latents, t, text, cache, "denoise"))
            model(frames_second(clean_x[:, span]), torch.full_like(t, clean_t), text, cache, "commit")
        cache.commit()
        start += size
    return frames_second(torch.cat(out, dim=2))


def block_sizes(frames: int, n: int, first_alone: bool) -> list[int]:
    head = [1] if first_alone else []
    rest = frames - len(head)
    return head + [n] * (rest // n) + ([rest % n] if rest % n else [])


@torch.no_grad()
def block_causal(case: dict[str, Any], directory: Path) -> float:
    tensors, _ = read(directory / case["file"])
    facts = config(directory)
    x, errors = tensors["x"], []
    for variant in case["variants"]:
        t = tensors[variant["t"]]
        n = variant.get("frames_per_block", facts["num_frame_per_block"])
        sizes = block_sizes(x.shape[1], n, variant.get("first_frame_alone", False))
        flow = blockwise(directory, x, t, tensors["prompt_embeds"], sizes, variant.get("local_attn_size", -1))
        errors.append(difference(flow, tensors[f"flow_{variant['name']}"]))
        x0 = clean(x, flow, t, case.get("sigma_grid_shift", facts["timestep_shift"]))
        errors.append(difference(x0, tensors[f"x0_{variant['name']}"]))
    return max(errors)


@torch.no_grad()
def teacher_forcing(case: dict[str, Any], directory: Path) -> float:
    tensors, _ = read(directory / case["file"])
    facts = config(directory)
    x, t = tensors["x"], tensors["t"]
    sizes = block_sizes(x.shape[1], case.get("frames_per_block", facts["num_frame_per_block"]), False)
    flow = blockwise(
        directory,
        x,
        t,
        tensors["prompt_embeds"],
        sizes,
        clean_x=tensors["clean_x"],
        clean_t=case.get("aug_t", 0.0),
    )
    x0 = clean(x, flow, t, case.get("sigma_grid_shift", facts["timestep_shift"]))
    return max(difference(flow, tensors["flow"]), difference(x0, tensors["x0"]))


@torch.no_grad()
def bidirectional(case: dict[str, Any], directory: Path) -> float:
    tensors, _ = read(directory / case["file"])
    x, t, errors = tensors["x"], tensors["t"], []
    for name, weights in case["weights"].items():
        model = denoiser(directory, weights)
        flow = frames_second(model.full(frames_second(x), t, model.encode_text(tensors["prompt_embeds"])))
        errors.append(difference(flow, tensors[f"flow_{name}"]))
        errors.append(difference(clean(x, flow, t, case["sigma_grid_shift"]), tensors[f"x0_{name}"]))
    return max(errors)


def scheduler(case: dict[str, Any], directory: Path) -> float:
    """Sigmas and timesteps of every recorded shift, and the warped step lists."""
    tensors, _ = read(directory / case["file"])
    facts, errors = config(directory), []
    for name, golden in tensors.items():
        if "_shift" in name and name.split("_shift")[0] in ("sigmas", "timesteps"):
            kind, shift = name.split("_shift")
            grid = torch.tensor(sigma_grid(float(shift), golden.shape[0]), dtype=torch.float64)
            errors.append(difference(grid * (1000.0 if kind == "timesteps" else 1.0), golden.double()))
        elif name.endswith("_steps_warped"):
            steps = facts[f"{name.split('_')[0]}_denoising_step_list"]
            ours = torch.tensor(step_sigmas(steps, facts["timestep_shift"]), dtype=torch.float64) * 1000.0
            errors.append(difference(ours, golden.double()))
    return max(errors)


RUNNERS = {
    "forward_block_causal": block_causal,
    "forward_teacher_forcing": teacher_forcing,
    "forward_bidirectional": bidirectional,
    "scheduler": scheduler,
}
