"""Reading released checkpoints: which layout a file has, what it lacks, whose licence it is under.

Names are imported on first use: the command line lists known checkpoints without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PLACES = {
    "CheckpointError": "report",
    "KNOWN": "known",
    "Known": "known",
    "licence_notice": "known",
    "show_licence": "known",
    "load_transformer": "transformer",
    "read_transformer": "transformer",
    "build_vae": "vae",
    "load_vae": "vae",
    "read_lora": "lora",
    "merge_lora": "lora",
    "peft_state_dict": "lora",
    "load_text_encoder": "text_encoder",
    "convert": "conversion",
}
__all__ = [
    "KNOWN",
    "CheckpointError",
    "Known",
    "build_vae",
    "convert",
    "licence_notice",
    "load_text_encoder",
    "load_transformer",
    "load_vae",
    "merge_lora",
    "peft_state_dict",
    "read_lora",
    "read_transformer",
    "show_licence",
]

if TYPE_CHECKING:
    from longvid.models.checkpoints.conversion import convert
    from longvid.models.checkpoints.known import KNOWN, Known, licence_notice, show_licence
    from longvid.models.checkpoints.lora import merge_lora, peft_state_dict, read_lora
    from longvid.models.checkpoints.report import CheckpointError
    from longvid.models.checkpoints.text_encoder import load_text_encoder
    from longvid.models.checkpoints.transformer import load_transformer, read_transformer
    from longvid.models.checkpoints.vae import build_vae, load_vae


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
