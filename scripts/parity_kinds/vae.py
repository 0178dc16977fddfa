"""Parity case kind ``vae_stream``: a Wan VAE under its original names, decoded and encoded piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from longvid.models.checkpoints.vae import build_vae
from longvid.models.vae_stream import streaming_decoder, streaming_encoder


def run_vae_stream(case: dict[str, Any], directory: Path) -> float:
    """Largest absolute difference over the case's pixels and latents.

    The case's chunk length and single latent frames are both decoded: every split must give the recorded video.
    """
    tensors = load_file(directory / case["file"])
    weights = {name.removeprefix("w."): tensor for name, tensor in tensors.items() if name.startswith("w.")}
    vae = build_vae(weights, latents_mean=tensors["mean"].tolist(), latents_std=tensors["std"].tolist())
    errors = []

    z_BCFhw = tensors["z"].transpose(1, 2)
    recorded = [tensors[name].transpose(1, 2) for name in ("pixels_full", "pixels_chunked") if name in tensors]
    for chunk in {case.get("chunk", 1), 1, z_BCFhw.shape[2]}:
        for pixels in recorded:
            # Some recordings hold the network's raw output, some the video cut to [-1, 1].
            errors.append(_difference(_decode(vae, z_BCFhw, chunk, clamp=bool(pixels.abs().max() <= 1)), pixels))

    if "encode_in" in tensors:
        video, encoder = tensors["encode_in"].transpose(1, 2), streaming_encoder(vae)
        pieces = [encoder.encode(video[:, :, :1])]
        if video.shape[2] > 1:
            pieces.append(encoder.encode(video[:, :, 1:]))
        errors.append(_difference(torch.cat(pieces, dim=2), tensors["encode_mu"].transpose(1, 2)))
    return max(errors)


def _decode(vae: Any, z_BCFhw: Tensor, chunk: int, *, clamp: bool) -> Tensor:
    decoder = streaming_decoder(vae)
    return torch.cat([decoder.decode(piece, clamp=clamp) for piece in z_BCFhw.split(chunk, dim=2)], dim=2)


def _difference(ours: Tensor, recorded: Tensor) -> float:
    if ours.shape != recorded.shape or not ours.isfinite().all():
        return float("inf")
    return (ours - recorded).abs().max().item()


RUNNERS = {"vae_stream": run_vae_stream}
