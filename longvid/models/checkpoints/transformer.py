"""Load a Wan transformer from any layout into diffusers' WanTransformer3DModel, strictly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor

from longvid.models.checkpoints.architecture import describe, infer_transformer_config, require_wan_transformer
from longvid.models.checkpoints.files import locate_transformer, read_json, read_located
from longvid.models.checkpoints.known import show_licence
from longvid.models.checkpoints.layouts import extract, to_diffusers_names
from longvid.models.checkpoints.lora import merge_lora, read_lora
from longvid.models.checkpoints.report import CheckpointError, compare_keys
from longvid.models.checkpoints.sources import fetch

__all__ = ["Checkpoint", "build_transformer", "load_transformer", "read_transformer"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A transformer that was read and found complete, not yet a model."""

    source: str
    """Where it came from."""
    layout: str
    """Its layout in words."""
    config: dict[str, Any]
    """Arguments of WanTransformer3DModel."""
    state: dict[str, Tensor]
    """Parameters under WanTransformer3DModel's names, on the CPU (mapped from the file where it allows)."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that most of the weights are stored in."""
        return self.state["patch_embedding.weight"].dtype

    def __str__(self) -> str:
        return f"{self.source}: {describe(self.config)}, {str(self.dtype).removeprefix('torch.')}; {self.layout}"


def load_transformer(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
    lora_alpha: float | None = None,
    entry: str = "auto",
    config: Mapping[str, Any] | str | Path | None = None,
    heads: int | None = None,
) -> WanTransformer3DModel:
    """A Wan transformer from a diffusers folder, an original Wan folder or file, or a Self-Forcing family ``.pt``.

    The licence of a known checkpoint is logged first. Every parameter must be there, with the right shape, and none
    besides; pickles are read with ``weights_only=True``.

    Args:
        path: a local file or folder, a name of ``known.KNOWN`` ("self-forcing", "longlive" with its LoRA, ...), or
            a hub id with or without a file ("owner/name", "owner/name/folder/file.pt").
        dtype: of the weights; None keeps the file's. diffusers' ``_keep_in_fp32_modules`` stay in float32 either way.
        lora: a LoRA file to merge (``W + scale * alpha / rank * B A``); a known checkpoint brings its own.
        lora_scale: its strength.
        lora_alpha: its alpha, where the file does not tell and it is not the rank.
        entry: top-level key of a trainer's file; "auto" takes generator_ema, generator or model, in this order.
        config: configuration (diffusers' or Wan's names), or the path of its JSON, for a file without one beside it.
        heads: attention heads, where neither a configuration nor the rule of 128 channels a head tells.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        CheckpointError: what is wrong with the file, in one line.
    """
    checkpoint = read_transformer(
        path, lora=lora, lora_scale=lora_scale, lora_alpha=lora_alpha, entry=entry, config=config, heads=heads
    )
    return build_transformer(checkpoint, dtype=dtype)


def read_transformer(
    path: str | Path,
    *,
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
    lora_alpha: float | None = None,
    entry: str = "auto",
    config: Mapping[str, Any] | str | Path | None = None,
    heads: int | None = None,
) -> Checkpoint:
    """Read and check a transformer; arguments and errors as in :func:`load_transformer`."""
    show_licence(path)
    fetched = fetch(path)
    source = str(path)
    lora = lora if lora is not None else fetched.lora
    located = locate_transformer(fetched.path)
    if isinstance(config, (str, Path)):
        config = read_json(Path(config))
    extracted = extract(read_located(located), entry=entry, source=source)
    require_wan_transformer(extracted.state, source)
    state = to_diffusers_names(extracted)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    arguments = infer_transformer_config(shapes, config=config or located.config, heads=heads, source=source)
    ignored = WanTransformer3DModel._keys_to_ignore_on_load_unexpected
    report = compare_keys(shapes, _wanted_shapes(arguments), ignore=ignored)
    if not report.ok:
        raise CheckpointError(f"{source}: {report}. Read as {describe_safely(arguments)}")
    layout = extracted.layout
    if lora is not None:
        state = merge_lora(state, read_lora(lora, alpha=lora_alpha), scale=lora_scale, source=str(lora))
        layout += f", with the LoRA {Path(lora).name} merged at {lora_scale:g}"
    return Checkpoint(source=source, layout=layout, config=arguments, state=state)


def describe_safely(arguments: Mapping[str, Any]) -> str:
    """``describe``, for arguments that an incomplete file left gaps in."""
    try:
        return describe(arguments)
    except KeyError as error:
        return f"a Wan transformer whose {error.args[0]} cannot be told"


def _empty_model(arguments: Mapping[str, Any]) -> WanTransformer3DModel:
    # Parameters without memory, buffers (the RoPE tables) real: as from_pretrained does it.
    with init_empty_weights(include_buffers=False):
        model: WanTransformer3DModel = WanTransformer3DModel(**arguments)
    return model


def _wanted_shapes(arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in _empty_model(arguments).named_parameters()}


def build_transformer(checkpoint: Checkpoint, *, dtype: torch.dtype | None = None) -> WanTransformer3DModel:
    """The model of a checked checkpoint, in eval mode.

    ``WanTransformer3DModel.from_single_file(torch_dtype=torch.bfloat16)`` would cast everything; here the modules of
    ``_keep_in_fp32_modules`` stay in float32, as they do in ``from_pretrained``.
    """
    model = _empty_model(checkpoint.config)
    dtype = dtype or checkpoint.dtype
    kept = set(model._keep_in_fp32_modules)
    state = {
        name: checkpoint.state[name].to(torch.float32 if kept.intersection(name.split(".")) else dtype)
        for name, _ in model.named_parameters()
    }
    model.load_state_dict(state, strict=True, assign=True)
    model.register_to_config(_name_or_path=checkpoint.source)  # type: ignore[no-untyped-call]
    model.eval()
    return model
