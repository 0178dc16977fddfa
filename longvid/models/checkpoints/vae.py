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
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from longvid.models.checkpoints.files import read, read_json
from longvid.models.checkpoints.report import CheckpointError, compare_keys

__all__ = ["build_vae", "convert_vae_state_dict", "infer_vae_config", "is_original_vae", "load_vae"]

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


# Mean and standard deviation of each latent channel, as published with the VAEs; they are not in the weight files.
# fmt: off
_WAN22_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
_WAN22_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on
_WAN21 = inspect.signature(AutoencoderKLWan.__init__).parameters
_STATISTICS: dict[int, tuple[Sequence[float], Sequence[float]]] = {
    len(_WAN21["latents_mean"].default): (_WAN21["latents_mean"].default, _WAN21["latents_std"].default),
    len(_WAN22_MEAN): (_WAN22_MEAN, _WAN22_STD),
}


def is_original_vae(keys: Mapping[str, Any]) -> bool:
    """Whether a state dict names a Wan VAE the original way."""
    return "decoder.middle.0.residual.0.gamma" in keys and "conv2.weight" in keys


def infer_vae_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Configuration of AutoencoderKLWan from the shapes of an original state dict.

    ``latents_mean`` and ``latents_std`` are not in the file and not in what is returned.

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
        latents_mean: mean of each latent channel; when not given, the published one of Wan 2.1 (16) or Wan 2.2 (48).
        latents_std: standard deviation of each latent channel, likewise.
        dtype: of the weights; None keeps the file's.

    Raises:
        CheckpointError: keys are missing, unexpected or of the wrong shape; or the statistics are needed and not given.
    """
    config = infer_vae_config(state)
    z_dim = config["z_dim"]
    if latents_mean is None or latents_std is None:
        if z_dim not in _STATISTICS:
            raise CheckpointError(
                f"Wan VAE with {z_dim} latent channels: latents_mean and latents_std are not in the file and are known "
                f"here for {' and '.join(map(str, _STATISTICS))} channels; give both, or the VAE's diffusers folder"
            )
        latents_mean, latents_std = _STATISTICS[z_dim]
    if not len(latents_mean) == len(latents_std) == z_dim:
        raise CheckpointError(
            f"latents_mean and latents_std have {len(latents_mean)} and {len(latents_std)} entries; "
            f"this VAE has {z_dim} latent channels"
        )
    config |= {"latents_mean": list(latents_mean), "latents_std": list(latents_std)}
    converted = convert_vae_state_dict(state)
    with init_empty_weights(include_buffers=False):
        vae: AutoencoderKLWan = AutoencoderKLWan.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    report = compare_keys({name: tuple(tensor.shape) for name, tensor in converted.items()}, shapes)
    if not report.ok:
        raise CheckpointError(f"Wan VAE: {report}")
    vae.load_state_dict({name: tensor.to(dtype) for name, tensor in converted.items()}, strict=True, assign=True)
    vae.eval()
    return vae


def load_vae(path: str | Path, *, dtype: torch.dtype | None = None) -> AutoencoderKLWan:
    """Wan's VAE from ``Wan2.1_VAE.pth`` or ``Wan2.2_VAE.pth`` (original names), or from a diffusers folder.

    Args:
        path: the file; a diffusers VAE folder; or a pipeline's folder (its ``vae/``) or an original Wan folder
            (its one ``*VAE*`` file).
        dtype: of the weights; None keeps the file's.

    Raises:
        CheckpointError: none there, or what is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        folder = path / "vae" if (path / "vae").is_dir() else path
        if (folder / "config.json").is_file() and "z_dim" in read_json(folder / "config.json"):
            vae: AutoencoderKLWan = AutoencoderKLWan.from_pretrained(folder, torch_dtype=dtype or "auto")
            return vae
        files = [file for file in sorted(path.iterdir()) if re.search(r"vae.*\.(pth|pt|safetensors)$", file.name, re.I)]
        if len(files) != 1:
            raise CheckpointError(f"{path}: {len(files)} VAE files in it; give the path of one")
        path = files[0]
    content = read(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    state = {name.removeprefix("model."): tensor for name, tensor in content.items()}
    try:
        return build_vae(state, dtype=dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
