"""FIFO-Diffusion (arXiv 2405.11473) on a flow-matching transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor

from longvid.config import MethodConfig, ScheduleConfig
from longvid.errors import InputError
from longvid.models.subject_words import check_words, find_subject, words_in
from longvid.models.taps import last_third
from longvid.models.window_denoiser import WindowDenoiser
from longvid.presets import merge, resolve_method

from .base import LongVideoPipeline
from .diagonal import Additions, RollPrompt
from .fifo_rollout import FifoRollout, FifoSettings
from .guidance import SelfRecurrentGuidance
from .noise import SeededNoise
from .request import Request, resolve
from .rollout import StepHook
from .schedules.fifo import FifoSchedule, check_steps
from .subject import SubjectAttention
from .tail import CoherentTail

WAN_TRAIN_FRAMES = 21
"""Latent frames of the clips that Wan was trained on (81 pictures), for model folders that do not say."""


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
    if method.attention.kind != "dense":
        raise InputError(
            f"attention={method.attention.kind!r}: the windows of a queue run dense attention; leave it out"
        )
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


class FifoPipeline(LongVideoPipeline):
    """FIFO-Diffusion: long video from a bidirectional short-clip model, without training.

    Takes any text-to-video WanTransformer3DModel. Everything else that makes it this method is in configs/fifo.yaml.
    """

    method_name = "fifo"
    _windowed: WindowDenoiser | None = None

    def check_inputs(self, prompt: str | Sequence[str], **arguments: Any) -> Request:
        """As the base class; ``num_inference_steps`` must be a multiple of the window's frames and sets the number of
        partitions. Subject words must be in the prompt."""
        method, overrides = arguments.pop("method", None) or self._method, self._overrides
        defaults = self._facts.defaults if isinstance(method, str) else None
        config = resolve_method(method, model_defaults=defaults, overrides=overrides).schedule
        if config.kind != "fifo":
            return super().check_inputs(prompt, method=method, **arguments)
        steps = arguments.pop("num_inference_steps", None)
        if steps is not None:
            schedule = fifo_schedule(config)
            whole = isinstance(steps, int) and not isinstance(steps, bool)
            if not whole or steps < 1 or steps % schedule.window_frames:
                check_steps(schedule, steps)
            else:
                partitions = {"schedule": {"num_partitions": steps // schedule.window_frames}}
                overrides = merge(overrides or {}, partitions)
        request = resolve(method, self._facts, prompt, overrides=overrides, **arguments)
        settings = fifo_settings(request.method)
        if settings.additions.follows_subject:
            spoken = [*request.prompts, *(switch.text for switch in request.switches)]
            _check_subject_words(spoken, request.method.schedule.subject_words)
        return request

    def _make_rollout(self, request: Request, initial: Tensor | None, on_step: StepHook | None, attention: str) -> Any:
        if request.method.schedule.kind != "fifo":
            return super()._make_rollout(request, initial, on_step, attention)
        settings = fifo_settings(request.method)
        if request.method.attention.backend != "auto":
            self.transformer.set_attention_backend(request.method.attention.backend)
        factor = self._facts.spatial // self.transformer.config.patch_size[1]

        def encode(texts: Sequence[str]) -> RollPrompt:
            return self._roll_prompt(texts, request, settings)

        return FifoRollout(
            self._window_denoiser(settings),
            settings,
            request.prompts[0],
            encode(request.prompts),
            noise=SeededNoise(request.seeds),
            height=request.height // factor,
            width=request.width // factor,
            frames=request.latent_frames,
            encode=lambda text: encode([text] * request.batch),
            switches=[(switch.frame, switch.text, switch.cut) for switch in request.switches],
            initial=initial,
            on_step=on_step,
        )

    def _window_denoiser(self, settings: FifoSettings) -> WindowDenoiser:
        layers: tuple[int, ...] = ()
        if settings.additions.subject.mode != "none":
            count = len(self.transformer.blocks)
            layers = settings.additions.subject.layers or last_third(count)
        known = self._windowed
        if known is None or known.transformer is not self.transformer or known.subject_layers != layers:
            self._windowed = known = WindowDenoiser(self.transformer, layers, device=self._execution_device)
        known.device = self._execution_device
        return known

    def _roll_prompt(self, texts: Sequence[str], request: Request, settings: FifoSettings) -> RollPrompt:
        context = self._context(texts, request)
        if not settings.additions.follows_subject:
            return RollPrompt(context)
        wanted = request.method.schedule.subject_words
        found = [
            find_subject(
                text if self.tokenizer is None else prompt_clean(text),  # type: ignore[no-untyped-call]
                wanted,
                tokenizer=self.tokenizer,
                text_encoder=self.text_encoder,
            )
            for text in texts
        ]
        return RollPrompt(context, tuple(f.positions for f in found), found[0].words)


def _check_subject_words(prompts: Sequence[str], words: Sequence[str]) -> None:
    for prompt in prompts:
        if words and not words_in(prompt, words):
            check_words(prompt, tuple(words))
    spoken = " ".join(prompts)
    for word in words:
        check_words(spoken, (word,))
