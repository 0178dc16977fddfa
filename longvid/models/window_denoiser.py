"""Windows of a FIFO queue through a Wan transformer: bidirectional, one timestep a frame, many windows a call.

Shape letters: B samples, W windows of a call, C channels, F latent frames, h w latent size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from longvid.models.denoiser import Denoiser, TextContext
from longvid.models.subject_attention import SubjectAttentionProcessor, SubjectCall, SubjectTokens


class WindowDenoiser(Denoiser):
    """A Denoiser without a cache, whose layers can be shown the subject once more.

    Args:
        transformer: stock WanTransformer3DModel.
        subject_layers: self-attention layers that obey a subject (none: the plain model).
        device: where calls run, when that is not where the weights lie.
    """

    def __init__(
        self,
        transformer: Any,
        subject_layers: Sequence[int] = (),
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(transformer, device=device)
        self.subject_layers = tuple(subject_layers)
        for layer in self.subject_layers:
            attention = transformer.blocks[layer].attn1
            if not isinstance(attention.processor, SubjectAttentionProcessor):
                processor = SubjectAttentionProcessor(layer)
                processor._attention_backend = attention.processor._attention_backend
                attention.set_processor(processor)

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: TextContext,
        guidance_scale: float,
        *,
        boost: tuple[Tensor, Tensor] | None = None,
        appended: Mapping[int, SubjectTokens] | None = None,
        limit: int = 1024,
    ) -> Tensor:
        """Velocity ``[W*B, C, F, h, w]``, float32, with classifier-free guidance when ``text`` has two branches.

        Args:
            latents: ``[W*B, C, F, h, w]``.
            timesteps: ``[W*B, F]``, each frame's own.
            text: batch ``W*B``; see ``gather_text``.
            boost: subject mask and scores over the windows' own tokens, ``[W*B, L]`` each.
            appended: tokens from outside, by layer.
        """
        rotary = self.rotary(*latents.shape[-2:])
        cos, sin = rotary.at(range(latents.shape[2]))
        mask, scores = boost if boost is not None else (None, None)
        call = SubjectCall(
            latents.shape[0] * text.branches,
            cos,
            sin,
            tokens_per_frame=rotary.tokens_per_frame,
            attend=self.attend,
            conditional=latents.shape[0],
            boost_mask=mask,
            boost_scores=scores,
            appended=appended or {},
            limit=limit,
        )
        return self._run(latents, timesteps, text, call, guidance_scale)

    @contextmanager
    def text_at_hand(self, text: TextContext) -> Iterator[None]:
        """Keep a prompt on the cross-attention layers: gradient checkpointing runs blocks again after the call."""
        processors = self._text
        for processor, layer in zip(processors, text.layers, strict=True):
            processor.text = layer
        try:
            yield
        finally:
            for processor in processors:
                processor.text = None


def gather_text(contexts: Sequence[TextContext]) -> TextContext:
    """One context whose rows are those of several, in order, branch by branch: for windows of unlike prompts."""
    first = contexts[0]
    if len(contexts) == 1:
        return first

    def join(tensors: Sequence[Tensor]) -> Tensor:
        halves = [tensor.chunk(first.branches) for tensor in tensors]
        return torch.cat([torch.cat(branch) for branch in zip(*halves, strict=True)])

    layers = [
        (join([c.layers[i][0] for c in contexts]), join([c.layers[i][1] for c in contexts]))
        for i in range(len(first.layers))
    ]
    return TextContext(layers, join([c.embeds for c in contexts]), branches=first.branches)


def split_branches(text: TextContext) -> tuple[TextContext | None, TextContext]:
    """The negative prompt's rows (None without guidance) and the prompt's."""
    if text.branches == 1:
        return None, text
    halves = [[tensor.chunk(2) for tensor in pair] for pair in text.layers]
    embeds = text.embeds.chunk(2)
    negative, positive = (
        TextContext([(key[half], value[half]) for key, value in halves], embeds[half]) for half in (0, 1)
    )
    return negative, positive
