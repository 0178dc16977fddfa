"""FIFO-Diffusion (arXiv 2405.11473) on a flow-matching transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor

from longvid.config import AttentionConfig
from longvid.models.attend import attend_for, set_dense_backend
from longvid.models.subject_attention import tell_masked
from longvid.models.subject_words import find_subject
from longvid.models.taps import last_third
from longvid.models.window_denoiser import WindowDenoiser

from .base import LongVideoPipeline
from .diagonal import RollPrompt
from .fifo_rollout import FifoRollout
from .fifo_settings import FifoSettings, fifo_settings
from .noise import SeededNoise
from .request import Request
from .rollout import StepHook


class FifoPipeline(LongVideoPipeline):
    """FIFO-Diffusion: long video from a bidirectional short-clip model, without training.

    Takes any text-to-video WanTransformer3DModel. Everything else that makes it this method is in configs/fifo.yaml.
    """

    method_name = "fifo"
    schedule_kinds = ("chunk", "rolling", "fifo")

    def _make_rollout(self, request: Request, initial: Tensor | None, on_step: StepHook | None, attention: str) -> Any:
        if request.method.schedule.kind != "fifo":
            return super()._make_rollout(request, initial, on_step, attention)
        settings = fifo_settings(request.method)
        set_dense_backend(self.transformer, request.method.attention, self._execution_device)
        denoiser = self._window_denoiser(settings, request.method.attention)
        factor = self._facts.spatial // self.transformer.config.patch_size[1]

        def encode(texts: Sequence[str]) -> RollPrompt:
            return self._roll_prompt(texts, request, settings)

        return FifoRollout(
            denoiser,
            settings,
            request.prompts[0],
            encode(request.prompts),
            noise=SeededNoise(request.seeds),
            height=request.height // factor,
            width=request.width // factor,
            video_frames=request.frames,
            temporal=self._facts.temporal,
            encode=lambda text: encode([text] * request.batch),
            switches=[(switch.frame, switch.text, switch.cut) for switch in request.switches],
            initial=initial,
            on_step=on_step,
        )

    def _window_denoiser(self, settings: FifoSettings, attention: AttentionConfig) -> WindowDenoiser:
        """One for each rollout, whose attention is its own."""
        layers: tuple[int, ...] = ()
        if settings.additions.subject.mode != "none":
            count = len(self.transformer.blocks)
            layers = settings.additions.subject.layers or last_third(count)
        denoiser = WindowDenoiser(self.transformer, layers, device=self._execution_device)
        denoiser.attend = attend_for(attention)
        if layers and denoiser.attend is None:
            tell_masked(self.transformer, layers, attention)
        return denoiser

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
