"""What a model folder says about itself in its JSON files and safetensors headers; no torch, no weights.

A folder has diffusers' layout: ``model_index.json``, and a folder a component. ``longvid render --dry-run`` and the
checks before loading read only this.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvid.errors import ModelError

EMBEDDED = Path(__file__).resolve().parent / "embedded"
"""The model that ships in the package."""


def model_folder(model: str | Path) -> Path | None:
    """The local folder of a model, or None for a hub id. Raises ``ModelError`` when a local one is missing."""
    if str(model) == "embedded":
        if not (EMBEDDED / "model_index.json").is_file():
            raise ModelError("model='embedded': its weights are missing from this installation; reinstall longvid")
        return EMBEDDED
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(f"model={str(model)!r}: is a file; make a model folder of it: longvid convert {model} FOLDER")
    parts = str(model).split("/")
    if len(parts) != 2 or not all(parts) or str(model).startswith((".", "~", "/")):
        raise ModelError(
            f"model={str(model)!r}: no such folder; give 'embedded', a model folder, or a hub id such as 'owner/name'"
        )
    return None


def model_defaults(model: str | Path) -> dict[str, Any]:
    """The sampling defaults in a local folder's model_index.json; none for hub ids and original layouts."""
    folder = model_folder(model)
    if folder is None or not (folder / "model_index.json").is_file():
        return {}
    return read_json(folder / "model_index.json", model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One component of a model folder."""

    config: Mapping[str, Any]
    """Its config.json."""
    parameters: int
    """Numbers in its safetensors files; 0 when there are none."""
    bytes: int
    """Bytes of those files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A model folder, read without its weights."""

    name: str
    """As the user gave it."""
    index: Mapping[str, Any]
    """model_index.json: components and sampling defaults."""
    components: Mapping[str, Component]
    """Those that have a config.json."""

    @property
    def transformer(self) -> Mapping[str, Any]:
        """The transformer's config."""
        return self.components["transformer"].config

    @property
    def vae(self) -> Mapping[str, Any]:
        """The VAE's config."""
        return self.components["vae"].config

    @property
    def vae_factor(self) -> int:
        """Pixels a side of a latent cell."""
        return int(self.vae.get("scale_factor_spatial") or 8)

    @property
    def spatial(self) -> int:
        """Pixels a side of a transformer token."""
        return self.vae_factor * int(self.transformer["patch_size"][1])

    @property
    def temporal(self) -> int:
        """Video frames of a latent frame (the first holds one)."""
        return int(self.vae.get("scale_factor_temporal") or 4)

    @property
    def dim(self) -> int:
        """The transformer's width."""
        return int(self.transformer["num_attention_heads"]) * int(self.transformer["attention_head_dim"])


def read_model_folder(model: str | Path) -> ModelFolder | None:
    """What the folder of ``model`` says; None for a hub id or another layout than diffusers'.

    Raises ``ModelError`` when a local model is missing, or one of its files is damaged.
    """
    folder = model_folder(model)
    if folder is None or not (folder / "model_index.json").is_file():
        return None
    index = read_json(folder / "model_index.json", model)
    components = {}
    for name, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2 and entry[0] and (folder / name / "config.json").is_file():
            sizes = [_weights(file, model) for file in sorted((folder / name).glob("*.safetensors"))]
            components[name] = Component(
                config=read_json(folder / name / "config.json", model),
                parameters=sum(parameters for parameters, _ in sizes),
                bytes=sum(size for _, size in sizes),
            )
    for needed, keys in (("transformer", ("patch_size", "num_layers", "num_attention_heads")), ("vae", ())):
        config = components[needed].config if needed in components else None
        if config is None or any(key not in config for key in keys):
            raise ModelError(f"model={str(model)!r}: its {needed}/config.json is missing or incomplete")
    return ModelFolder(name=str(model), index=index, components=components)


def read_json(path: Path, model: str | Path) -> dict[str, Any]:
    """A JSON file with a mapping at its top. Raises ``ModelError``."""
    where = f"model={str(model)!r}: its {path.parent.name + '/' if path.name == 'config.json' else ''}{path.name}"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{where} cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(plain, dict):
        raise ModelError(f"{where} must hold a mapping")
    return plain


def _weights(path: Path, model: str | Path) -> tuple[int, int]:
    """(numbers, bytes) of a safetensors file, from its header; a file that is too short for it is damaged."""
    size = path.stat().st_size
    where = f"model={str(model)!r}: {path.parent.name}/{path.name}"
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, 100_000_000):
                raise ValueError(f"its header needs {length} bytes, the file has {size}")
            header = json.loads(file.read(length))
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        end = max((entry["data_offsets"][1] for entry in entries), default=0)
        if 8 + length + end != size:
            raise ValueError(f"it has {size} bytes, its header says {8 + length + end}")
        return sum(math.prod(entry["shape"]) for entry in entries), size
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(f"{where} is damaged ({error}); fetch it again") from None
