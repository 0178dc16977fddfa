"""A rollout's state between two blocks: taken as tensors and JSON, restored for an exact continuation.

What must come along: the cache, blocks in flight, the clean block that is not committed yet, recent clean frames for a
recache, the prompts, and where the schedule stands. Shape letters: as in rollout.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longvid.errors import InputError

from ..cache.policies import policy_settings
from ..cache.snapshot import cpu_copy
from .recipe import weights_fingerprint
from .schedules.timeline import Timeline

if TYPE_CHECKING:
    from ..models.denoiser import Denoiser, TextContext
    from .rollout import Rollout


def _settings(rollout: Rollout) -> dict[str, Any]:
    return {
        "schedule": rollout.schedule.name,
        "policy": rollout.policy.name,
        **flat("cache", policy_settings(rollout.policy)),
        "capacity": rollout.policy.capacity,
        "sigmas": list(rollout.sigmas),
        "sampler": rollout.sampler,
        "context_noise": rollout.context_noise,
        "guidance_scale": rollout.guidance_scale,
        "recache": rollout.recache,
        "frames_per_block": rollout.grid.frames_per_block,
        "independent_first_frame": rollout.grid.independent_first_frame,
        "scenes.independent_first_frame": rollout._scene_grid.independent_first_frame,
        "temporal": rollout._timeline.temporal,
        "batch": rollout.batch,
        "height": rollout.height,
        "width": rollout.width,
        **model_settings(rollout.denoiser),
    }


def model_settings(denoiser: Denoiser) -> dict[str, Any]:
    """What a video owes to its model: who attends to whom, and the weights, whichever way they were put together.

    Not the attention's backend, nor whether falling back to another is allowed: kernels differ in rounding alone, as
    machines do, and a state may go to a machine that has others.
    """
    attention = {"kind": "dense", "recency": 0.0} | getattr(denoiser.attend, "settings", {})
    settings = {**flat("attention", attention), "dtype": str(denoiser.dtype)}
    # Sequential offloading leaves no values to look at. Nothing is said then, rather than something that no other
    # machine would say of the same weights.
    if not any(weight.is_meta for weight in denoiser.transformer.parameters()):
        settings["weights"] = weights_fingerprint(denoiser.transformer)
    return settings


def flat(name: str, value: Any) -> dict[str, Any]:
    """`value` under its name; a mapping as dotted names, so that a difference is told of one setting."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {path: inner for key, part in value.items() for path, inner in flat(f"{name}.{key}", part).items()}


def refuse_others(mine: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise InputError naming the first setting that differs from the saved one's.

    What only one of the two says is passed over: an earlier version saved fewer settings.
    """
    for name, value in mine.items():
        if name in saved and saved[name] != value:
            fix = "load the same checkpoint, student and adapters" if name == "weights" else "continue with the same"
            raise InputError(f"{name}={value!r}: the saved rollout used {saved[name]!r}; {fix}")


def take_state(rollout: Rollout) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that the rest of the rollout depends on, between two blocks: safetensors-ready CPU tensors and
    JSON-able facts. The seed is the caller's: noise has no state."""
    if rollout.cache.open_block:
        if rollout._pending is None and not rollout._work:
            raise InputError("state_dict(): a block is half done; take it between blocks")
        rollout.cache.abort()
    tensors, cache = rollout.cache.snapshot()
    tensors = {f"cache.{name}": tensor for name, tensor in tensors.items()}
    tensors |= {f"work.{index}": cpu_copy(latents) for index, latents in rollout._work.items()}
    tensors |= {f"given.{block.index}": cpu_copy(latents) for block, latents in rollout._given}
    if rollout._pending is not None:
        tensors["pending"] = cpu_copy(rollout._pending[1])
    if rollout._history:
        tensors["history"] = cpu_copy(torch.cat([latents for _, latents in rollout._history], dim=2))
    texts = list({id(text): text for text in (rollout._text, *rollout._texts.values())}.values())
    tensors |= {f"text.{i}": cpu_copy(text.embeds) for i, text in enumerate(texts)}
    places = {id(text): i for i, text in enumerate(texts)}
    meta: dict[str, Any] = {
        "settings": _settings(rollout),
        "cache": cache,
        "prompt": rollout.prompt,
        "branches": rollout._text.branches,
        "texts": {str(block): places[id(text)] for block, text in rollout._texts.items()},
        "entered": rollout._entered,
        "scene": [rollout._scene, rollout._first, rollout._timeline.latent, rollout._timeline.video],
        "scene_end": rollout._scene_end,
        "call": rollout._call,
        "calls": rollout._calls,
        "pending": None if rollout._pending is None else [rollout._pending[0].index, rollout._pending[2]],
        "history": [frame for frame, _ in rollout._history],
        "next_prompt": None,
        "switches": [list(switch) for switch in rollout._switches],
    }
    if rollout._next_prompt is not None:
        tensors["next_text"] = cpu_copy(rollout._next_prompt[1].embeds)
        meta["next_prompt"] = [rollout._next_prompt[0], rollout._next_prompt[2]]
    return tensors, meta


def restore_state(rollout: Rollout, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Continue where `state_dict` was taken. Raises InputError naming the first setting that differs."""
    refuse_others(_settings(rollout), meta["settings"])
    if rollout.cache.open_block:
        rollout.cache.abort()
    rollout.cache.restore(
        {n.removeprefix("cache."): t for n, t in tensors.items() if n.startswith("cache.")}, meta["cache"]
    )
    count = sum(name.startswith("text.") for name in tensors)
    texts = [_context(rollout, tensors[f"text.{i}"], meta["branches"]) for i in range(count)]
    rollout._text = texts[0]
    rollout._texts = {int(block): texts[i] for block, i in meta["texts"].items()}
    rollout.prompt = meta["prompt"]
    rollout._scene, rollout._first, latent, video = meta["scene"]
    rollout._timeline = Timeline(rollout._timeline.temporal, latent, video)
    rollout.blocks = rollout._all_blocks()
    device = rollout.denoiser.device
    rollout._work = {
        int(n.removeprefix("work.")): t.to(device, copy=True) for n, t in tensors.items() if n.startswith("work.")
    }
    given = sorted(int(n.removeprefix("given.")) for n in tensors if n.startswith("given."))
    rollout._given = deque((rollout.block(i), tensors[f"given.{i}"].to(device, copy=True)) for i in given)
    rollout._entered, rollout._scene_end = meta["entered"], meta["scene_end"]
    rollout._call, rollout._calls = meta["call"], meta["calls"]
    pending = meta["pending"]
    if pending is None:
        rollout._pending = None
    else:
        rollout._pending = (rollout.block(pending[0]), tensors["pending"].to(device, copy=True), pending[1])
    rollout._history.clear()
    if meta["history"]:
        frames = torch.split(tensors["history"].to(device, copy=True), 1, dim=2)
        rollout._history.extend(zip(meta["history"], frames, strict=True))
    rollout._switches = deque((frame, prompt, cut) for frame, prompt, cut in meta["switches"])
    rollout._next_prompt = None
    if meta["next_prompt"] is not None:
        name, hard_cut = meta["next_prompt"]
        rollout._next_prompt = (name, _context(rollout, tensors["next_text"], meta["branches"]), hard_cut)


def _context(rollout: Rollout, embeds: Tensor, branches: int) -> TextContext:
    if branches == 1:
        return rollout.denoiser.encode_text(embeds)
    negative, positive = embeds.chunk(2)
    return rollout.denoiser.encode_text(positive, negative)
