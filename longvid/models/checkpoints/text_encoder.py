"""Wan's umT5 encoder (``models_t5_umt5-xxl-enc-bf16.pth``) -> transformers' UMT5EncoderModel.

diffusers has no converter for it. The names below are those of Wan's T5Encoder and of UMT5EncoderModel; the arithmetic
is the same (pre-norm, no attention scale, a relative position table in every layer, gated tanh GELU).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from longvid.models.checkpoints.files import read
from longvid.models.checkpoints.report import CheckpointError, compare_keys

__all__ = ["build_text_encoder", "convert_text_encoder_names", "infer_text_encoder_config", "load_text_encoder"]

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_LAYERS = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}
_TOP = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}


def convert_text_encoder_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Wan's T5 encoder; names that are not its own are kept, for the report to name them."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if (match := _BLOCK.fullmatch(name)) and match[2] in _LAYERS:
            renamed[f"encoder.block.{match[1]}.{_LAYERS[match[2]]}"] = tensor
        else:
            renamed[_TOP.get(name, name)] = tensor
    return renamed


def infer_text_encoder_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of UMT5Config from the shapes (original names).

    Raises:
        CheckpointError: not Wan's T5 encoder, or without the tensors that decide its shape.
    """
    try:
        vocabulary, width = state["token_embedding.weight"].shape
        inner = state["blocks.0.attn.q.weight"].shape[0]
        buckets, heads = state["blocks.0.pos_embedding.embedding.weight"].shape
        hidden = state["blocks.0.ffn.fc1.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"not Wan's T5 encoder: {error.args[0]} is missing") from None
    layers = 1 + max(int(match[1]) for name in state if (match := _BLOCK.fullmatch(name)))
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": True,
        "is_encoder_decoder": False,
        "use_cache": False,
    }


def build_text_encoder(state: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> UMT5EncoderModel:
    """A UMT5EncoderModel in eval mode from the original state dict.

    Args:
        state: original names.
        dtype: of the weights; None keeps the file's.

    Raises:
        CheckpointError: keys are missing, unexpected or of the wrong shape.
    """
    config = UMT5Config(**infer_text_encoder_config(state))
    with init_empty_weights(include_buffers=False):
        model = UMT5EncoderModel(config)
    converted = convert_text_encoder_names(state)
    # transformers names the embedding twice; the file has it once, and tie_weights() makes them one again.
    tied = set(model._tied_weights_keys)
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False) if name not in tied}
    report = compare_keys({name: tuple(tensor.shape) for name, tensor in converted.items()}, wanted)
    if not report.ok:
        raise CheckpointError(f"Wan's T5 encoder: {report}")
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in converted.items()}, strict=False, assign=True)
    model.tie_weights()
    model.train(False)
    return model


def load_text_encoder(path: str | Path, *, dtype: torch.dtype | None = None) -> UMT5EncoderModel:
    """Wan's T5 encoder from its ``.pth``, or from the original Wan folder that holds it.

    Raises:
        CheckpointError: none there, or what is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if re.search(r"t5.*\.(pth|pt|safetensors)$", file.name, re.I)]
        if len(files) != 1:
            raise CheckpointError(f"{path}: {len(files)} T5 files in it; give the path of one")
        path = files[0]
    content = read(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    try:
        return build_text_encoder(content, dtype=dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
