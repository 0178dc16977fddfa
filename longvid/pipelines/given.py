"""What a video goes on from, a picture, a clip or latents: checked, and brought to latents.

Shape letters: B batch, C channels, F latent frames, T video frames, H W pixels, h w latent size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from longvid.errors import InputError
from longvid.models.vae_stream import streaming_encoder

from .request import Request

LAYOUTS = {
    "image": "a PIL image, an array [H, W, 3] or a tensor [3, H, W] (or one for each video)",
    "video": "a list of PIL images, an array [T, H, W, 3] or a tensor [T, 3, H, W]",
}
DIMENSIONS = {"image": (3, 4), "video": (4, 5)}
OVERSHOOT = 1e-3  # of a resized picture's floats beyond their range


def initial_latents(pipe: Any, request: Request, *, image: Any, video: Any, latents: Any) -> Tensor | None:
    """Latents ``[B, C, F, h, w]``, ``B`` the request's, of what is given; None when nothing is.

    Args:
        pipe: a LongVideoPipeline.
        image, video: as in ``LAYOUTS``. Arrays are uint8 in 0..255 or floats in 0..1, tensors may also be in -1..1.
        latents: normalised, ``[1 or B, C, F, h, w]``.

    Raises:
        InputError: two of them; another type, shape, range or number than those; a clip that is not 4k+1 frames.
    """
    given = [(name, v) for name, v in (("image", image), ("video", video), ("latents", latents)) if v is not None]
    if not given:
        return None
    if len(given) > 1:
        raise InputError(f"{', '.join(name for name, _ in given)}: give one of them")
    name, value = given[0]
    if name == "latents":
        found = _checked_latents(pipe, request, value)
    else:
        pixels = _pixels(pipe, request, name, value)
        _check_count(name, len(pixels), request.batch)
        with torch.no_grad():
            found = streaming_encoder(pipe.vae).encode(pixels.to(pipe._execution_device, pipe.vae.dtype))
    return found.expand(request.batch, -1, -1, -1, -1)


def _check_count(name: str, count: int, batch: int) -> None:
    if count not in (1, batch):
        raise InputError(f"{name}: {count} given for {batch} videos; give one, or one each")


def _checked_latents(pipe: Any, request: Request, latents: Any) -> Tensor:
    factor = pipe._facts.spatial // pipe.transformer.config.patch_size[1]
    channels, size = pipe.transformer.config.in_channels, (request.height // factor, request.width // factor)
    rule = f"must be a tensor [1 or B, {channels}, F, {size[0]}, {size[1]}] of floats"
    if not isinstance(latents, Tensor):
        raise InputError(f"latents={type(latents).__name__}: {rule}")
    shape = tuple(latents.shape)
    if len(shape) != 5 or 0 in shape or (shape[1], *shape[3:]) != (channels, *size) or not latents.is_floating_point():
        raise InputError(f"latents: shape {shape}, {latents.dtype}; {rule}")
    _check_count("latents", shape[0], request.batch)
    return latents


def _pixels(pipe: Any, request: Request, name: str, value: Any) -> Tensor:
    """Float ``[B, 3, T, H, W]`` in -1..1."""
    value = _pictures(name, value)
    if not isinstance(value, (list, Image.Image)) and value.ndim not in DIMENSIONS[name]:
        raise InputError(f"{name}: shape {tuple(value.shape)}; must be {LAYOUTS[name]}")
    size = {"height": request.height, "width": request.width}
    try:
        if name == "image":
            pixels: Tensor = pipe.video_processor.preprocess(value, **size)[:, :, None]
        else:
            pixels = pipe.video_processor.preprocess_video(value, **size)
    except (ValueError, TypeError, RuntimeError, IndexError) as error:  # what diffusers makes of pictures unlike
        raise InputError(f"{name}: cannot be read as pictures ({error}); give {LAYOUTS[name]}") from error
    if pixels.ndim != 5 or pixels.shape[1] != 3:
        raise InputError(f"{name}: {pixels.shape[1]} channels; must be {LAYOUTS[name]}")
    k = pipe._facts.temporal
    if (pixels.shape[2] - 1) % k:
        low = 1 + (pixels.shape[2] - 1) // k * k
        raise InputError(f"{name}: {pixels.shape[2]} frames; must be {k}k+1; nearest {low} or {low + k}")
    return pixels


def _pictures(name: str, value: Any) -> Any:
    """PIL images in RGB, arrays and tensors as floats, lists of them one by one."""
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    if isinstance(value, (list, tuple)) and value:
        return [_pictures(name, one) for one in value]
    if not isinstance(value, (np.ndarray, Tensor)):
        raise InputError(f"{name}={type(value).__name__}: must be {LAYOUTS[name]}")
    if value.dtype in (np.uint8, torch.uint8):  # diffusers would take 1 for white, and so 255, too
        return value / np.float32(255) if isinstance(value, np.ndarray) else value.float() / 255
    floats = value.is_floating_point() if isinstance(value, Tensor) else np.issubdtype(value.dtype, np.floating)
    if not floats:
        raise InputError(f"{name}: numbers of type {value.dtype}; must be uint8 (0..255) or floats (0..1)")
    if 0 in value.shape:
        raise InputError(f"{name}: shape {tuple(value.shape)}; must be {LAYOUTS[name]}, none empty")
    least, most = float(value.min()), float(value.max())
    low = -1.0 if isinstance(value, Tensor) else 0.0
    if not (low - OVERSHOOT <= least and most <= 1 + OVERSHOOT):
        raise InputError(f"{name}: floats from {least:g} to {most:g}; must be within {low:g}..1, or uint8 in 0..255")
    return value
