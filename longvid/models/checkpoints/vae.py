"""Wan's VAE under its original names -> diffusers' AutoencoderKLWan.

diffusers converts the encoder, middle, heads and quantisation convolutions of Wan 2.1 (convert_wan_vae_to_diffusers).
Its table for the decoder is written for the released depth only, and it does not know Wan 2.2's nested names
(``decoder.upsamples.N.upsamples.M``); those two are renamed here, by position.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from longvid.models.checkpoints.report import CheckpointError, compare_keys

__all__ = ["build_vae", "convert_vae_state_dict", "infer_vae_config", "is_original_vae"]

_INNER = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_FLAT_UP = re.compile(r"decoder\.upsamples\.(\d+)\.(residual\.\d|shortcut|resample\.1|time_conv)\.(weight|bias|gamma)")
_NESTED = re.compile(
    r"(encoder\.down|decoder\.up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\."
    r"(residual\.\d|shortcut|resample\.1|time_conv)\.(weight|bias|gamma)"
)


def is_original_vae(keys: Mapping[str, Any]) -> bool:
    """Whether a state dict names a Wan VAE the original way."""
    return "decoder.middle.0.residual.0.gamma" in keys and "conv2.weight" in keys


def infer_vae_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Configuration of AutoencoderKLWan from the shapes of an original state dict.

    ``latents_mean`` and ``latents_std`` are not in the file: they are left to AutoencoderKLWan's defaults (Wan 2.1's)
    for 16 latent channels, and must be given by the caller for any other number.

    Raises:
        CheckpointError: the file is not a Wan VAE, or lacks layers that decide its shape.
    """
    if not is_original_vae(state):
        raise CheckpointError("not an original Wan VAE: decoder.middle.0.residual.0.gamma or conv2.weight is missing")
    nested = any(_NESTED.fullmatch(key) for key in state)
    try:
        levels = _nested_levels(state) if nested else _flat_levels(state)
        base = state["encoder.conv1.weight"].shape[0]
        in_channels = state["encoder.conv1.weight"].shape[1]
        out_channels = state["decoder.head.2.weight"].shape[0]
        widths = [width for width, _, _ in levels]
        decoder_width = state["decoder.head.0.gamma"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"incomplete Wan VAE: {error.args[0]} is missing") from None
    if any(width % base for width in widths):
        raise CheckpointError(f"Wan VAE: widths {widths} are not multiples of the first convolution's {base}")
    dim_mult = [width // base for width in widths]
    patch = math.isqrt(in_channels // 3)
    temporal = [bool(flag) for _, _, flag in levels[:-1]]
    return {
        "base_dim": base,
        "decoder_base_dim": decoder_width // dim_mult[0],
        "z_dim": state["conv2.weight"].shape[0],
        "dim_mult": dim_mult,
        "num_res_blocks": levels[0][1],
        "attn_scales": [],
        "temperal_downsample": temporal,
        "is_residual": nested,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "patch_size": patch if patch > 1 else None,
        "scale_factor_temporal": 2 ** sum(temporal),
        "scale_factor_spatial": 2 ** (len(levels) - 1) * patch,
    }


def _flat_levels(state: Mapping[str, Tensor]) -> list[tuple[int, int, bool]]:
    """(width, residual blocks, halves time) of each encoder level, in Wan 2.1's flat sequence."""
    prefix = "encoder.downsamples."
    indices = sorted({int(key[len(prefix) :].split(".")[0]) for key in state if key.startswith(prefix)})
    levels, width, blocks = [], 0, 0
    for index in indices:
        if f"{prefix}{index}.resample.1.weight" in state:
            levels.append((width, blocks, f"{prefix}{index}.time_conv.weight" in state))
            blocks = 0
        elif f"{prefix}{index}.to_qkv.weight" in state:
            raise CheckpointError(f"Wan VAE: {prefix}{index} is an attention block between levels; not supported")
        else:
            width = state[f"{prefix}{index}.residual.6.weight"].shape[0]
            blocks += 1
    return [*levels, (width, blocks, False)]


def _nested_levels(state: Mapping[str, Tensor]) -> list[tuple[int, int, bool]]:
    """As :func:`_flat_levels`, for Wan 2.2: one numbered group a level."""
    found: dict[int, tuple[int, int, bool]] = {}
    for key in state:
        match = _NESTED.fullmatch(key)
        if match is None or match[1] != "encoder.down":
            continue
        level, inner, tensor = int(match[2]), match[4], state[key]
        width, blocks, temporal = found.get(level, (0, 0, False))
        if inner == "residual.6" and match[5] == "weight":
            width, blocks = tensor.shape[0], blocks + 1
        found[level] = (width, blocks, temporal or inner == "time_conv")
    return [found[level] for level in sorted(found)]


def convert_vae_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an original Wan VAE state dict to AutoencoderKLWan's names; the tensors are untouched."""
    resnets = infer_vae_config(state)["num_res_blocks"] + 1
    renamed: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if match := _NESTED.fullmatch(key):
            side, level, position, inner, kind = match.groups()
            name = f"{side}_blocks.{level}"
            if inner in _INNER:
                name += f".resnets.{position}.{_INNER[inner]}"
            else:
                name += f".{'downsampler' if side == 'encoder.down' else 'upsampler'}.{inner}"
            renamed[f"{name}.{kind}"] = tensor
        elif match := _FLAT_UP.fullmatch(key):
            index, inner, kind = int(match[1]), match[2], match[3]
            # Each level is a run of residual blocks and one upsampler; the last level has no upsampler.
            level, position = divmod(index, resnets + 1)
            name = f"decoder.up_blocks.{level}"
            name += f".resnets.{position}.{_INNER[inner]}" if inner in _INNER else f".upsamplers.0.{inner}"
            renamed[f"{name}.{kind}"] = tensor
        else:
            rest[key] = tensor
    rest = convert_wan_vae_to_diffusers(rest)  # type: ignore[no-untyped-call]
    return renamed | rest


def build_vae(
    state: Mapping[str, Tensor],
    *,
    latents_mean: Sequence[float] | None = None,
    latents_std: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
) -> AutoencoderKLWan:
    """An AutoencoderKLWan from an original Wan VAE state dict, in eval mode.

    Args:
        state: original names.
        latents_mean: mean of each latent channel; Wan 2.1's published ones when not given and there are 16 channels.
        latents_std: standard deviation of each latent channel, likewise.
        dtype: of the weights; None keeps the file's.

    Raises:
        CheckpointError: keys are missing, unexpected or of the wrong shape; or the statistics are needed and not given.
    """
    config = infer_vae_config(state)
    z_dim = config["z_dim"]
    if latents_mean is None or latents_std is None:
        published = len(inspect.signature(AutoencoderKLWan.__init__).parameters["latents_mean"].default)
        if z_dim != published:
            raise CheckpointError(
                f"Wan VAE with {z_dim} latent channels: latents_mean and latents_std are not in the file and are known "
                f"here for {published} channels only; give both, or use the diffusers folder of this VAE"
            )
    else:
        if not len(latents_mean) == len(latents_std) == z_dim:
            raise CheckpointError(
                f"latents_mean and latents_std have {len(latents_mean)} and {len(latents_std)} entries; "
                f"this VAE has {z_dim} latent channels"
            )
        config |= {"latents_mean": list(latents_mean), "latents_std": list(latents_std)}
    converted = convert_vae_state_dict(state)
    with torch.device("meta"):
        vae: AutoencoderKLWan = AutoencoderKLWan.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    report = compare_keys({name: tuple(tensor.shape) for name, tensor in converted.items()}, shapes)
    if not report.ok:
        raise CheckpointError(f"Wan VAE: {report}")
    vae.load_state_dict({name: tensor.to(dtype) for name, tensor in converted.items()}, strict=True, assign=True)
    vae.requires_grad_(False).eval()
    return vae
