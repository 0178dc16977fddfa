"""What a pipeline gives: whole videos, chunks of a stream, and pixels from decoded frames.

Shape letters: B batch, C channels, F latent frames, T video frames, H W pixels, h w latent size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class LongVideoPipelineOutput(BaseOutput):
    """frames: as diffusers' video pipelines return them, one entry a video: numpy [T, H, W, 3] in [0, 1], lists of PIL
    images, tensors [T, 3, H, W], or latents [B, C, F, h, w] for output_type="latent"."""

    frames: Any


@dataclass(frozen=True, slots=True)
class VideoChunk:
    """Newly finished frames: uint8 [T, H, W, 3], the index-th block, from video frame `start_frame` on.

    stats: model_calls, frames_processed and seconds of the block.
    """

    frames: np.ndarray
    index: int
    start_frame: int
    stats: dict[str, float] = field(default_factory=dict)


def to_uint8(video: Tensor) -> np.ndarray:
    """Video [B, 3, T, H, W] in [-1, 1] -> uint8 [B, T, H, W, 3], on the CPU."""
    pixels = ((video.float() + 1.0) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).contiguous().cpu().numpy()


def callback_names(arguments: dict[str, Any]) -> dict[str, Any]:
    """diffusers' names of the callback arguments -> ours."""
    names = {"callback_on_step_end": "callback", "callback_on_step_end_tensor_inputs": "callback_inputs"}
    return {names.get(name, name): value for name, value in arguments.items()}
