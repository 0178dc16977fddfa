"""What a user asked for, checked and resolved before any weight is touched.

`resolve` turns the arguments of `pipe(...)`, `pipe.stream(...)` and `pipe.rollout(...)` into a `Request` of plain
numbers, or raises InputError naming argument, value, rule and fix.
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from longvid.cache.policies import ParticipativePolicy, Policy, policy_from_config
from longvid.config import AttentionConfig, MethodConfig, to_mapping
from longvid.errors import InputError
from longvid.presets import merge, resolve_method
from longvid.prompts import PromptSchedule, parse_prompt

from .schedules.blocks import BlockGrid, Schedule
from .schedules.chunk import ChunkSchedule
from .schedules.rolling import RollingSchedule
from .schedules.sigmas import even_steps, step_sigmas
from .schedules.timeline import Timeline

MAX_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a request needs to know of the model: sizes, and the sampling defaults of its folder (None: not given)."""

    spatial: int
    """Pixels a side that one transformer token covers: VAE factor times patch."""
    temporal: int
    """Video frames a latent frame (the first holds one)."""
    fps: float
    height: int
    width: int
    defaults: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PromptSwitch:
    """From latent frame `frame` on, another prompt; `cut` starts a new scene."""

    frame: int
    text: str
    cut: bool


@dataclass(frozen=True, slots=True)
class Request:
    """A resolved request. frames: video frames in all (None: endless). latent_frames: whole blocks that hold them, hard
    cuts included; blocks: their number. grid: blocks of the video; scene_grid: of scenes behind hard cuts."""

    method: MethodConfig
    prompts: tuple[str, ...]
    negative: tuple[str, ...]
    switches: tuple[PromptSwitch, ...]
    frames: int | None
    latent_frames: int | None
    blocks: int | None
    height: int
    width: int
    seeds: tuple[int, ...]
    sigmas: tuple[float, ...]
    grid: BlockGrid
    scene_grid: BlockGrid
    fps: float

    @property
    def batch(self) -> int:
        return len(self.prompts)

    @property
    def guided(self) -> bool:
        """Whether the negative prompt's branch is computed too."""
        return self.method.schedule.guidance_scale != 1.0

    def policy(self) -> Policy:
        return policy_from_config(self.method.cache, self.grid.frames_per_block, self.latent_frames)

    def schedule(self) -> Schedule:
        """What is denoised together; "fifo" has a queue instead."""
        kinds = {"chunk": ChunkSchedule, "rolling": RollingSchedule}
        return kinds[self.method.schedule.kind](len(self.sigmas))


def resolve(
    method: str | MethodConfig,
    facts: ModelFacts,
    prompt: str | Sequence[str],
    *,
    negative_prompt: str | Sequence[str] | None = None,
    seconds: float | None = None,
    num_frames: int | None = None,
    endless: bool = False,
    seed: int | Sequence[int] | None = None,
    generator: Any = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    num_videos_per_prompt: int = 1,
    attention: str | Mapping[str, Any] | AttentionConfig | None = None,
    given_frames: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> Request:
    """Check and resolve. given_frames: latent frames that the video starts with (an image, a clip to extend).

    A method by name takes the model folder's sampling defaults, then `overrides`, then the arguments given here; a
    ready MethodConfig is taken as it is but for the arguments.
    """
    method = resolve_method(method, model_defaults=facts.defaults if isinstance(method, str) else None)
    asked: dict[str, Any] = {}
    if num_inference_steps is not None:
        whole = isinstance(num_inference_steps, int) and not isinstance(num_inference_steps, bool)
        if not whole or not 1 <= num_inference_steps <= 1000:
            raise InputError(f"num_inference_steps={num_inference_steps!r}: must be a whole number from 1 to 1000")
        if method.schedule.kind == "fifo":
            from .fifo_settings import partitions_for

            config = resolve_method(method, overrides=overrides).schedule if overrides else method.schedule
            asked["num_partitions"] = partitions_for(config, num_inference_steps)
        else:
            asked["steps"] = list(even_steps(num_inference_steps))
    if guidance_scale is not None:
        asked["guidance_scale"] = guidance_scale
    changes = merge(overrides or {}, {"schedule": asked} if asked else {})
    if attention is not None:
        if isinstance(attention, AttentionConfig):
            attention = to_mapping(attention)
        changes = merge(changes, {"attention": {"kind": attention} if isinstance(attention, str) else attention})
    if changes:
        method = resolve_method(method, overrides=changes)

    prompts = _texts("prompt", prompt)
    schedules = [parse_prompt(text) for text in prompts]
    if len(schedules) > 1 and any(len(schedule.parts) > 1 for schedule in schedules):
        raise InputError("prompt: a schedule with '|' cannot be one of several prompts; render them one by one")
    _positive("num_videos_per_prompt", num_videos_per_prompt)
    frames = _frames(schedules[0], seconds, num_frames, endless, facts)
    grid = _grid(method, given_frames)
    scene_grid = replace(grid, independent_first_frame=method.schedule.independent_first_frame)
    given_blocks = grid.count(given_frames) if given_frames else 0
    switches, timeline, blocks = _switches(schedules[0], frames, facts, grid, scene_grid, given_blocks)
    latent_frames = None
    if frames is not None:
        own = scene_grid if timeline.latent else grid
        scene = own.round_up(timeline.latents_until(frames))
        latent_frames, blocks = timeline.latent + scene, blocks + own.count(scene)
        if given_frames and given_blocks >= blocks:
            known = Timeline(facts.temporal).video_frame(given_frames)
            asked, has = f"num_frames={num_frames}", f"{known} frames"
            if num_frames is None:
                asked = f"prompt, of {frames / facts.fps:g} s" if seconds is None else f"seconds={seconds:g}"
                has = f"{known / facts.fps:g} s"
            raise InputError(f"{asked}: what it goes on from has {has} already; ask for more")
    texts = [schedule.parts[0].text for schedule in schedules]
    negative = _texts("negative_prompt", "" if negative_prompt is None else negative_prompt, empty=True)
    if len(negative) not in (1, len(texts)):
        raise InputError(f"negative_prompt: {len(negative)} given for {len(texts)} prompts; give one, or one each")
    if any(negative) and method.schedule.guidance_scale == 1.0:
        text = next(filter(None, negative))
        message = (
            f"negative_prompt={text if len(text) < 80 else text[:77] + '...'!r}: is not used at "
            "schedule.guidance_scale=1; set that above 1, or leave it out"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    negative = negative * len(texts) if len(negative) == 1 else negative
    repeat = num_videos_per_prompt
    batch = len(texts) * repeat
    request = Request(
        method=method,
        prompts=tuple(text for text in texts for _ in range(repeat)),
        negative=tuple(text for text in negative for _ in range(repeat)),
        switches=tuple(switches),
        frames=frames,
        latent_frames=latent_frames,
        blocks=blocks if frames is not None else None,
        height=_side("height", height, facts.height, facts.spatial),
        width=_side("width", width, facts.width, facts.spatial),
        seeds=_seeds(seed, generator, batch),
        sigmas=step_sigmas(method.schedule.steps, method.schedule.shift, method.schedule.warp),
        grid=grid,
        scene_grid=scene_grid,
        fps=facts.fps,
    )
    if method.schedule.kind == "fifo":
        from .fifo_settings import check_fifo

        check_fifo(method, [*request.prompts, *(switch.text for switch in switches)])
    if method.schedule.kind in ("chunk", "rolling"):
        rehearse(request)
    return request


def rehearse(request: Request) -> None:
    """Run the policy over the first blocks on integers, so that a combination that cannot be fails now, not later."""
    policy, schedule = request.policy(), request.method.schedule
    if isinstance(policy, ParticipativePolicy):
        if schedule.kind == "rolling":
            raise InputError("cache.policy='participative': needs schedule.kind='chunk'; token selection has no window")
        return
    cache = request.method.cache
    together = request.schedule().blocks_per_call * request.grid.frames_per_block
    if cache.policy == "rolling" and schedule.kind == "rolling" and cache.window < together + cache.sink:
        raise InputError(
            f"cache.window={cache.window}: {together} frames are denoised together, beside a sink of {cache.sink}; "
            f"use {together + cache.sink} or more, or fewer steps"
        )
    resident: list[int] = []
    memory: Mapping[str, int] = {}
    index = 0
    while request.blocks is None or index < request.blocks:
        block = request.grid[index]
        plan = policy.plan(resident, block.start, block.frames, block.frames, memory)
        resident = [frame for frame in resident if frame not in plan.evict] + list(range(block.start, block.end))
        memory, index = plan.memory, index + 1
        if block.start > policy.capacity + 2 * block.frames:
            return


def _texts(name: str, value: str | Sequence[str], empty: bool = False) -> list[str]:
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else None
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name}={type(value).__name__}: must be text, or a list of texts")
    if not empty and not all(text.strip() for text in texts):
        raise InputError(f"{name}='': must not be empty")
    return texts


def _positive(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}={value!r}: must be a whole number, 1 or more")


def _frames(schedule: Any, seconds: Any, num_frames: Any, endless: bool, facts: ModelFacts) -> int | None:
    """Video frames: num_frames as it is, or seconds times fps rounded; None for an endless stream."""
    k = facts.temporal
    if num_frames is not None:
        if seconds is not None:
            raise InputError(f"num_frames={num_frames}: give seconds or num_frames, not both")
        _positive("num_frames", num_frames)
        if (num_frames - 1) % k:
            low = 1 + (num_frames - 1) // k * k
            raise InputError(f"num_frames={num_frames}: must be {k}k+1; nearest {low} or {low + k}")
        return int(num_frames)
    if seconds is not None:
        number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if not number or not math.isfinite(seconds) or seconds <= 0:
            raise InputError(f"seconds={seconds!r}: must be a finite number above 0")
        if seconds > MAX_SECONDS:
            raise InputError(f"seconds={seconds:g}: must be at most {MAX_SECONDS:g} (a week)")
    if seconds is None and schedule.seconds is None:
        if endless:
            return None
        raise InputError("seconds=None: give seconds or num_frames, or write the length into the prompt: 'prompt[10s]'")
    return max(1, round(float(schedule.length(seconds)) * facts.fps))


def _switches(
    schedule: PromptSchedule,
    frames: int | None,
    facts: ModelFacts,
    grid: BlockGrid,
    scene_grid: BlockGrid,
    given_blocks: int,
) -> tuple[list[PromptSwitch], Timeline, int]:
    """The later parts of a schedule, each from the first block that begins in or behind the latent frame of its second.

    Also gives the last scene's timeline, and the number of blocks before that scene.

    Raises:
        InputError: a part that no block would show.
    """
    timeline, own, before = Timeline(facts.temporal), grid, 0
    switches: list[PromptSwitch] = []
    shown = 0
    for number, (part, start) in enumerate(zip(schedule.parts[1:], schedule.starts[1:], strict=True), start=2):
        wanted = timeline.latent_frame(max(round(start * facts.fps), 1))
        index = max(own.next_block(wanted - timeline.latent), given_blocks - before)
        latent = timeline.latent + own[index].start
        video = timeline.video_frame(latent)
        late = frames is not None and video >= frames
        if late or (switches and video == shown):
            lost, why = (number, "the video ends") if late else (number - 1, f"part {number} begins")
            block = own.frames_per_block * facts.temporal / facts.fps
            raise InputError(
                f"prompt: part {lost} would never be shown: a prompt begins with a block ({block:g} s), and before the "
                f"next one, at {video / facts.fps:g} s, {why}; give it more seconds, or drop it"
            )
        shown = video
        if part.cut:
            timeline, own, before = timeline.cut(latent), scene_grid, before + index
        switches.append(PromptSwitch(latent, part.text, part.cut))
    return switches, timeline, before


def _grid(method: MethodConfig, given_frames: int) -> BlockGrid:
    n, alone = method.schedule.frames_per_block, method.schedule.independent_first_frame
    if given_frames and not alone and given_frames % n == 1 % n:
        alone = True  # an image (or 1 + blocks): the first latent frame is a block of its own
    grid = BlockGrid(n, alone)
    if given_frames:
        grid.count(given_frames)
    return grid


def _side(name: str, value: Any, default: int, multiple: int) -> int:
    value = default if value is None else value
    _positive(name, value)
    if value % multiple:
        low = max(multiple, value // multiple * multiple)
        raise InputError(f"{name}={value}: must be a multiple of {multiple}; nearest {low} or {low + multiple}")
    return int(value)


def _seeds(seed: Any, generator: Any, batch: int) -> tuple[int, ...]:
    """One seed a sample. A generator gives its seeds by drawing them, so that it advances as users expect."""
    if seed is not None and generator is not None:
        raise InputError("seed, generator: give one of them, not both")
    if generator is not None:
        many = list(generator) if isinstance(generator, (list, tuple)) else [generator]
        if not all(isinstance(g, torch.Generator) for g in many) or len(many) not in (1, batch):
            raise InputError(f"generator: give one torch.Generator, or one a sample ({batch})")
        draws = [int(torch.randint(2**62, (1,), generator=g, device=g.device)) for g in many]
        return tuple(draws) if len(draws) == batch else tuple(draws[0] + i for i in range(batch))
    if seed is None:
        seed = secrets.randbits(32)
    seeds = list(seed) if isinstance(seed, (list, tuple)) else [seed]
    for value in seeds:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            raise InputError(f"seed={value!r}: must be a whole number from 0 to 2^63 - 1")
    if len(seeds) == 1:
        return tuple(seeds[0] + i for i in range(batch))
    if len(seeds) != batch:
        raise InputError(f"seed: {len(seeds)} given for {batch} videos; give one, or one each")
    return tuple(seeds)
