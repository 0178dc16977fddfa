"""Tiny checkpoints in every layout, written from one random diffusers model."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

# diffusers name -> original name, written out anew so that the conversion under test is checked against something else.
_TOP = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}
_INNER = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}


def original_name(name: str) -> str:
    """WanTransformer3DModel's parameter name -> Wan's."""
    if name == "scale_shift_table":
        return "head.modulation"
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    if not name.startswith("blocks."):
        return name
    _, block, rest = name.split(".", 2)
    if rest == "scale_shift_table":
        return f"blocks.{block}.modulation"
    if match := re.fullmatch(r"attn([12])\.(.+)\.(weight|bias)", rest):
        attention = {"1": "self_attn", "2": "cross_attn"}[match[1]]
        return f"blocks.{block}.{attention}.{_INNER[match[2]]}.{match[3]}"
    if match := re.fullmatch(r"norm2\.(weight|bias)", rest):
        return f"blocks.{block}.norm3.{match[1]}"
    if match := re.fullmatch(r"ffn\.net\.(0\.proj|2)\.(weight|bias)", rest):
        return f"blocks.{block}.ffn.{match[1][0]}.{match[2]}"
    raise KeyError(name)


@pytest.fixture(scope="session")
def tiny() -> WanTransformer3DModel:
    """One head of 128 channels, as the rule for files without a configuration expects."""
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=128,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    ).eval()


@pytest.fixture(scope="session")
def weights(tiny) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in tiny.named_parameters()}


@pytest.fixture
def original(weights) -> dict[str, torch.Tensor]:
    """Original Wan names, bare; a fresh dictionary."""
    return {original_name(name): tensor for name, tensor in weights.items()}


@pytest.fixture(scope="session")
def original_config() -> dict:
    """The config.json that lies beside original Wan weights."""
    return {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "model_type": "t2v",
        "dim": 128,
        "num_heads": 1,
        "num_layers": 2,
        "ffn_dim": 32,
        "freq_dim": 16,
        "text_dim": 8,
        "in_dim": 4,
        "out_dim": 4,
        "text_len": 512,
        "eps": 1e-6,
    }


@pytest.fixture(scope="session")
def same_model(tiny) -> Callable[[WanTransformer3DModel], bool]:
    """Whether a model gives tiny's output, bit for bit."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 4, 2, 4, 6, generator=generator)
    text = torch.randn(1, 5, 8, generator=generator)
    time = torch.tensor([500.0])
    with torch.no_grad():
        expected = tiny(x, time, text).sample

    def check(model: WanTransformer3DModel) -> bool:
        with torch.no_grad():
            return torch.equal(model(x, time, text).sample, expected)

    return check


@pytest.fixture
def wan_folder(tmp_path, original, original_config) -> Path:
    """An original Wan folder: the transformer and its config.json."""
    from safetensors.torch import save_file

    folder = tmp_path / "Wan2.1-T2V"
    folder.mkdir()
    save_file(original, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(original_config))
    return folder
