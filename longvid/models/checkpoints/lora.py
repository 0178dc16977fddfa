"""LoRA files for Wan transformers: read under any of their namings, merged into weights or handed to diffusers' peft.

Names come as::

    base_model.model.blocks.0.self_attn.q.lora_A.weight            peft (LongLive; with or without `.default`)
    base_model.model.model._fsdp_wrapped_module.blocks.0...        peft around a wrapped model
    diffusion_model.blocks.0.self_attn.q.lora_down.weight          ComfyUI
    blocks.0.self_attn.q.lora_down.weight                          bare
    lora_unet_blocks_0_self_attn_q.lora_down.weight                kohya, musubi
    transformer.blocks.0.attn1.to_q.lora_A.weight                  diffusers

diffusers reads the second-last two and the last of these only; all of them become the last here. A layer adds
scale * B A to its weight, scale = alpha / rank (Hu et al., arXiv 2106.09685, section 4.1); a file without alpha means
alpha = rank, as everywhere.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from torch import Tensor

from longvid.models.checkpoints.files import read, read_json
from longvid.models.checkpoints.report import CheckpointError

__all__ = ["LoraLayer", "lora_layers", "merge_lora", "peft_state_dict", "read_lora"]

_ENTRIES = ("generator_lora_ema", "generator_lora", "lora", "state_dict", "model")
_WRAPPERS = re.compile(r"(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|default)\.")
_PREFIX = re.compile(r"^(?:base_model\.model\.|model\.|module\.|generator\.|diffusion_model\.|transformer\.)+")
_PART = re.compile(r"(?P<layer>.+?)\.(?P<part>lora_A|lora_B|lora_down|lora_up|alpha|diff|diff_b)(?:\.weight)?")
_KOHYA = re.compile(r"lora_unet_blocks_(\d+)_(self_attn|cross_attn)_(\w+?)$|lora_unet_blocks_(\d+)_ffn_(\d)$")


@dataclasses.dataclass(slots=True, kw_only=True)
class LoraLayer:
    """What a LoRA file holds for one layer."""

    name: str
    """The layer in WanTransformer3DModel's names, without ``.weight``."""
    down: Tensor | None = None
    """A, [rank, in]."""
    up: Tensor | None = None
    """B, [out, rank]."""
    alpha: float | None = None
    """None means alpha = rank."""
    weight_change: Tensor | None = None
    """A full change of the weight (``diff``), beside or in place of the low-rank one."""
    bias_change: Tensor | None = None
    """A full change of the bias (``diff_b``)."""

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None or self.down is None else self.alpha / self.down.shape[0]

    def delta(self) -> Tensor | None:
        """What is added to the weight, float32."""
        total = None if self.weight_change is None else self.weight_change.float()
        if self.down is not None and self.up is not None:
            # A convolution's A is [rank, in, ...] and its B [out, rank, 1, ...]; for Linear the extra axes are absent.
            product = (self.up.float().flatten(1) @ self.down.float().flatten(1)) * self.scale
            product = product.reshape(self.up.shape[0], *self.down.shape[1:])
            total = product if total is None else total + product
        return total


def read_lora(source: str | Path | Mapping[str, Any], *, alpha: float | None = None) -> list[LoraLayer]:
    """The layers of a LoRA file (or of what it holds).

    ``adapter_config.json`` beside the file gives alpha where the file itself does not.

    Args:
        source: path of a file, or its content.
        alpha: alpha of every layer; stronger than what the file says.

    Raises:
        CheckpointError: no LoRA in it, a half layer, or DoRA.
    """
    if isinstance(source, Mapping):
        return lora_layers(source, alpha=alpha, source="lora")
    path = Path(source)
    if path.is_dir():
        named = [path / name for name in ("adapter_model.safetensors", "pytorch_lora_weights.safetensors", "lora.pt")]
        path = next((file for file in named if file.is_file()), path / "adapter_model.safetensors")
    config = path.parent / "adapter_config.json"
    if alpha is None and config.is_file():
        alpha = read_json(config).get("lora_alpha")
    return lora_layers(read(path), alpha=alpha, source=str(path))


def lora_layers(content: Any, *, alpha: float | None = None, source: str = "lora") -> list[LoraLayer]:
    """Sort what a LoRA file holds by layer; see :func:`read_lora`."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source}: holds a {type(content).__name__}, not a LoRA")
    state = next(
        (content[entry] for entry in _ENTRIES if isinstance(content.get(entry), Mapping) and content[entry]), content
    )
    layers: dict[str, LoraLayer] = {}
    unknown = []
    for name, value in state.items():
        if "lora_magnitude_vector" in name or "dora_scale" in name:
            raise CheckpointError(f"{source}: a DoRA ({name}); only plain LoRA can be used")
        match = _PART.fullmatch(_WRAPPERS.sub("", name)) if isinstance(value, Tensor) else None
        if match is None:
            unknown.append(str(name))
            continue
        layer = layers.setdefault(target := _layer_name(match["layer"]), LoraLayer(name=target))
        _place(layer, match["part"], value)
    if unknown or not layers:
        named = f"{len(unknown)} unknown entries: {', '.join(unknown[:4])}" if unknown else "it is empty"
        raise CheckpointError(f"{source}: not a LoRA of a Wan transformer; {named}")
    for layer in layers.values():
        if (layer.down is None) != (layer.up is None):
            half = "lora_B" if layer.up is None else "lora_A"
            raise CheckpointError(f"{source}: {layer.name} lacks {half}; the file is incomplete")
        if layer.down is not None and layer.up is not None and layer.down.shape[0] != layer.up.shape[1]:
            raise CheckpointError(
                f"{source}: {layer.name} has rank {layer.down.shape[0]} in A and {layer.up.shape[1]} in B"
            )
        if alpha is not None:
            layer.alpha = float(alpha)
    return list(layers.values())


def _place(layer: LoraLayer, part: str, value: Tensor) -> None:
    if part in ("lora_A", "lora_down"):
        layer.down = value
    elif part in ("lora_B", "lora_up"):
        layer.up = value
    elif part == "alpha":
        layer.alpha = float(value)
    elif part == "diff":
        layer.weight_change = value
    else:
        layer.bias_change = value


def _layer_name(name: str) -> str:
    if match := _KOHYA.fullmatch(name):
        block, attention, projection, ffn_block, ffn_layer = match.groups()
        name = f"blocks.{block}.{attention}.{projection}" if block else f"blocks.{ffn_block}.ffn.{ffn_layer}"
    name = _PREFIX.sub("", name)
    if re.search(r"\.attn[12]\.|\.ffn\.net\.|^condition_embedder\.|^proj_out$", name):
        return name
    # diffusers' own conversion renames parameters, so the layer is sent through it as one.
    converted = convert_wan_transformer_to_diffusers({f"{name}.weight": torch.empty(0)})  # type: ignore[no-untyped-call]
    return str(next(iter(converted))).removesuffix(".weight")


def merge_lora(
    state: Mapping[str, Tensor], layers: Iterable[LoraLayer], *, scale: float = 1.0, source: str = "lora"
) -> dict[str, Tensor]:
    """``state`` with the LoRA added: W + scale * alpha / rank * B A, computed in float32, kept in W's dtype.

    Args:
        state: a transformer in diffusers' names; not changed.
        layers: what :func:`read_lora` gave.
        scale: strength of the whole LoRA; 0 gives ``state``.
        source: how errors name the file.

    Raises:
        CheckpointError: a layer that the model has not, or of another size.
    """
    merged = dict(state)
    absent, misfit = [], []
    for layer in layers:
        for key, change in ((f"{layer.name}.weight", layer.delta()), (f"{layer.name}.bias", layer.bias_change)):
            if change is None:
                continue
            weight = merged.get(key)
            if weight is None:
                absent.append(key)
            elif weight.shape != change.shape:
                misfit.append(f"{key} {list(change.shape)} instead of {list(weight.shape)}")
            else:
                merged[key] = (weight.float() + scale * change.float()).to(weight.dtype)
    if absent or misfit:
        problems = [f"{len(absent)} layers that it has not: {', '.join(absent[:3])}"] if absent else []
        problems += [f"{len(misfit)} of another size: {', '.join(misfit[:3])}"] if misfit else []
        raise CheckpointError(f"{source}: a LoRA of another model; {'; '.join(problems)}")
    return merged


def peft_state_dict(layers: Iterable[LoraLayer], *, source: str = "lora") -> dict[str, Tensor]:
    """The LoRA as diffusers' ``load_lora_adapter`` and ``load_lora_weights`` take it, alpha / rank folded into B.

    Keys are ``transformer.<layer>.lora_A.weight`` and ``.lora_B.weight``; ``transformer.load_lora_adapter(state,
    prefix="transformer")`` or ``pipe.load_lora_weights(state)`` loads them.

    Raises:
        CheckpointError: the file also changes whole weights or biases, which an adapter cannot hold: merge it.
    """
    state: dict[str, Tensor] = {}
    for layer in layers:
        if layer.weight_change is not None or layer.bias_change is not None:
            raise CheckpointError(
                f"{source}: {layer.name} changes a whole weight or bias (diff, diff_b); load it with lora= instead"
            )
        if layer.down is not None and layer.up is not None:
            state[f"transformer.{layer.name}.lora_A.weight"] = layer.down
            state[f"transformer.{layer.name}.lora_B.weight"] = layer.up if layer.scale == 1 else layer.up * layer.scale
    return state
