"""The part of a rollout that is judged: its newest frames, made to look like a clip of their own.

Shape letters: B batch, C channels, F latent frames, h w latent size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longvid.models.vae_stream import streaming_decoder, streaming_encoder


class Clip(NamedTuple):
    """latents: [B, C, F, h, w]. counted: bool [F], the frames that enter the loss; None for all."""

    latents: Tensor
    counted: Tensor | None


def judged_clip(latents: Tensor, frames: int, frames_per_block: int, vae: Any | None) -> Clip:
    """The newest `frames` frames of a rollout [B, C, F, h, w].

    The scores were trained on clips whose first latent frame is a single picture. In a longer rollout the clip's first
    frame stands for four; so it is decoded, and its last picture is encoded anew (Self-Forcing's released code). That
    frame is not the student's any more, so its whole block is left out of the loss. vae None: the frame stays as it
    is, still without gradient and outside the loss.
    """
    total = latents.shape[2]
    if total == frames:
        return Clip(latents, None)
    before = latents[:, :, : total - frames + 1].detach()
    first = before[:, :, -1:] if vae is None else _as_picture(before, vae)
    counted = torch.arange(frames, device=latents.device) >= frames_per_block
    return Clip(torch.cat([first, latents[:, :, total - frames + 1 :]], dim=2), counted)


@torch.no_grad()
def _as_picture(latents: Tensor, vae: Any) -> Tensor:
    """The last video frame of `latents`, as the latent frame of a picture."""
    decoder = streaming_decoder(vae)
    for frame in torch.split(latents, 1, dim=2):
        video = decoder.decode(frame.to(vae.dtype))
    picture = streaming_encoder(vae).encode(video[:, :, -1:].to(vae.dtype))
    return picture.to(latents.dtype)


@torch.no_grad()
def decode_clip(latents: Tensor, vae: Any) -> Tensor:
    """Normalised latents [B, C, F, h, w] -> video float32 [B, 3, T, H, W] in [-1, 1]."""
    return streaming_decoder(vae).decode(latents.detach().to(vae.dtype))
