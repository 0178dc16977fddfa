"""A student as a low-rank adapter: only small matrices beside the base's are trained (LoRA, arXiv 2106.09685).

peft, through diffusers' own loader, makes and wears the adapter; what is exported loads with `load_lora_adapter`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longvid.errors import InputError

TARGETS = (
    *(f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"attn2.{name}" for name in ("to_q", "to_v", "to_out.0")),
    "ffn.net.0.proj",
    "ffn.net.2",
    "condition_embedder.time_proj",  # how each level of noise modulates the blocks: few steps need other levels
    "proj_out",
)
"""Linear layers that wear the adapter, by the end of their names."""


def wear_adapter(transformer: Any, rank: int, *, seed: int = 0, start: str | Path | None = None) -> None:
    """Freeze the transformer and put an adapter of `rank` beside its layers, the one thing that trains; in place.

    A random, B zero: the network is unchanged at first. alpha equals rank, so the scale is 1. seed: of A. start: folder
    of an adapter of the same rank to begin with.

    Raises InputError without peft, and for a start of another rank or model.
    """
    try:
        from peft import LoraConfig, set_peft_model_state_dict
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        raise InputError(f"lora_rank={rank}: needs peft, not installed: pip install 'longvid[lora]'") from error
    targets = [name for name, _ in transformer.named_modules() if name.endswith(TARGETS)]
    transformer.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_("lora_" in name)
    for module in transformer.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False  # autocast decides the precision, not the adapter's storage
    if start is not None:
        from safetensors.torch import load_file

        from longvid.models.students import ADAPTER

        state = load_file(Path(start) / ADAPTER)
        mine = trained_weights(transformer)
        ranks = {tensor.shape[0] for name, tensor in state.items() if name.endswith("lora_A.weight")}
        if ranks != {rank} or len(state) != len(mine):
            raise InputError(f"lora_rank={rank}: the adapter in {str(start)!r} has rank {sorted(ranks)}; use the same")
        set_peft_model_state_dict(transformer, {name: x.float() for name, x in state.items()}, adapter_name="default")


def adapter_rank(transformer: Any) -> int:
    """Rank of the adapter that a transformer wears; 0 for none."""
    return max((p.shape[0] for name, p in transformer.named_parameters() if "lora_A" in name), default=0)


def trained_weights(model: Any) -> dict[str, Tensor]:
    """The parameters that training changes, by name, without graph: all, or those of an adapter."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def set_trained_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Copy what `trained_weights` gave into a model of the same kind. Raises InputError when names differ."""
    mine = trained_weights(model)
    if mine.keys() != weights.keys():
        raise InputError(f"weights: {len(weights)} parameters for {len(mine)}; they are another network's")
    for name, parameter in mine.items():
        parameter.copy_(weights[name])


@torch.no_grad()
def adapter_sums(transformer: Any, dtype: torch.dtype | None = None) -> list[tuple[Any, Tensor]]:
    """(layer, W + B A in `dtype` or W's own) of every layer that wears an adapter."""
    layers = [layer for layer in transformer.modules() if hasattr(layer, "lora_A") and hasattr(layer, "base_layer")]
    sums = []
    for layer in layers:
        weight = layer.base_layer.weight
        sums.append((layer, (weight + layer.get_delta_weight("default")).to(dtype or weight.dtype)))
    return sums


@contextmanager
def worn_as_sums(sums: Sequence[tuple[Any, Tensor]]) -> Iterator[None]:
    """Within, the layers of `adapter_sums` use those matrices. For calls without gradient; restored exactly after."""
    kept = [layer.base_layer.weight.data for layer, _ in sums]
    for layer, total in sums:
        layer.base_layer.weight.data, layer._disable_adapters = total, True
    try:
        yield
    finally:
        for (layer, _), weight in zip(sums, kept, strict=True):
            layer.base_layer.weight.data, layer._disable_adapters = weight, False
