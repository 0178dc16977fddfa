"""Prompts to embeddings, for UMT5 (Wan) and for the embedded model's caption encoder."""

from __future__ import annotations

import logging
from typing import Any

import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from torch import Tensor

from longvid.errors import InputError

logger = logging.getLogger("longvid")

WAN_TEXT_TOKENS = 512
"""Wan's text length: shorter prompts are padded with zero rows, which the model attends to."""


@torch.no_grad()
def embed_prompts(pipe: Any, prompts: list[str], quiet: bool = False) -> Tensor:
    """[B, L_text, text_dim]. A caption encoder's unknown words are reported by name, unless `quiet`."""
    encoder = pipe.text_encoder
    if encoder is None:
        raise InputError(
            "prompt: this pipeline has no text encoder; load one, or drive longvid's Rollout with embeddings"
        )
    if callable(getattr(encoder, "report", None)):
        if not quiet:
            for prompt in dict.fromkeys(prompts):
                if message := encoder.report(prompt).message():
                    logger.warning("prompt %r: %s", prompt if len(prompt) < 80 else prompt[:77] + "...", message)
        captions: Tensor = encoder.encode(prompts)
        return captions
    # The stock pipeline's own encoding: cleaned, padded to a fixed length, rows past the prompt set to zero.
    embeds: Tensor = WanPipeline._get_t5_prompt_embeds(
        pipe, prompt=prompts, max_sequence_length=WAN_TEXT_TOKENS, device=pipe._execution_device
    )
    return embeds
