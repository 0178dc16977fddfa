"""THE loop: a schedule says what to denoise, a cache what to remember, a denoiser predicts; clean blocks come out.

Shape letters: B batch, C channels, F latent frames, h w latent size.

Every autoregressive method runs here. A block's commit call (the one that writes its clean keys and values) is made
only when the next call needs it: so a block is out before it is committed, and commits that nothing would read, the
last one and those of a rolling warm-up, are never made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from longvid.errors import InputError
from longvid.prompts import parse_switch

from ..cache.policies import Policy
from ..models.denoiser import Denoiser, TextContext
from .noise import NoiseSource
from .rollout_state import restore_state, take_state
from .schedules.blocks import Block, BlockGrid, Schedule
from .schedules.timeline import Timeline

StepHook = Callable[[int, float, Tensor], Tensor | None]
"""(model call, timestep of its noisiest frame, latents [B, C, F, h, w] after the step) -> latents to use instead."""


@dataclass(slots=True)
class LatentBlock:
    """A finished block: `latents` float32 [B, C, F, h, w] of the latent frames from `start_frame`.

    given: it came in as an initial latent. stats: model_calls, frames_processed and seconds since the block before.
    video_frame: video frames before it. new_scene: it begins the video, or a scene behind a hard cut; its first latent
    frame is one picture, and a decoder starts anew with it.
    """

    index: int
    start_frame: int
    latents: Tensor
    given: bool = False
    stats: dict[str, float] = field(default_factory=dict)
    video_frame: int = 0
    new_scene: bool = False


class Rollout(Iterator[LatentBlock]):
    """A rollout in progress; iterate it for finished blocks.

    sigmas: noise level of each step, falling (the schedule has as many steps). sampler: "renoise" (predict x0, then
    fresh noise at the next level) or "euler" (x + (sigma' - sigma) v). frames: latent frames in all, initial ones
    included; None = endless. A hard cut adds the latent frames that its scene needs for the video to last as long: a
    scene's first one is one video frame, later ones are `temporal` (of the VAE). video_frames: the length in video
    frames, in place of frames. scene_grid: blocks of the scenes behind hard cuts, `grid` when None. context_noise:
    timestep announced in commit calls. recache: at a prompt switch "none" keeps the keys, "window" re-encodes the
    recent frames under the new prompt, "all" the sink too. encode: what turns `set_prompt`'s text into a TextContext.
    switches: (latent frame, prompt, hard cut) in order; each acts from the first block that starts there or later.
    initial: latents [B, C, F, h, w] to continue from.

    Raises InputError for lengths that are no whole number of blocks; FloatingPointError when a block is not finite.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        policy: Policy,
        text: TextContext,
        *,
        grid: BlockGrid,
        sigmas: Sequence[float],
        noise: NoiseSource,
        height: int,
        width: int,
        frames: int | None = None,
        sampler: str = "renoise",
        context_noise: float = 0.0,
        guidance_scale: float = 1.0,
        recache: str = "none",
        initial: Tensor | None = None,
        encode: Callable[[str], TextContext] | None = None,
        prompt: str | None = None,
        switches: Sequence[tuple[int, str, bool]] = (),
        on_step: StepHook | None = None,
        cache_dtype: torch.dtype | None = None,
        video_frames: int | None = None,
        scene_grid: BlockGrid | None = None,
        temporal: int = 4,
    ) -> None:
        if len(sigmas) != schedule.steps:
            raise InputError(f"sigmas={tuple(sigmas)}: the schedule has {schedule.steps} steps")
        if sampler not in ("renoise", "euler"):
            raise InputError(f"sampler={sampler!r}: must be 'renoise' or 'euler'")
        self.denoiser, self.schedule, self.policy, self.grid, self.noise = denoiser, schedule, policy, grid, noise
        self.sigmas, self.sampler, self.context_noise = tuple(sigmas), sampler, float(context_noise)
        self.guidance_scale, self.recache, self.on_step = guidance_scale, recache, on_step
        self.height, self.width = height, width
        self._scene_grid = scene_grid or grid
        self._timeline = Timeline(temporal)
        self._scene = 0  # first block of the scene
        if frames is not None:
            grid.count(frames)
            video_frames = self._timeline.video_frame(frames)
        self.length = video_frames
        self.blocks = self._all_blocks()
        self.prompt, self._text, self._encode = prompt, text, encode
        self.batch = text.batch
        self.cache = denoiser.new_cache(
            policy,
            batch=text.batch * text.branches,
            height=height,
            width=width,
            dtype=cache_dtype,
            window=schedule.blocks_per_call * grid.frames_per_block,
        )
        self._given: deque[tuple[Block, Tensor]] = deque()
        if initial is not None:
            self._given.extend(self._cut(initial))
        self._entered = len(self._given)  # blocks that have left noise, or came in
        self._first = self._entered  # first generated block of the scene
        self._scene_end: int | None = None  # blocks of the scene, when a hard cut has closed it
        self._call = 0  # calls of the scene
        self._calls = 0  # calls in all
        self._work: dict[int, Tensor] = {}  # blocks in flight
        self._texts: dict[int, TextContext] = {}  # prompts of the blocks in flight and of the one to commit
        self._pending: tuple[Block, Tensor, float] | None = None  # clean, out, not committed; its commit timestep
        self._history: deque[tuple[int, Tensor]] = deque(maxlen=policy.capacity)  # clean frames, for a recache
        self._next_prompt: tuple[str | None, TextContext, bool] | None = None
        self._switches = deque(switches)
        self._since = {"model_calls": 0.0, "frames_processed": 0.0}
        self._clock = perf_counter()

    def _cut(self, initial: Tensor) -> list[tuple[Block, Tensor]]:
        frames, batch, channels = initial.shape[2], initial.shape[0], self.denoiser.channels
        wanted = (self.batch, channels, frames, self.height, self.width)
        if tuple(initial.shape) != wanted:
            raise InputError(f"initial latents: shape {tuple(initial.shape)} must be {wanted}")
        del batch
        if not bool(torch.isfinite(initial).all()):
            raise InputError("initial latents: contain NaN or infinity; encode the input again")
        count = self.grid.count(frames)
        if self.blocks is not None and count >= self.blocks:
            total = self.block(self.blocks - 1).end
            raise InputError(f"initial latents: {frames} frames leave nothing to generate in {total}; ask for more")
        initial = initial.to(self.denoiser.device, torch.float32)
        blocks = [self.block(i) for i in range(count)]
        return [(block, initial[:, :, block.start : block.end]) for block in blocks]

    def block(self, index: int) -> Block:
        """The index-th block of the video; of this scene, or as if it went on for ever."""
        grid = self.grid if self._scene == 0 else self._scene_grid
        block = grid[index - self._scene]
        return Block(index, block.start + self._timeline.latent, block.frames)

    def _all_blocks(self) -> int | None:
        """Blocks in all, if no cut comes."""
        if self.length is None:
            return None
        grid = self.grid if self._scene == 0 else self._scene_grid
        return self._scene + grid.count(grid.round_up(self._timeline.latents_until(self.length)))

    # ---------------------------------------------------------------- the loop

    def __iter__(self) -> Rollout:
        return self

    @torch.no_grad()
    def __next__(self) -> LatentBlock:
        """The next finished block: given ones first, then generated ones, in order."""
        if self._given:
            self._flush()
            block, latents = self._given.popleft()
            self._texts[block.index] = self._text
            self._open(block, block.frames)
            return self._finish(block, latents, given=True)
        while True:
            window = self._next_window()
            if window is None:
                raise StopIteration
            finished = self._denoise(window)
            if finished is not None:
                return self._finish(*finished)

    def _next_window(self) -> list[tuple[Block, int]] | None:
        """The next call's (block, step) pairs; prompt switches happen here, where a block may enter."""
        while True:
            if self._next_prompt is None and self._switches and self.block(self._entered).start >= self._switches[0][0]:
                _, prompt, cut = self._switches.popleft()
                self._await_prompt(prompt, self._encoded(prompt), cut)
            first = self._first
            left = None if self.blocks is None else self.blocks - first
            if self._scene_end is not None:
                left = self._scene_end if left is None else min(left, self._scene_end)
            entries = self.schedule.window(self._call, left)
            if self._next_prompt is not None and (entries is None or entries.entries[-1][1] == 0):
                if not self._next_prompt[2]:
                    self._switch(*self._next_prompt[:2])
                    continue
                if self._scene_end is None and self._work:
                    self._scene_end = self.schedule.entered(self._call)  # let the blocks in flight drain
                    continue
                if not self._work:
                    self._hard_cut(*self._next_prompt[:2])
                    continue
            if entries is None:
                return None
            return [(self.block(first + block), step) for block, step in entries.entries]

    def _denoise(self, window: list[tuple[Block, int]]) -> tuple[Block, Tensor] | None:
        """One model call and the step that follows it; gives the block that became clean, if one did."""
        self._flush()
        for block, step in window:
            if step == 0:
                self._work[block.index] = self._draw(block, 0)
                self._texts[block.index] = self._text
                self._entered = max(self._entered, block.index + 1)
        frames = sum(block.frames for block, _ in window)
        self._open(window[0][0], frames)
        x = (
            torch.cat([self._work[block.index] for block, _ in window], dim=2)
            if len(window) > 1
            else (self._work[window[0][0].index])
        )
        levels = [self.sigmas[step] for block, step in window for _ in range(block.frames)]
        sigma = torch.tensor(levels, dtype=torch.float32, device=x.device)
        velocity = self.denoiser(
            x, sigma * 1000.0, self._prompts(window), self.cache, "denoise", guidance_scale=self.guidance_scale
        )
        sigma = sigma[:, None, None]
        clean = x - sigma * velocity
        finished, results, at = None, [], 0
        for block, step in window:
            span = slice(at, at + block.frames)
            at += block.frames
            if step == len(self.sigmas) - 1:
                results.append(clean[:, :, span])
            elif self.sampler == "renoise":
                to = self.sigmas[step + 1]
                results.append((1.0 - to) * clean[:, :, span] + to * self._draw(block, step + 1))
            else:
                results.append(x[:, :, span] + (self.sigmas[step + 1] - self.sigmas[step]) * velocity[:, :, span])
        self._count(frames)
        if self.on_step is not None:
            latents = torch.cat(results, dim=2)
            changed = self.on_step(self._calls, 1000.0 * max(levels), latents)
            if changed is not None:
                results = list(torch.split(changed, [block.frames for block, _ in window], dim=2))
        for (block, step), latents in zip(window, results, strict=True):
            if step == len(self.sigmas) - 1:
                del self._work[block.index]
                finished = (block, latents.contiguous())
            else:
                self._work[block.index] = latents
        self._call += 1
        self._calls += 1
        return finished

    def _finish(self, block: Block, latents: Tensor, given: bool = False) -> LatentBlock:
        if not bool(torch.isfinite(latents).all()):
            raise FloatingPointError(f"block {block.index}: latents are not finite; the model or its dtype overflowed")
        # Given frames are real, not predicted: they are announced as clean.
        self._pending = (block, latents, 0.0 if given else self.context_noise)
        for i in range(block.frames):
            self._history.append((block.start + i, latents[:, :, i : i + 1]))
        now = perf_counter()
        stats = {**self._since, "seconds": now - self._clock}
        self._since, self._clock = {"model_calls": 0.0, "frames_processed": 0.0}, now
        return LatentBlock(
            block.index,
            block.start,
            latents,
            given,
            stats,
            video_frame=self._timeline.video_frame(block.start),
            new_scene=block.index == self._scene,
        )

    def _flush(self) -> None:
        """Commit the block that is out but not yet in the cache."""
        if self._pending is None:
            return
        block, latents, timestep = self._pending
        self._open(block, block.frames)
        text = self._texts.pop(block.index)
        if self.cache.reads_again(self.block(block.index + 1).frames):
            self._commit_call(latents, timestep, text)
        self.cache.commit()
        self._pending = None

    def _prompts(self, window: list[tuple[Block, int]]) -> list[tuple[int, TextContext]]:
        """(frames, prompt) of a call: each block keeps the prompt that it entered with."""
        parts: list[tuple[int, TextContext]] = []
        for block, _ in window:
            text = self._texts[block.index]
            if parts and parts[-1][1] is text:
                parts[-1] = (parts[-1][0] + block.frames, text)
            else:
                parts.append((block.frames, text))
        return parts

    def _open(self, block: Block, window: int) -> None:
        self.cache.begin(block.start - self._timeline.latent, block.frames, window)

    def _commit_call(self, latents: Tensor, timestep: float, text: TextContext) -> None:
        """A call at (near) zero noise, whose output nobody needs: it writes keys and values."""
        timesteps = torch.full((latents.shape[2],), timestep, device=latents.device)
        self.denoiser(latents, timesteps, text, self.cache, "commit")
        self._count(latents.shape[2])

    def _count(self, frames: int) -> None:
        self._since["model_calls"] += 1
        self._since["frames_processed"] += frames

    def _draw(self, block: Block, step: int) -> Tensor:
        shape = (self.batch, self.denoiser.channels, block.frames, self.height, self.width)
        return self.noise(block.index, step, shape).to(self.denoiser.device)

    # ---------------------------------------------------------------- prompts

    def set_prompt(self, prompt: str | TextContext, hard_cut: bool = False) -> None:
        """Use another prompt from the next block that enters on.

        prompt: one prompt as `longvid.prompts` reads it, without a length; or a TextContext.
        Soft: frames so far stay remembered, re-encoded under the new prompt as `recache` says (LongLive, sec. 3.2).
        Blocks in flight are finished under the prompt that they entered with.
        hard_cut: a new scene; blocks in flight are finished under the old prompt and nothing is remembered.
        """
        if isinstance(prompt, TextContext):
            self._await_prompt(None, prompt, hard_cut)
        else:
            words = parse_switch(prompt)
            self._await_prompt(words, self._encoded(words), hard_cut)

    def _encoded(self, words: str) -> TextContext:
        if self._encode is None:
            raise InputError("prompt: this rollout was made from embeddings; pass a TextContext")
        return self._encode(words)

    def _await_prompt(self, name: str | None, text: TextContext, hard_cut: bool) -> None:
        if text.batch != self.batch or text.branches != self._text.branches:
            raise InputError(f"prompt: gives a batch of {text.batch}, the rollout has {self.batch}")
        self._next_prompt = (name, text, hard_cut)

    def _switch(self, name: str | None, text: TextContext) -> None:
        self.prompt, self._text, self._next_prompt = name, text, None
        if self.recache == "none" or not self._history:
            return  # a block still to be committed keeps the prompt that it was made with
        if self._pending is not None:
            # The block becomes resident without a commit call: the recache encodes it under the new prompt.
            block = self._pending[0]
            self._open(block, block.frames)
            self.cache.commit()
            self._pending = None
            del self._texts[block.index]
        count = min(self.cache.resident_frames, len(self._history))
        newest = list(self._history)[len(self._history) - count :]
        self.cache.begin_recache(
            [frame - self._timeline.latent for frame, _ in newest], keep_sink=self.recache != "all"
        )
        self._commit_call(torch.cat([latents for _, latents in newest], dim=2), self.context_noise, text)
        self.cache.commit_recache()

    def _hard_cut(self, name: str | None, text: TextContext) -> None:
        self.prompt, self._text, self._next_prompt = name, text, None
        self.cache.reset() if not self.cache.open_block else self._drop_open()
        self._pending = None
        self._history.clear()
        self._texts.clear()
        self._timeline = self._timeline.cut(self.block(self._entered).start)
        self._scene = self._first = self._entered
        self._scene_end, self._call = None, 0
        self.blocks = self._all_blocks()

    def _drop_open(self) -> None:
        self.cache.abort()
        self.cache.reset()

    # ---------------------------------------------------------------- exact continuation

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the rest of the rollout depends on, between two blocks: safetensors-ready CPU tensors and
        JSON-able facts. The seed is the caller's: noise has no state."""
        return take_state(self)

    def load_state_dict(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken. Raises InputError naming the first setting that differs."""
        restore_state(self, tensors, meta)
        self._since, self._clock = {"model_calls": 0.0, "frames_processed": 0.0}, perf_counter()
