"""Rollouts of the Self-Forcing family: Self-Forcing, Rolling Forcing, Deep Forcing, Reward Forcing, LongLive.

A case's facts come from cases.json; what it leaves out, from its directory's config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longvid.cache.policies import (
    DeepSinkPolicy,
    EmaSinkPolicy,
    ParticipativePolicy,
    Policy,
    RollingPolicy,
    SlidingPolicy,
)
from longvid.pipelines.rollout import Rollout
from longvid.pipelines.schedules.blocks import BlockGrid
from longvid.pipelines.schedules.chunk import ChunkSchedule
from longvid.pipelines.schedules.rolling import RollingSchedule
from longvid.pipelines.schedules.sigmas import step_sigmas

from .golden import config, denoiser, difference, frames_second, read


class RecordedNoise:
    """The draws of a golden file in place of a seed: (block, step) -> tensor. `given` blocks came before the first."""

    def __init__(self, tensors: dict[str, Tensor], grid: BlockGrid, steps: int, given_blocks: int) -> None:
        self.noise, self.grid, self.given = frames_second(tensors["noise"]), grid, given_blocks
        self.first = grid[given_blocks].start
        self.renoise = tensors.get("renoise")
        self.draws = [tensors[k] for k in sorted(tensors) if k.startswith("renoise_")]
        self.per_block = steps - 1

    def __call__(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        if step == 0:
            at = self.grid[block]
            draw = self.noise[:, :, at.start - self.first : at.end - self.first]
        elif self.renoise is not None:
            draw = frames_second(self.renoise[block - self.given, step - 1])
        else:
            draw = frames_second(self.draws[(block - self.given) * self.per_block + step - 1])
        if tuple(draw.shape) != shape:
            raise ValueError(f"block {block}, step {step}: the file's draw is {tuple(draw.shape)}, not {shape}")
        return draw


def make_rollout(
    case: dict[str, Any],
    directory: Path,
    tensors: dict[str, Tensor],
    policy: Policy,
    *,
    rolling: bool = False,
    **more: Any,
) -> Rollout:
    facts = config(directory)
    model = denoiser(directory)
    n = case.get("num_frame_per_block", case.get("frames_per_block", facts["num_frame_per_block"]))
    grid = BlockGrid(n, bool(case.get("independent_first_frame", False)))
    steps = case["steps"]
    sigmas = step_sigmas(steps, case.get("timestep_shift", facts["timestep_shift"]), case.get("warp", True))
    initial = tensors.get("initial_latent")
    given = 0 if initial is None else grid.count(initial.shape[1])
    frames = tensors["noise"].shape[1] + (0 if initial is None else initial.shape[1])
    text = tensors["prompt_embeds"] if "prompt_embeds" in tensors else tensors["prompt_embeds_0"]
    return Rollout(
        model,
        RollingSchedule(len(sigmas)) if rolling else ChunkSchedule(len(sigmas)),
        policy,
        model.encode_text(text),
        grid=grid,
        sigmas=sigmas,
        noise=RecordedNoise(tensors, grid, len(sigmas), given),
        height=tensors["noise"].shape[3],
        width=tensors["noise"].shape[4],
        frames=frames,
        context_noise=case.get("context_noise", 0),
        initial=None if initial is None else frames_second(initial),
        **more,
    )


def block_frames(case: dict[str, Any], directory: Path) -> int:
    return int(case.get("num_frame_per_block", case.get("frames_per_block", config(directory)["num_frame_per_block"])))


def latents_of(rollout: Rollout) -> Tensor:
    return frames_second(torch.cat([block.latents for block in rollout], dim=2))


def self_forcing(case: dict[str, Any], directory: Path) -> float:
    tensors, _ = read(directory / case["file"])
    n = block_frames(case, directory)
    total = tensors["noise"].shape[1] + (tensors["initial_latent"].shape[1] if "initial_latent" in tensors else 0)
    window = case.get("local_attn_size", -1)
    policy = SlidingPolicy(
        window=max(total, n) if window == -1 else window,
        sink=0 if window == -1 else case.get("sink_size", 0),
        positions="absolute",
        frames_per_block=n,
    )
    return difference(latents_of(make_rollout(case, directory, tensors, policy)), tensors["latents"])


def rolling_forcing(case: dict[str, Any], directory: Path) -> float:
    tensors, _ = read(directory / case["file"])
    facts = config(directory)
    policy = RollingPolicy(
        window=case.get("max_attention_frames", facts.get("rf_max_attention_frames")),
        sink=case.get("sink_frames", facts.get("rf_sink_frames")),
        cache_frames=case.get("cache_frames", facts.get("rf_cache_frames")),
        frames_per_block=block_frames(case, directory),
    )
    return difference(latents_of(make_rollout(case, directory, tensors, policy, rolling=True)), tensors["latents"])


def deep_forcing(case: dict[str, Any], directory: Path) -> float:
    """Latents; with compression also the chosen tokens, scores and reuse counters of every trigger and layer."""
    tensors, _ = read(directory / case["file"])
    n, compression = block_frames(case, directory), case.get("compression")
    if not compression:
        policy: Policy = (
            DeepSinkPolicy(window=case["window"], sink=case["sink"], frames_per_block=n)
            if case["sink"]
            else SlidingPolicy(window=case["window"], frames_per_block=n)
        )
        return difference(latents_of(make_rollout(case, directory, tensors, policy)), tensors["latents"])
    limited = {name: value for name, value in compression.items() if name in ("budget", "recent", "fusion")}
    if "max_reuse" in compression:
        limited["max_reuse"] = compression["max_reuse"] or 0  # null: no limit
    policy = ParticipativePolicy(window=case["window"], sink=case["sink"], frames_per_block=n, **limited)
    rollout = make_rollout(case, directory, tensors, policy)
    choices: list[list[Any]] = [[] for _ in rollout.cache.layers]
    for store, seen in zip(rollout.cache.layers, choices, strict=True):
        store.selector.on_choice = seen.append
    latents, errors = latents_of(rollout), []
    for layer, seen in enumerate(choices):
        for trigger, choice in enumerate(seen):
            suffix = f"t{trigger}_l{layer}"
            for name, ours in (
                (f"selected_{suffix}", choice.chosen[0, :, 0]),
                (f"counts_before_{suffix}", choice.counts_before[0, :, 0]),
                (f"scores_{suffix}", choice.scores[0, :, 0]),
            ):
                if name in tensors:
                    golden = tensors[name].double()
                    errors.append(difference(_finite(ours.double()), _finite(golden.reshape(-1))) / _scale(name))
    wanted = {name.split("_")[1] for name in tensors if name.startswith("selected_")}
    if len(wanted) != len(choices[0]):
        return float("inf")
    return max(difference(latents, tensors["latents"]), *errors)


def _finite(x: Tensor) -> Tensor:
    """Excluded tokens are scored -inf on both sides: compared as a marker."""
    return torch.where(torch.isneginf(x), torch.full_like(x, -1e9), x)


def _scale(name: str) -> float:
    """Scores are sums over a hundred queries and all heads, of the order of 100: compare them relative to that."""
    return 100.0 if name.startswith("scores") else 1.0


def reward_forcing(case: dict[str, Any], directory: Path) -> float:
    """Latents, and the un-rotated sink keys and values after every eviction."""
    tensors, _ = read(directory / case["file"])
    n = block_frames(case, directory)
    policy = EmaSinkPolicy(window=case["window"], sink=case["sink"], ema_alpha=case["ema_alpha"], frames_per_block=n)
    rollout = make_rollout(case, directory, tensors, policy)
    blocks, errors, merged = [], [], 0
    for block in rollout:
        blocks.append(block.latents)
        if rollout.cache.stats.merged_frames == merged:
            continue
        merged = rollout.cache.stats.merged_frames
        sink = policy.sink * rollout.cache.tokens_per_frame
        for layer, store in enumerate(rollout.cache.layers):
            for kind, ours in (("k", store.raw), ("v", store.values)):
                recorded = tensors.get(f"sink_{kind}_l{layer}_after_eviction")
                if recorded is not None:
                    errors.append(difference(ours[:, :sink], recorded[merged // n - 1]))
    return max(difference(frames_second(torch.cat(blocks, dim=2)), tensors["latents"]), *errors, 0.0)


def longlive(case: dict[str, Any], directory: Path) -> float:
    """Latents, and the cache right after each recache."""
    tensors, _ = read(directory / case["file"])
    n, model = block_frames(case, directory), denoiser(directory)
    relative = bool(case.get("relative_positions", False))
    policy = SlidingPolicy(
        window=case["window"], sink=case["sink"], positions="window" if relative else "absolute", frames_per_block=n
    )
    recache = ("window" if case.get("global_sink", True) else "all") if case.get("recache", True) else "none"
    rollout = make_rollout(case, directory, tensors, policy, recache=recache)
    errors: list[float] = []
    commit_recache = rollout.cache.commit_recache
    switches = list(case["switch_frames"])
    done = 0

    def check() -> None:
        commit_recache()
        for layer in range(model.layers):
            for kind in "kv":
                recorded = tensors.get(f"cache_{kind}_l{layer}_after_switch{done - 1}")
                if recorded is not None:
                    errors.append(
                        difference(cached_frames(rollout, layer, kind, relative, recorded.shape[1]), recorded)
                    )

    rollout.cache.commit_recache = check
    blocks, end = [], 0
    while True:
        if done < len(switches) and end >= switches[done]:
            done += 1
            rollout.set_prompt(model.encode_text(tensors[f"prompt_embeds_{done}"]))
        block = next(rollout, None)
        if block is None:
            break
        blocks.append(block.latents)
        end = block.start_frame + block.latents.shape[2]
    return max(difference(frames_second(torch.cat(blocks, dim=2)), tensors["latents"]), *errors, 0.0)


def cached_frames(rollout: Rollout, layer: int, kind: str, raw: bool, tokens: int) -> Tensor:
    """One layer's cache in temporal order, zeros behind it, as the reference keeps it."""
    cache = rollout.cache
    store = cache.layers[layer]
    source = store.values if kind == "v" else (store.raw if raw else store.keys)
    t = cache.tokens_per_frame
    frames = [source[:, s * t : (s + 1) * t] for s in (cache.slot(f) for f in cache.resident)]
    found = torch.cat(frames, dim=1)
    padding = found.new_zeros(found.shape[0], tokens - found.shape[1], *found.shape[2:])
    return torch.cat([found, padding], dim=1)


RUNNERS = {
    "self_forcing_rollout": self_forcing,
    "rolling_forcing_rollout": rolling_forcing,
    "deep_forcing_rollout": deep_forcing,
    "reward_forcing_rollout": reward_forcing,
    "longlive_rollout": longlive,
}
