"""Which Wan transformer a state dict is: its configuration from the shapes of its tensors.

Everything but the number of heads is visible in the shapes. Heads come from a configuration where there is one, else
from the rule that every released Wan follows: 128 channels a head.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor

from longvid.models.checkpoints.report import CheckpointError

__all__ = ["WAN_HEAD_DIM", "describe", "infer_transformer_config", "normalise_config", "require_wan_transformer"]

#: Channels a head of every released Wan transformer.
WAN_HEAD_DIM = 128

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
# (dim, layers, in channels) of the released ones.
_RELEASED = {
    (1536, 30, 16): "Wan2.1-T2V-1.3B",
    (5120, 40, 16): "Wan2.1-T2V-14B",
    (5120, 40, 36): "Wan2.1-I2V-14B",
    (3072, 30, 48): "Wan2.2-TI2V-5B",
}
# Wan's own configuration names -> WanTransformer3DModel's.
_ORIGINAL_NAMES = {
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "num_heads": "num_attention_heads",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "text_dim": "text_dim",
    "num_layers": "num_layers",
    "cross_attn_norm": "cross_attn_norm",
    "eps": "eps",
    "patch_size": "patch_size",
}


def require_wan_transformer(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse a state dict (original or diffusers names) of anything that is no Wan transformer, saying what it is.

    Raises:
        CheckpointError: naming the other architecture where it is known.
    """
    blocks = any(re.match(r"blocks\.\d+\.(self_attn|cross_attn|attn1|attn2)\.", name) for name in state)
    variants = {"vace_blocks.": "Wan-VACE", "motion_encoder.": "Wan-Animate", "control_adapter.": "Wan-Fun control"}
    for prefix, variant in variants.items():
        if any(name.startswith(prefix) for name in state):
            raise CheckpointError(f"{source}: a {variant} transformer; only plain Wan transformers can be used")
    if blocks:
        return
    raise CheckpointError(
        f"{source}: not a Wan transformer but {_foreign_name(state)}; it has {len(state)} tensors such as "
        f"{', '.join(sorted(state)[:2])}"
    )


def _foreign_name(state: Mapping[str, Tensor]) -> str:
    if "decoder.middle.0.residual.0.gamma" in state or "post_quant_conv.weight" in state:
        return "a VAE"
    if "token_embedding.weight" in state or "shared.weight" in state or "encoder.embed_tokens.weight" in state:
        return "a T5 text encoder"
    if any(name.startswith("visual.") for name in state):
        return "a CLIP image encoder"
    if all(name.startswith("transformer_blocks.") or "." not in name or "embed" in name for name in state):
        return "another diffusers transformer"
    try:
        kind = infer_diffusers_model_type(dict(state))  # type: ignore[no-untyped-call]
    except (KeyError, IndexError):  # it reads shapes of tensors that an incomplete file may lack
        return "something else"
    # "v1" is also diffusers' answer to what it does not know.
    return "something else" if kind == "v1" else f"a {kind} checkpoint"


def normalise_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in WanTransformer3DModel's names or in Wan's own -> the former.

    Raises:
        CheckpointError: neither, or a configuration of another class.
    """
    name = config.get("_class_name")
    if name not in (None, "WanModel", "CausalWanModel", "WanTransformer3DModel", "SkyReelsV2Transformer3DModel"):
        raise CheckpointError(f"config: it is of a {name}, not of a Wan transformer")
    if "dim" in config and "num_heads" in config:
        known = {theirs: config[ours] for ours, theirs in _ORIGINAL_NAMES.items() if ours in config}
        if config["dim"] % config["num_heads"]:
            raise CheckpointError(
                f"config: dim={config['dim']} is not a multiple of num_heads={config['num_heads']}; mend the config"
            )
        known["attention_head_dim"] = config["dim"] // config["num_heads"]
        return known
    parameters = set(inspect.signature(WanTransformer3DModel.__init__).parameters) - {"self"}
    known = {key: value for key, value in config.items() if key in parameters}
    if "num_attention_heads" not in known:
        raise CheckpointError("config: has neither num_attention_heads (diffusers) nor dim and num_heads (Wan)")
    return known


def infer_transformer_config(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    config: Mapping[str, Any] | None = None,
    heads: int | None = None,
    source: str = "checkpoint",
) -> dict[str, Any]:
    """Arguments of WanTransformer3DModel for a state dict in diffusers' names.

    Args:
        shapes: name -> shape. Tensors may be missing: the key report names them afterwards.
        config: a configuration (Wan's names or diffusers'); gives heads and eps, and must agree with the shapes.
        heads: number of attention heads; stronger than ``config``.
        source: how errors name the file.

    Raises:
        CheckpointError: the number of heads cannot be told or does not divide the width, or config and shapes disagree.
    """
    given = normalise_config(config) if config is not None else {}
    seen = _from_shapes(shapes)
    dim = seen.pop("dim", None) or given.get("num_attention_heads", 0) * given.get("attention_head_dim", 0)
    if not dim:
        raise CheckpointError(f"{source}: incomplete; no tensor tells the model's width")
    if given:
        _require_agreement(given, seen | {"dim": dim}, source)
    count = heads or given.get("num_attention_heads")
    if count is None:
        if dim % WAN_HEAD_DIM:
            raise CheckpointError(
                f"{source}: the number of heads cannot be told from the weights (dim={dim} is not a multiple of "
                f"{WAN_HEAD_DIM}); pass heads= or config="
            )
        count = dim // WAN_HEAD_DIM
    if dim % count or dim // count % 2:
        raise CheckpointError(f"heads={count}: dim={dim} must be heads times an even number")
    return given | seen | {"num_attention_heads": count, "attention_head_dim": dim // count}


def _from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    # The first block that has a tensor speaks for all; a missing tensor leaves its entry out.
    blocks: dict[str, tuple[int, ...]] = {}
    layers = 0
    for name, shape in shapes.items():
        if match := _BLOCK.fullmatch(name):
            layers = max(layers, int(match[1]) + 1)
            blocks.setdefault(match[2], shape)
    seen: dict[str, Any] = {"num_layers": layers} if layers else {}
    patch = shapes.get("patch_embedding.weight")
    if patch is not None and len(patch) == 5:
        seen |= {"dim": patch[0], "in_channels": patch[1], "patch_size": tuple(patch[2:])}
    for table in (blocks.get("scale_shift_table"), shapes.get("scale_shift_table")):
        if table is not None:
            seen.setdefault("dim", table[-1])
    if (out := shapes.get("proj_out.weight")) is not None and "patch_size" in seen:
        seen["out_channels"] = out[0] // math.prod(seen["patch_size"])
    for key, name, axis in (
        ("freq_dim", "condition_embedder.time_embedder.linear_1.weight", 1),
        ("text_dim", "condition_embedder.text_embedder.linear_1.weight", 1),
        ("image_dim", "condition_embedder.image_embedder.norm1.weight", 0),
        ("pos_embed_seq_len", "condition_embedder.image_embedder.pos_embed", 1),
    ):
        if name in shapes:
            seen[key] = shapes[name][axis]
    if "ffn.net.0.proj.weight" in blocks:
        seen["ffn_dim"] = blocks["ffn.net.0.proj.weight"][0]
    if "attn2.add_k_proj.weight" in blocks:
        seen["added_kv_proj_dim"] = blocks["attn2.add_k_proj.weight"][1]
    seen["cross_attn_norm"] = "norm2.weight" in blocks
    return seen


def _require_agreement(given: Mapping[str, Any], seen: Mapping[str, Any], source: str) -> None:
    claimed = dict(given)
    if "num_attention_heads" in given and "attention_head_dim" in given:
        claimed["dim"] = given["num_attention_heads"] * given["attention_head_dim"]
    differing = [
        f"{key} {_plain(seen[key])} (config: {_plain(claimed[key])})"
        for key in sorted(seen)
        if key in claimed and claimed[key] is not None and _plain(seen[key]) != _plain(claimed[key])
    ]
    if differing:
        raise CheckpointError(f"{source}: another architecture than the configuration says: {', '.join(differing)}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def describe(config: Mapping[str, Any]) -> str:
    """One line: the released name where there is one, and the sizes."""
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    name = _RELEASED.get((dim, config["num_layers"], config["in_channels"]), "a Wan transformer of no released size")
    sizes = f"dim {dim}, {config['num_attention_heads']} heads, {config['num_layers']} layers, ffn {config['ffn_dim']}"
    return f"{name} ({sizes}, {config['in_channels']} -> {config['out_channels']} channels)"
