"""Wan's VAE under its original names, of 2.1 and 2.2, at any depth."""

import re

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import save_file

from longvid.models.checkpoints import CheckpointError, build_vae, load_vae
from longvid.models.checkpoints.vae import convert_vae_state_dict, infer_vae_config

_INNER = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
_INNER |= {"conv_shortcut": "shortcut"}
_TOP = {
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
    "encoder.conv_in": "encoder.conv1",
    "decoder.conv_in": "decoder.conv1",
    "encoder.norm_out": "encoder.head.0",
    "decoder.norm_out": "decoder.head.0",
    "encoder.conv_out": "encoder.head.2",
    "decoder.conv_out": "decoder.head.2",
}


def original_vae_name(name: str, resnets: int) -> str:
    """AutoencoderKLWan's parameter name -> Wan's, written out anew. ``resnets``: in a decoder level."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    if match := re.fullmatch(r"(\w+)\.mid_block\.resnets\.(\d)\.(\w+)", stem):
        return f"{match[1]}.middle.{int(match[2]) * 2}.{_INNER[match[3]]}.{kind}"
    if match := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(\w+)", stem):
        return f"{match[1]}.middle.1.{match[2]}.{kind}"
    if match := re.fullmatch(r"encoder\.down_blocks\.(\d+)\.(\w+)", stem):  # 2.1: flat
        return f"encoder.downsamples.{match[1]}.{_INNER.get(match[2], match[2])}.{kind}"
    if match := re.fullmatch(r"encoder\.down_blocks\.(\d+)\.(resample\.1)", stem):
        return f"encoder.downsamples.{match[1]}.{match[2]}.{kind}"
    if match := re.fullmatch(r"decoder\.up_blocks\.(\d)\.resnets\.(\d)\.(\w+)", stem):
        level, position = int(match[1]), int(match[2])
        if resnets < 0:
            return f"decoder.upsamples.{level}.upsamples.{position}.{_INNER[match[3]]}.{kind}"
        return f"decoder.upsamples.{level * (resnets + 1) + position}.{_INNER[match[3]]}.{kind}"
    if match := re.fullmatch(r"decoder\.up_blocks\.(\d)\.upsamplers\.0\.(.+)", stem):
        return f"decoder.upsamples.{int(match[1]) * (resnets + 1) + resnets}.{match[2]}.{kind}"
    # 2.2: nested; `resnets` is negative and its absolute value counts the decoder's.
    if match := re.fullmatch(r"encoder\.down_blocks\.(\d)\.resnets\.(\d)\.(\w+)", stem):
        return f"encoder.downsamples.{match[1]}.downsamples.{match[2]}.{_INNER[match[3]]}.{kind}"
    if match := re.fullmatch(r"encoder\.down_blocks\.(\d)\.downsampler\.(.+)", stem):
        return f"encoder.downsamples.{match[1]}.downsamples.{-resnets - 1}.{match[2]}.{kind}"
    if match := re.fullmatch(r"decoder\.up_blocks\.(\d)\.upsampler\.(.+)", stem):
        return f"decoder.upsamples.{match[1]}.upsamples.{-resnets}.{match[2]}.{kind}"
    raise KeyError(name)


SHAPES = {
    "released-2.1": {"base_dim": 4, "num_res_blocks": 2},
    "shallow-2.1": {"base_dim": 4, "num_res_blocks": 1},
    "deep-2.1": {"base_dim": 4, "num_res_blocks": 3, "temperal_downsample": [True, False, True]},
    "three-levels-2.1": {
        "base_dim": 4,
        "num_res_blocks": 1,
        "dim_mult": [1, 2, 2],
        "temperal_downsample": [False, True],
        "scale_factor_spatial": 4,
        "scale_factor_temporal": 2,
    },
    "released-2.2": {
        "base_dim": 4,
        "decoder_base_dim": 8,
        "num_res_blocks": 2,
        "z_dim": 48,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": [0.1] * 48,
        "latents_std": [1.5] * 48,
    },
}


def make(name: str):
    torch.manual_seed(5)
    vae = AutoencoderKLWan(**SHAPES[name]).eval()
    resnets = SHAPES[name]["num_res_blocks"] + 1
    sign = -1 if vae.config.is_residual else 1
    state = {original_vae_name(key, sign * resnets): value.detach() for key, value in vae.named_parameters()}
    assert len(state) == sum(1 for _ in vae.parameters())
    return vae, state


@pytest.mark.parametrize("name", SHAPES, ids=str)
def test_configuration_and_weights_are_recovered(name):
    vae, state = make(name)
    config = infer_vae_config(state)
    for key, value in config.items():
        wanted = vae.config[key]
        if key == "decoder_base_dim" and wanted is None:
            wanted = vae.config.base_dim
        if key == "temperal_downsample":
            wanted = wanted[: len(vae.config.dim_mult) - 1]
        if key == "scale_factor_temporal":
            wanted = 2 ** sum(config["temperal_downsample"])
        assert value == wanted, key
    ours = build_vae(state, latents_mean=vae.config.latents_mean, latents_std=vae.config.latents_std)
    for key, parameter in vae.named_parameters():
        assert torch.equal(parameter, ours.get_parameter(key)), key
    latents = torch.randn(1, vae.config.z_dim, 2, 2, 3)
    with torch.no_grad():
        assert torch.equal(ours.decode(latents).sample, vae.decode(latents).sample)


def test_released_layout_agrees_with_diffusers_conversion():
    _, state = make("released-2.1")
    theirs, ours = convert_wan_vae_to_diffusers(dict(state)), convert_vae_state_dict(state)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(("name", "mean"), [("released-2.1", -0.7571), ("released-2.2", -0.2289)], ids=str)
def test_published_statistics_are_used_when_none_are_given(name, mean, tmp_path):
    vae, state = make(name)
    torch.save(state, tmp_path / "Wan_VAE.pth")
    loaded = load_vae(tmp_path)
    assert loaded.config.latents_mean[0] == mean
    assert len(loaded.config.latents_std) == vae.config.z_dim
    assert load_vae(tmp_path / "Wan_VAE.pth", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_diffusers_folders_load(tmp_path):
    vae, _ = make("shallow-2.1")
    vae.save_pretrained(tmp_path / "vae")
    for folder in (tmp_path, tmp_path / "vae"):
        assert torch.equal(load_vae(folder).quant_conv.bias, vae.quant_conv.bias)


def test_statistics_of_an_unknown_width_must_be_given():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4, z_dim=3, num_res_blocks=1, latents_mean=[0.0] * 3, latents_std=[1.0] * 3)
    state = {original_vae_name(key, 2): value.detach() for key, value in vae.named_parameters()}
    with pytest.raises(CheckpointError, match=r"3 latent channels.*known here for 16 and 48"):
        build_vae(state)
    with pytest.raises(CheckpointError, match="have 2 and 3 entries"):
        build_vae(state, latents_mean=[0, 0], latents_std=[1, 1, 1])
    assert build_vae(state, latents_mean=[0, 0, 0], latents_std=[1, 1, 1]).config.latents_std == [1, 1, 1]


def test_incomplete_and_wrong_files_are_refused(tmp_path):
    _, state = make("released-2.1")
    broken = dict(state)
    del broken["decoder.upsamples.5.residual.2.bias"]
    broken["decoder.extra.weight"] = torch.zeros(1)
    torch.save(broken, tmp_path / "vae.pth")
    with pytest.raises(
        CheckpointError,
        match=r"1 missing: decoder\.up_blocks\.1\.resnets\.1\.conv1\.bias; 1 unexpected: decoder\.extra\.weight",
    ):
        load_vae(tmp_path / "vae.pth")
    del broken["encoder.conv1.weight"]
    with pytest.raises(CheckpointError, match=r"encoder\.conv1\.weight is missing"):
        build_vae(broken)
    save_file({"a": torch.zeros(1)}, tmp_path / "vae.pth")
    with pytest.raises(CheckpointError, match="not an original Wan VAE"):
        load_vae(tmp_path / "vae.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="0 VAE files"):
        load_vae(tmp_path / "empty")
