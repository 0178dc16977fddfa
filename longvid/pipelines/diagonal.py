"""A FIFO roll on a transformer: passes over a latent queue, with Ouroboros-Diffusion's three additions.

    start()          denoise the first clip and fill the queue from it
    start_from(...)  or fill it from frames that are there
    advance()        one pass; returns the latent frame that left, or None while the queue warms up

The windows of a pass read the state before it and are independent, so they travel as one batch (``window_batch``
bounds it; a device that runs out of memory halves it). Prompts belong to frames: a window whose kept frames have two
prompts is evaluated under both, and each frame takes its own.

Shape letters: B samples, C channels, F frames of a window, h w latent height and width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longvid.errors import InputError
from longvid.models.denoiser import TextContext
from longvid.models.window_denoiser import WindowDenoiser, gather_text, split_branches
from longvid.pipelines.fifo_settings import Additions
from longvid.pipelines.queue import LatentQueue, run_first_clip
from longvid.pipelines.schedules.fifo import FifoSchedule, Window
from longvid.pipelines.solvers import FlowSolver, classifier_free_guidance
from longvid.pipelines.subject_follower import SubjectFollower

logger = logging.getLogger(__name__)

# What a frame's noise is for: the second index of ``noise(frame, purpose)``.
ENTER, RENOISE, FILL, STEP = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class RollPrompt:
    """A prompt, encoded.

    Attributes:
        text: for ``B`` samples, with the negative prompt's branch when there is guidance.
        positions: of each sample's subject words among its text tokens; empty when no subject is followed.
        subject: the words; prompts with the same words have the same subject.
    """

    text: TextContext
    positions: tuple[tuple[int, ...], ...] = ()
    subject: tuple[str, ...] = ()


class DiagonalRoll:
    """State and passes of one video.

    Args:
        denoiser: of the transformer.
        schedule, solver: index rules and step.
        shape: ``(B, C, h, w)`` of a latent frame.
        noise: (frame, purpose) to standard normal float32 ``[B, C, h, w]``; must depend on nothing else. ``frame`` is
            0 or more, ``purpose`` one of ``ENTER``, ``RENOISE``, ``FILL``, ``STEP + level``.
        guidance_scale: of classifier-free guidance; used when the prompts carry a negative branch.
        additions: Ouroboros-Diffusion's parts; none is plain FIFO.
        window_batch: rows (windows x prompts) of a model call at most; 0 is all.
        first_frame: number of the frame that leaves first (a new scene goes on counting).
        on_step: called after each step of the first clip with its latents and after each pass with the queue's:
            (model calls so far, timestep of the noisiest frame, latents) to latents to go on with, or None.

    Raises:
        InputError: layers that the model does not have; a bank longer than a window.
    """

    def __init__(
        self,
        denoiser: WindowDenoiser,
        schedule: FifoSchedule,
        solver: FlowSolver,
        shape: tuple[int, int, int, int],
        *,
        noise: Callable[[int, int], Tensor],
        guidance_scale: float = 1.0,
        additions: Additions | None = None,
        window_batch: int = 0,
        first_frame: int = 0,
        on_step: Callable[[int, float, Tensor], Tensor | None] | None = None,
    ) -> None:
        self.denoiser, self.schedule, self.solver, self.shape = denoiser, schedule, solver, shape
        additions = additions or Additions()
        self.guidance_scale, self.additions, self.first_frame = guidance_scale, additions, first_frame
        self.window_batch = window_batch
        self._noise = noise
        self.queue = LatentQueue(schedule, solver, shape, device=denoiser.device)
        self.prompts: dict[int, RollPrompt] = {}
        self.slot_prompts = [0] * schedule.slots
        self.calls = 0
        self.frames_processed = 0
        self.on_step = on_step
        self.first_exit = 0
        self._lead = 0
        self.follower: SubjectFollower | None = None
        if additions.follows_subject:
            self.follower = SubjectFollower(denoiser, schedule, additions.subject, additions.guidance, shape)

    # -- prompts -------------------------------------------------------------------------------------------------

    def add_prompt(self, prompt: RollPrompt, key: int) -> None:
        """Register a prompt under the number that ``prompt_of`` will answer."""
        self.prompts[key] = prompt

    def drop_prompt(self, key: int) -> bool:
        """Forget a prompt that no frame of the queue has; whether that was so."""
        if key in self.slot_prompts:
            return False
        self.prompts.pop(key, None)
        return True

    def reassign(self, prompt_of: Callable[[int], int]) -> None:
        """Give every frame in the queue the prompt that ``prompt_of`` says it has from now on. This is the published
        switch: gradual, because a frame has fewer steps left the nearer it is to the exit."""
        index = self.queue.pass_index
        for slot in range(self.schedule.context_slots, self.schedule.slots):
            self.slot_prompts[slot] = prompt_of(self.first_frame + max(0, self.number(index, slot)))

    # -- start ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, prompt_of: Callable[[int], int]) -> None:
        """Denoise the first clip and fill the queue.

        Args:
            prompt_of: number of a video frame to its prompt's id.
        """
        schedule, first = self.schedule, self.first_frame
        self._place(prompt_of)
        f = schedule.window_frames
        clip_prompts = self.slot_prompts[-f:]
        noise = torch.stack([self._noise(first + m, ENTER) for m in range(f)], dim=2)

        def predict(x: Tensor, timesteps: Tensor) -> Tensor:
            whole = Window(0, 0, f, f)
            rows = [(whole, prompt) for prompt in dict.fromkeys(clip_prompts)]
            out = self._evaluate(rows, lambda _: (x, timesteps), tracked=False)
            return self._merge(out[whole], clip_prompts)

        def draw(level: int) -> Tensor:
            return torch.stack([self._noise(first + m, STEP + level) for m in range(f)], dim=2)

        def hook(level: int, x: Tensor) -> Tensor | None:
            return None if self.on_step is None else self.on_step(self.calls, 1000.0 * schedule.sigmas[level], x)

        clip = run_first_clip(self.queue, noise, predict, draw if self.solver.eta else None, hook)
        if schedule.init != "trajectory":
            self._fill(clip)

    @torch.no_grad()
    def start_from(self, given: Tensor, prompt_of: Callable[[int], int]) -> None:
        """Fill the queue from clean latents ``[B, C, K, h, w]``, re-noised: the frame that leaves first comes after
        them. With fewer of them than levels, the first stands in for those that would come before it.

        Raises:
            InputError: the schedule's init is another than "renoise".
        """
        if self.schedule.init != "renoise":
            raise InputError(f"init={self.schedule.init!r}: given frames can only be re-noised; use init='renoise'")
        count = given.shape[2]
        self._lead = count - self.schedule.window_frames
        self.first_exit = count
        self._place(prompt_of)
        self._fill(given)

    def _fill(self, clip: Tensor) -> None:
        fill = [self._noise(self.first_frame + slot, FILL) for slot in range(self.schedule.levels)]
        self.queue.fill(clip, torch.stack(fill, dim=2))

    def _place(self, prompt_of: Callable[[int], int]) -> None:
        numbers = [max(0, self.number(0, slot)) for slot in range(self.schedule.slots)]
        self.slot_prompts = [prompt_of(self.first_frame + number) for number in numbers]

    def number(self, index: int, slot: int) -> int:
        """Number, within the scene, of the frame that is in ``slot`` before pass ``index``; negative: warm-up."""
        return self.schedule.entry(index, slot) + self._lead

    # -- one pass ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def advance(self, prompt_of: Callable[[int], int]) -> Tensor | None:
        """One pass.

        Args:
            prompt_of: number of a video frame to its prompt's id, asked for the frame that enters.

        Returns:
            The latent frame that left, float32 ``[B, C, 1, h, w]``; None while the queue warms up.
        """
        queue, index = self.queue, self.queue.pass_index
        windows = queue.windows()
        follower = self.follower
        guided: tuple[Window, ...] = ()
        if follower is not None:
            follower.begin_pass(index, windows[0], self.prompts[self.slot_prompts[windows[0].keep]].subject)
            guided = tuple(w for w in windows if follower.guides(index, w, self._subjects_in(w)))
        rows = [(w, p) for w in windows if w not in guided for p in self._prompts_in(w)]
        if follower is None:
            outputs = self._evaluate(rows, queue.read)
        else:
            with follower.watch_cleanest(self.prompts[self.slot_prompts[-1]].text.branches):
                outputs = self._evaluate(rows, queue.read)
        predictions = {w: self._merge(outputs[w], self.slot_prompts[w.start : w.end]) for w in outputs}
        scores = {}
        for window in guided:
            predictions[window], scores[window] = self._guided(window)
        if follower is not None:
            follower.end_pass(index, self._subjects_in(windows[0]))
        queue.denoise(
            predictions,
            noise=self._step_noise(index) if self.solver.eta else None,
            scores=scores,
            guidance=self.additions.guidance.strength,
            exact=self.additions.guidance.form == "exact",
        )
        if self.on_step is not None:
            context = self.schedule.context_slots
            changed = self.on_step(self.calls, 1000.0, queue.latents_BCQhw[:, :, context:])
            if changed is not None:
                queue.latents_BCQhw[:, :, context:] = changed.to(queue.latents_BCQhw)
        return self._shift(prompt_of, index)

    def _shift(self, prompt_of: Callable[[int], int], index: int) -> Tensor | None:
        schedule = self.schedule
        entering = self.first_frame + self.number(index + 1, schedule.slots - 1)
        fresh = self._noise(entering, ENTER).to(self.queue.latents_BCQhw)
        prompt = prompt_of(entering)
        tail = self.additions.tail
        # A frame of another prompt does not take over the layout of the frame before it.
        if tail is not None and tail.gain and prompt == self.slot_prompts[-1]:
            renoise = self._noise(entering, RENOISE).to(self.queue.latents_BCQhw)
            fresh = tail.sample(self.queue.tail, renoise, fresh)
        leaving = self.queue.shift(fresh)
        self.slot_prompts = [*self.slot_prompts[1:], prompt]
        if self.follower is not None:
            self.follower.shift()
        return leaving if self.number(index, schedule.context_slots) >= self.first_exit else None

    def _step_noise(self, index: int) -> Tensor:
        noise = torch.zeros_like(self.queue.latents_BCQhw)
        context, warmup = self.schedule.context_slots, self.schedule.warmup_passes
        for slot in range(max(context, self.schedule.first_slot(index)), self.schedule.slots):
            # Frozen copies in front of the first clip are counted below 0; noise frames are not.
            frame = self.first_frame + warmup + self.schedule.entry(index, slot)
            noise[:, :, slot] = self._noise(frame, STEP + self.schedule.slot_levels[slot]).to(noise)
        return noise

    # -- model calls ---------------------------------------------------------------------------------------------

    def _prompts_in(self, window: Window) -> list[int]:
        return list(dict.fromkeys(self.slot_prompts[window.keep : window.end_keep]))

    def _subjects_in(self, window: Window) -> list[tuple[str, ...]]:
        """Subject of each prompt among the window's kept frames: two entries while a prompt changes."""
        return [self.prompts[prompt].subject for prompt in self._prompts_in(window)]

    def _evaluate(
        self,
        rows: Sequence[tuple[Window, int]],
        read: Callable[[Window], tuple[Tensor, Tensor]],
        *,
        tracked: bool = True,
    ) -> dict[Window, dict[int, Tensor]]:
        """Velocity of each (window, prompt), in as few model calls as fit."""
        found: dict[Window, dict[int, Tensor]] = {}
        at = 0
        while at < len(rows):
            count = self.window_batch or len(rows)
            chunk = rows[at : at + count]
            try:
                velocity = self._call(chunk, read, tracked=tracked)
            except torch.OutOfMemoryError:
                if len(chunk) == 1:
                    raise
                self.window_batch = len(chunk) // 2
                logger.warning("out of memory with %d windows a call; going on with %d", len(chunk), self.window_batch)
                continue
            for (window, prompt), value in zip(chunk, torch.split(velocity, self.shape[0]), strict=True):
                found.setdefault(window, {})[prompt] = value
            at += len(chunk)
        return found

    def _call(
        self, rows: Sequence[tuple[Window, int]], read: Callable[[Window], tuple[Tensor, Tensor]], *, tracked: bool
    ) -> Tensor:
        batch, device = self.shape[0], self.denoiser.device
        states = [read(window) for window, _ in rows]
        latents = torch.cat([x for x, _ in states]).to(device)
        timesteps = torch.stack([t for _, t in states]).repeat_interleave(batch, dim=0).to(device, torch.float32)
        text = gather_text([self.prompts[prompt].text for _, prompt in rows])
        self._count(latents)
        if self.follower is None or not tracked:
            return self.denoiser.predict(latents, timesteps, text, self.guidance_scale)
        shown = self.follower.shown([(window, self.prompts[prompt].subject) for window, prompt in rows])
        positions = [p for _, prompt in rows for p in self.prompts[prompt].positions]
        with self.follower.measure(text, positions) as share:
            velocity = self.denoiser.predict(latents, timesteps, text, self.guidance_scale, **shown)
        for (window, prompt), measured in zip(rows, torch.split(share.mean, batch), strict=True):
            self._record(window, prompt, measured)
        return velocity

    def _count(self, latents: Tensor) -> None:
        self.calls += 1
        self.frames_processed += latents.shape[0] // self.shape[0] * latents.shape[2]

    def _record(self, window: Window, prompt: int, measured: Tensor) -> None:
        assert self.follower is not None
        for slot in range(window.keep, window.end_keep):
            if self.slot_prompts[slot] == prompt:
                self.follower.tracker.record(window, measured, slot, slot + 1)

    @staticmethod
    def _merge(outputs: Mapping[int, Tensor], prompts: Sequence[int]) -> Tensor:
        """Each frame's velocity under its own prompt."""
        if len(outputs) == 1:
            return next(iter(outputs.values()))
        merged = next(iter(outputs.values())).clone()
        for frame, prompt in enumerate(prompts):
            if prompt in outputs:
                merged[:, :, frame] = outputs[prompt][:, :, frame]
        return merged

    def _guided(self, window: Window) -> tuple[Tensor, Tensor]:
        """Velocity of a window under its one prompt, and the gradient of the subject's distance to the memory:
        through the conditional pass alone (Eq. 5), the negative prompt's runs without."""
        assert self.follower is not None
        (prompt,) = self._prompts_in(window)
        latents, t = self.queue.read(window)
        timesteps = t.expand(self.shape[0], -1).to(self.denoiser.device, torch.float32)
        unconditional, conditional = split_branches(self.prompts[prompt].text)
        shown = self.follower.shown([(window, self.prompts[prompt].subject)])
        positions = self.prompts[prompt].positions
        velocity, score, measured = self.follower.score(window, latents, timesteps, conditional, positions, shown)
        self._count(latents)
        self._record(window, prompt, measured)
        if unconditional is not None:
            plain = self.denoiser.predict(latents, timesteps, unconditional, 1.0)
            velocity = classifier_free_guidance(plain, velocity, self.guidance_scale)
        return velocity, score

    @property
    def nbytes(self) -> int:
        """Bytes of the queue, the subject's masks and memory, and the bank."""
        return self.queue.nbytes + (0 if self.follower is None else self.follower.nbytes)

    # -- continuation --------------------------------------------------------------------------------------------

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next pass depends on, prompts and settings apart: tensors and JSON-able facts."""
        tensors, meta = self.queue.state_dict()
        tensors = {f"queue.{name}": value for name, value in tensors.items()}
        meta = {
            "queue": meta,
            "slot_prompts": list(self.slot_prompts),
            "first_frame": self.first_frame,
            "first_exit": self.first_exit,
            "lead": self._lead,
            "calls": self.calls,
        }
        if self.follower is not None:
            followed, meta["follower"] = self.follower.state_dict()
            tensors |= {f"follower.{name}": value for name, value in followed.items()}
        return tensors, meta

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``; register the same prompts first.

        Raises:
            InputError: the state is of another configuration.
        """
        if ("follower" in meta) != (self.follower is not None):
            raise InputError("state: saved under other additions; resume with the configuration it was saved under")
        self.queue.load_state_dict(_part(tensors, "queue."), meta["queue"])
        self.slot_prompts = list(meta["slot_prompts"])
        self.first_frame, self.first_exit = int(meta["first_frame"]), int(meta["first_exit"])
        self._lead, self.calls = int(meta["lead"]), int(meta["calls"])
        if self.follower is not None:
            self.follower.load_state_dict(_part(tensors, "follower."), meta["follower"])


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
