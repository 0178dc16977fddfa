"""How a FIFO roll runs, built from a method and checked before any weight is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from longvid.config import MethodConfig, ScheduleConfig
from longvid.errors import InputError
from longvid.models.subject_words import check_words, words_in

from .guidance import SelfRecurrentGuidance
from .schedules.fifo import FifoSchedule, check_steps
from .solvers import FlowSolver
from .subject import SubjectAttention, check_bank
from .tail import CoherentTail

WAN_TRAIN_FRAMES = 21
"""Latent frames of the clips that Wan was trained on (81 pictures), for model folders that do not say."""


@dataclass(frozen=True, kw_only=True)
class Additions:
    """Ouroboros-Diffusion's three parts, each by itself."""

    tail: CoherentTail | None = None
    subject: SubjectAttention = field(default_factory=SubjectAttention)
    guidance: SelfRecurrentGuidance = field(default_factory=SelfRecurrentGuidance)

    @property
    def follows_subject(self) -> bool:
        """Whether the subject has to be found at all."""
        return self.subject.mode != "none" or self.guidance.strength > 0


@dataclass(frozen=True, kw_only=True)
class FifoSettings:
    """How a roll runs.

    Attributes:
        schedule: index rules of the queue.
        solver: "ab2" or "euler".
        eta: 0 deterministic, 1 ancestral (Euler only).
        guidance_scale: of classifier-free guidance.
        additions: Ouroboros-Diffusion's parts.
        window_batch: windows of a model call at most, 0 is all of a pass.
    """

    schedule: FifoSchedule
    solver: str = "ab2"
    eta: float = 0.0
    guidance_scale: float = 1.0
    additions: Additions = field(default_factory=Additions)
    window_batch: int = 0

    def __post_init__(self) -> None:
        FlowSolver(schedule=self.schedule, solver=self.solver, eta=self.eta)
        check_bank(self.additions.subject, self.schedule)


def fifo_schedule(config: ScheduleConfig) -> FifoSchedule:
    """The queue that a ScheduleConfig describes.

    Raises:
        InputError: a queue that cannot be.
    """
    if config.kind != "fifo":
        raise InputError(f"schedule.kind={config.kind!r}: must be 'fifo' here")
    if config.frames_per_block != 1:
        raise InputError(
            f"schedule.frames_per_block={config.frames_per_block}: frames leave a queue one at a time; use 1"
        )
    return FifoSchedule(
        window_frames=config.window_frames or WAN_TRAIN_FRAMES,
        num_partitions=config.num_partitions,
        lookahead=config.lookahead,
        shift=config.shift,
        context=config.context,
        init=config.init,
    )


def fifo_settings(method: MethodConfig) -> FifoSettings:
    """How a method rolls.

    Raises:
        InputError: a combination that cannot be.
    """
    config = method.schedule
    tail = None
    if config.tail_gain:
        tail = CoherentTail(
            gain=config.tail_gain, cutoff=config.tail_cutoff, retain=config.tail_retain, kind=config.tail_filter
        )
    return FifoSettings(
        schedule=fifo_schedule(config),
        solver=config.sampler,
        eta=config.eta,
        guidance_scale=config.guidance_scale,
        additions=Additions(
            tail=tail,
            subject=SubjectAttention(
                mode=config.subject_attention, sink=config.subject_sink, recent=config.subject_recent
            ),
            guidance=SelfRecurrentGuidance(
                strength=config.memory_guidance,
                decay=config.memory_decay,
                every=config.memory_every,
                form=config.memory_form,
            ),
        ),
        window_batch=config.window_batch,
    )


def partitions_for(config: ScheduleConfig, num_inference_steps: int) -> int:
    """``num_partitions`` for a number of steps.

    Raises:
        InputError: it is no multiple of the window's frames.
    """
    schedule = fifo_schedule(config)
    whole = isinstance(num_inference_steps, int) and not isinstance(num_inference_steps, bool)
    if not whole or num_inference_steps < 1 or num_inference_steps % schedule.window_frames:
        check_steps(schedule, num_inference_steps)
    return num_inference_steps // schedule.window_frames


def check_fifo(method: MethodConfig, prompts: Sequence[str]) -> None:
    """Refuse a queue that cannot be, and subject words that the prompts (of a schedule: all of them) do not have,
    whether or not an addition is on that reads them.

    Raises:
        InputError: one line.
    """
    words = method.schedule.subject_words
    fifo_settings(method)
    if not words:
        return
    for prompt in prompts:
        if not words_in(prompt, words):
            check_words(prompt, words)
    for word in words:
        check_words(" ".join(prompts), (word,))
