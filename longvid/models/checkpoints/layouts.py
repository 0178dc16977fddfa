"""Layouts of released checkpoints: where in the file the transformer is, and what its names are wrapped in.

::

    diffusers           blocks.0.attn1.to_q.weight                                     (folder or single file)
    original Wan        blocks.0.self_attn.q.weight
    Self-Forcing family {generator_ema | generator | model: {model.blocks.0.self_attn.q.weight}} or that dict bare
    trained with FSDP   model._fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.self_attn.q.weight
    compiled, rematerialised                    _orig_mod. and _checkpoint_wrapped_module. anywhere in a name

Trainers of the family (Self-Forcing, Rolling Forcing, LongLive, Reward Forcing, CausVid) save ``generator`` and
``critic``, and ``generator_ema`` once the average has begun; the average is what the authors sample from.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from torch import Tensor

from longvid.models.checkpoints.report import CheckpointError

__all__ = ["ENTRIES", "Extracted", "extract", "is_lora", "to_diffusers_names"]

#: Where a file may keep its transformer, best first.
ENTRIES = ("generator_ema", "generator", "model", "state_dict")
# Names that wrappers put in front of a module's own; they can stand anywhere in a parameter's name.
_WRAPPERS = re.compile(r"(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
# Names that stand in front of all parameters of a file.
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "module.", "generator.", "transformer.")
_LORA = re.compile(r"\blora_(?:A|B|down|up)\b|^lora_unet_")
_LORA_ALONE = "{}: a LoRA, not a whole model; give its base model as the path and this file as lora="


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """A transformer's state dict, taken out of its file."""

    state: dict[str, Tensor]
    """Parameter name -> tensor; wrappers and prefixes removed."""
    entry: str | None
    """The top-level key that it was under; None for a file that is a state dict itself."""
    prefixes: tuple[str, ...]
    """What was removed from the names."""
    naming: str
    """"diffusers" or "original"."""

    @property
    def layout(self) -> str:
        """The layout in words."""
        where = f"under {self.entry!r}" if self.entry else "at the top level"
        removed = f", without {', '.join(self.prefixes)}" if self.prefixes else ""
        return f"{self.naming} names {where}{removed}"


def extract(content: Any, *, entry: str = "auto", source: str = "checkpoint") -> Extracted:
    """Take the transformer out of what a file holds.

    Args:
        content: what :func:`longvid.models.checkpoints.files.read` returned.
        entry: the top-level key to use; "auto" takes the first of ``ENTRIES`` that is there.
        source: how errors name the file.

    Raises:
        CheckpointError: no such entry, no tensors, a LoRA in place of a model, or names that collide.
    """
    state, found = _select(content, entry, source)
    if is_lora(state):
        raise CheckpointError(_LORA_ALONE.format(source))
    loose = [name for name, tensor in state.items() if not isinstance(tensor, Tensor)]
    if loose or not state:
        what = f"{len(loose)} entries are no tensors: {', '.join(map(str, loose[:4]))}" if loose else "it is empty"
        raise CheckpointError(f"{source}: not a state dict; {what}")
    cleaned, prefixes = _strip(state, source)
    naming = "diffusers" if any(name.startswith("condition_embedder.") for name in cleaned) else "original"
    return Extracted(state=cleaned, entry=found, prefixes=prefixes, naming=naming)


def _select(content: Any, entry: str, source: str) -> tuple[Mapping[str, Any], str | None]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source}: holds a {type(content).__name__}, not a state dict")
    nested = [name for name, value in content.items() if isinstance(value, Mapping) and value]
    if entry != "auto":
        if entry not in nested:
            raise CheckpointError(f"entry={entry!r}: not in {source}; it has {_listed(nested) or 'no nested entries'}")
        return content[entry], entry
    for name in ENTRIES:
        if name in nested:
            return content[name], name
    if nested and not any(isinstance(value, Tensor) for value in content.values()):
        if any(is_lora(content[name]) for name in nested):
            raise CheckpointError(_LORA_ALONE.format(source))
        raise CheckpointError(
            f"{source}: top-level entries {_listed(nested)}; none of {', '.join(ENTRIES)}: say which one with entry="
        )
    return content, None


def _listed(names: list[Any]) -> str:
    return ", ".join(map(repr, names[:6]))


def is_lora(state: Mapping[str, Any]) -> bool:
    """Whether the names are those of a LoRA (any naming)."""
    return any(_LORA.search(name) for name in state)


def _strip(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    removed = sorted({found for name in state for found in _WRAPPERS.findall(name)})
    names = {name: _WRAPPERS.sub("", name) for name in state}
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in names.values())), None):
        names = {name: clean.removeprefix(prefix) for name, clean in names.items()}
        removed.append(prefix)
    cleaned = {clean: state[name] for name, clean in names.items()}
    if len(cleaned) != len(state):
        raise CheckpointError(
            f"{source}: {len(state) - len(cleaned)} names are the same once wrappers are removed; the file is ambiguous"
        )
    return cleaned, tuple(removed)


def to_diffusers_names(extracted: Extracted) -> dict[str, Tensor]:
    """The state dict under WanTransformer3DModel's names (diffusers' own conversion; tensors untouched)."""
    if extracted.naming == "diffusers":
        return dict(extracted.state)
    converted: dict[str, Tensor] = convert_wan_transformer_to_diffusers(dict(extracted.state))  # type: ignore[no-untyped-call]
    return converted
