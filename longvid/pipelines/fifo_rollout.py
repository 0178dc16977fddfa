"""A FIFO roll with the verbs of ``Rollout``: iterate it for finished latent frames, one at a time.

Shape letters: B batch, C channels, F latent frames, h w latent size.
"""

from __future__ import annotations

from bisect import insort_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longvid.config import to_mapping
from longvid.errors import InputError
from longvid.models.denoiser import TextContext
from longvid.models.window_denoiser import WindowDenoiser
from longvid.pipelines.diagonal import DiagonalRoll, RollPrompt
from longvid.pipelines.fifo_settings import FifoSettings
from longvid.pipelines.noise import NoiseSource
from longvid.pipelines.rollout import LatentBlock, StepHook
from longvid.pipelines.rollout_state import flat, model_settings, refuse_others
from longvid.pipelines.schedules.timeline import Timeline
from longvid.pipelines.solvers import FlowSolver
from longvid.prompts import parse_switch


class _Part(NamedTuple):
    """A prompt of the video: its number, first frame, words and encoding."""

    key: int
    frame: int
    words: str | None
    text: RollPrompt


class FifoRollout(Iterator[LatentBlock]):
    """A FIFO rollout in progress.

    The first frame comes after the first clip (``f * n`` model calls) and ``f * n - f`` passes; from then on every
    pass gives one.

    Args:
        denoiser: of the transformer.
        settings: see there.
        prompt: what the video begins with.
        text: the same, encoded.
        noise: see ``noise.py``.
        height, width: of the latents.
        frames: latent frames in all, initial ones included; None is endless. A hard cut adds the latent frames that its
            scene needs for the video to last as long; see ``Timeline``.
        encode: what turns ``set_prompt``'s text into a ``RollPrompt``.
        switches: (latent frame, words, hard cut) in order: later prompts, each from its frame on.
        initial: latents ``[B, C, F, h, w]`` to continue from; the queue is then filled with them, re-noised.
        on_step: called after each step of the first clip and after each pass; see ``DiagonalRoll``.
        video_frames: the length in video frames, in place of ``frames``.
        temporal: video frames of a latent frame, as the VAE decodes it; the first of a scene is one.

    Raises:
        InputError: a length or initial latents that cannot be.
    """

    def __init__(
        self,
        denoiser: WindowDenoiser,
        settings: FifoSettings,
        prompt: str | None,
        text: RollPrompt,
        *,
        noise: NoiseSource,
        height: int,
        width: int,
        frames: int | None = None,
        encode: Callable[[str], RollPrompt] | None = None,
        switches: Sequence[tuple[int, str, bool]] = (),
        initial: Tensor | None = None,
        on_step: StepHook | None = None,
        video_frames: int | None = None,
        temporal: int = 4,
    ) -> None:
        if frames is not None and frames < 1:
            raise InputError(f"latent frames={frames}: must be 1 or more")
        self.denoiser, self.settings, self.on_step = denoiser, settings, on_step
        self._timeline = Timeline(temporal)
        self.length = video_frames if frames is None else self._timeline.video_frame(frames)
        self.batch = text.text.batch
        self._shape = (self.batch, denoiser.channels, height, width)
        self._source, self._encode = noise, encode
        self._prompts = [_Part(0, 0, prompt, text)]
        self._keys = 1
        self._switches = deque(switches)
        self._cuts: list[int] = []
        self._next = 0
        self._given = 0
        self._initial: Tensor | None = None
        if initial is not None:
            self._initial = self._check_initial(initial)
            self._given = initial.shape[2]
        self._roll: DiagonalRoll | None = None
        self._calls_before = 0
        self._clock = perf_counter()

    def _check_initial(self, initial: Tensor) -> Tensor:
        batch, channels, height, width = self._shape
        wanted = (batch, channels, initial.shape[2], height, width)
        if tuple(initial.shape) != wanted:
            raise InputError(f"initial latents: shape {tuple(initial.shape)} must be {wanted}")
        if not bool(torch.isfinite(initial).all()):
            raise InputError("initial latents: contain NaN or infinity; encode the input again")
        if self.frames is not None and initial.shape[2] >= self.frames:
            raise InputError(
                f"initial latents: {initial.shape[2]} frames leave nothing to generate in {self.frames}; ask for more"
            )
        return initial.to(self.denoiser.device, torch.float32)

    # -- the loop ------------------------------------------------------------------------------------------------

    @property
    def frames(self) -> int | None:
        """Latent frames in all, if no further cut comes."""
        if self.length is None:
            return None
        return self._timeline.latent + self._timeline.latents_until(self.length)

    def __iter__(self) -> FifoRollout:
        return self

    @torch.no_grad()
    def __next__(self) -> LatentBlock:
        """The next finished latent frame: given ones first."""
        if self.frames is not None and self._next >= self.frames:
            raise StopIteration
        if self._initial is not None and self._next < self._given:
            return self._finish(self._initial[:, :, self._next : self._next + 1], given=True)
        if self._roll is None or self._next in self._cuts:
            self._begin_scene()
        assert self._roll is not None
        while True:
            leaving = self._roll.advance(self._prompt_of)
            if leaving is not None:
                return self._finish(leaving)

    def _begin_scene(self) -> None:
        continued = self._initial is not None and self._roll is None and self._next not in self._cuts
        self._cuts = [cut for cut in self._cuts if cut > self._next]
        if not continued:
            self._timeline = self._timeline.cut(self._next)
        self._roll = self._new_roll(continued, 0 if continued else self._next)
        if continued:
            assert self._initial is not None
            self._roll.start_from(self._initial, self._prompt_of)
        else:
            self._roll.start(self._prompt_of)

    def _new_roll(self, continued: bool, first_frame: int) -> DiagonalRoll:
        settings = self.settings
        schedule = replace(settings.schedule, init="renoise") if continued else settings.schedule
        calls = 0 if self._roll is None else self._roll.calls
        roll = DiagonalRoll(
            self.denoiser,
            schedule,
            FlowSolver(schedule=schedule, solver=settings.solver, eta=settings.eta),
            self._shape,
            noise=self._noise,
            guidance_scale=settings.guidance_scale,
            additions=settings.additions,
            window_batch=settings.window_batch,
            first_frame=first_frame,
            on_step=self.on_step,
        )
        roll.calls = calls
        for part in self._prompts:
            roll.add_prompt(part.text, part.key)
        return roll

    def _noise(self, frame: int, purpose: int) -> Tensor:
        batch, channels, height, width = self._shape
        return self._source(frame, purpose, (batch, channels, 1, height, width))[:, :, 0]

    def _finish(self, latents: Tensor, given: bool = False) -> LatentBlock:
        if not bool(torch.isfinite(latents).all()):
            raise FloatingPointError(f"latent frame {self._next}: not finite; the model or its dtype overflowed")
        now = perf_counter()
        calls = 0 if self._roll is None else self._roll.calls
        stats = {
            "model_calls": float(calls - self._calls_before),
            "frames_processed": float(self._roll.frames_processed if self._roll is not None else 0),
            "seconds": now - self._clock,
        }
        if self._roll is not None:
            self._roll.frames_processed = 0
        self._calls_before, self._clock = calls, now
        block = LatentBlock(
            self._next,
            self._next,
            latents,
            given,
            stats,
            video_frame=self._timeline.video_frame(self._next),
            new_scene=self._next == self._timeline.latent,
        )
        self._next += 1
        self._forget_prompts()
        return block

    @property
    def nbytes(self) -> int:
        """Bytes that the rollout holds between frames: the queue, and what is remembered of the subject."""
        return 0 if self._roll is None else self._roll.nbytes

    # -- prompts -------------------------------------------------------------------------------------------------

    def _part_of(self, frame: int) -> _Part:
        """The prompt that a frame of the video has: the last one that begins at or before it."""
        return next((part for part in reversed(self._prompts) if part.frame <= frame), self._prompts[0])

    def _prompt_of(self, frame: int) -> int:
        """The number of a frame's prompt, for the roll. Frames beyond a hard cut are of another roll: those that this
        one has in its queue by then keep the old scene's prompt and are dropped."""
        while self._switches and self._switches[0][0] <= frame:
            first, words, cut = self._switches.popleft()
            self._insert(first, words, self._encoded(words), cut)
        return self._part_of(min([frame, *(cut - 1 for cut in self._cuts)])).key

    def _encoded(self, words: str) -> RollPrompt:
        if self._encode is None:
            raise InputError("prompt: this rollout was made from embeddings; pass a RollPrompt")
        return self._encode(words)

    def _insert(self, frame: int, words: str | None, text: RollPrompt, cut: bool) -> None:
        own = self._prompts[0].text.text
        if text.text.batch != self.batch or text.text.branches != own.branches:
            raise InputError(f"prompt: gives a batch of {text.text.batch}, the rollout has {self.batch}")
        part = _Part(self._keys, frame, words, text)
        self._keys += 1
        insort_right(self._prompts, part, key=lambda part: part.frame)
        if cut and frame > 0:
            self._cuts.append(frame)
        if self._roll is not None:
            self._roll.add_prompt(text, part.key)

    def _forget_prompts(self) -> None:
        """Let go of prompts whose last frame has left, so that a stream with many of them does not grow."""
        while len(self._prompts) > 1 and self._prompts[1].frame <= self._next:
            if self._roll is not None and not self._roll.drop_prompt(self._prompts[0].key):
                return
            del self._prompts[0]

    @property
    def prompt(self) -> str | None:
        """Words of the frame that leaves next."""
        return self._part_of(self._next).words

    def set_prompt(
        self, prompt: str | RollPrompt | TextContext, hard_cut: bool = False, at_frame: int | None = None
    ) -> None:
        """Use another prompt.

        Args:
            prompt: one prompt as ``longvid.prompts`` reads it, without a length; or one that is encoded already (a
                bare TextContext has no subject to follow).
            hard_cut: begin a new scene: frames in the queue are dropped, and the next one leaves only after a new
                first clip and warm-up.
            at_frame: latent frame from which the prompt holds; each frame has one prompt for its whole way through
                the queue, unless it is in the queue already. None is now: all frames that have not left go on under
                the new prompt, which shows little by little.

        Raises:
            InputError: a frame that has left already, a schedule or no text at all, or words without an encoder.
        """
        frame = self._next if at_frame is None else at_frame
        if frame < self._next:
            raise InputError(f"at_frame={frame}: that frame has left; must be {self._next} or more")
        if isinstance(prompt, TextContext):
            prompt = RollPrompt(prompt)
        words = None if isinstance(prompt, RollPrompt) else parse_switch(prompt)
        text = prompt if words is None else self._encoded(words)
        if text.positions == () and self.settings.additions.follows_subject:
            raise InputError("prompt: this rollout follows a subject; pass words, or a RollPrompt with positions")
        self._insert(frame, words, text, hard_cut)
        if self._roll is not None:
            self._roll.reassign(self._prompt_of)

    # -- exact continuation --------------------------------------------------------------------------------------

    def _fingerprint(self) -> dict[str, Any]:
        """Settings by name. Not window_batch: what memory allows, and a pass that runs out of it takes less by itself;
        windows are independent, so batches of them differ in rounding alone."""
        settings = self.settings
        return {
            **flat("schedule", to_mapping(settings.schedule)),
            **flat("additions", to_mapping(settings.additions)),
            # In one piece as well: a part may be missing as a whole, and earlier versions saved no single fields.
            "schedule": repr(settings.schedule),
            "additions": repr(settings.additions),
            "solver": settings.solver,
            "eta": settings.eta,
            "guidance_scale": settings.guidance_scale,
            "shape": list(self._shape),
            "length": self.length,
            "temporal": self._timeline.temporal,
            **model_settings(self.denoiser),
        }

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a continuation needs besides the model and the settings; exact. Between frames."""
        tensors: dict[str, Tensor] = {}
        for part in self._prompts:
            tensors[f"prompt.{part.key}"] = part.text.text.embeds.detach().cpu().contiguous().clone()
        meta: dict[str, Any] = {
            "settings": self._fingerprint(),
            "next": self._next,
            "given": self._given,
            "cuts": list(self._cuts),
            "scene": [self._timeline.latent, self._timeline.video],
            "keys": self._keys,
            "switches": [list(switch) for switch in self._switches],
            "prompts": [
                {
                    "key": part.key,
                    "frame": part.frame,
                    "words": part.words,
                    "positions": [list(p) for p in part.text.positions],
                    "subject": list(part.text.subject),
                    "branches": part.text.text.branches,
                }
                for part in self._prompts
            ],
            "roll": None,
        }
        if self._initial is not None:
            tensors["initial"] = self._initial.cpu().contiguous().clone()
        if self._roll is not None:
            own, facts = self._roll.state_dict()
            meta["roll"] = {**facts, "continued": self._roll.schedule != self.settings.schedule}
            tensors |= {f"roll.{name}": value.detach().cpu().contiguous() for name, value in own.items()}
        return tensors, meta

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            InputError: names the first setting that differs.
        """
        refuse_others(self._fingerprint(), meta["settings"])
        self._prompts = []
        for facts in meta["prompts"]:
            embeds = tensors[f"prompt.{facts['key']}"]
            if facts["branches"] == 2:
                negative, positive = embeds.chunk(2)
                context = self.denoiser.encode_text(positive, negative)
            else:
                context = self.denoiser.encode_text(embeds)
            positions = tuple(tuple(p) for p in facts["positions"])
            text = RollPrompt(context, positions, tuple(facts["subject"]))
            self._prompts.append(_Part(facts["key"], facts["frame"], facts["words"], text))
        self._next, self._given, self._cuts = meta["next"], meta["given"], list(meta["cuts"])
        self._timeline = Timeline(self._timeline.temporal, *meta["scene"])
        self._keys = meta["keys"]
        self._switches = deque((frame, words, cut) for frame, words, cut in meta["switches"])
        initial = tensors.get("initial")
        self._initial = None if initial is None else initial.to(self.denoiser.device, copy=True)
        self._roll = None
        if meta["roll"] is not None:
            self._roll = self._new_roll(meta["roll"]["continued"], meta["roll"]["first_frame"])
            own = {n.removeprefix("roll."): t for n, t in tensors.items() if n.startswith("roll.")}
            self._roll.load_state_dict(own, meta["roll"])
            self._calls_before = self._roll.calls
        self._clock = perf_counter()
