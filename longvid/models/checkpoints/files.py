"""From a path on disk to tensors: which files make up a checkpoint, and reading them without running their code.

Pickles are read by ``torch.load(weights_only=True)`` alone: a file that needs more is refused, whoever made it.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from longvid.models.checkpoints.report import CheckpointError

__all__ = ["Located", "is_diffusers_pipeline", "locate_transformer", "read", "read_json", "read_located"]

_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
# What lies beside a transformer in released folders and is none.
_OTHER_WEIGHTS = re.compile(r"vae|t5|clip|lora|xlm|critic|optim", re.IGNORECASE)
_DIFFUSERS_STEM = "diffusion_pytorch_model"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """The files of one transformer."""

    files: tuple[Path, ...]
    """Weight files, all of them needed."""
    config: dict[str, Any] | None = None
    """The config.json beside them."""


def is_diffusers_pipeline(path: Path) -> bool:
    """Whether a folder is a whole diffusers pipeline."""
    return (path / "model_index.json").is_file()


def locate_transformer(path: Path) -> Located:
    """Find the transformer's weights under ``path``: a file, a diffusers folder, or an original Wan folder.

    Raises:
        CheckpointError: nothing there, several candidates, or a shard is missing.
    """
    if path.is_file():
        return Located(files=(path,), config=_config_beside(path))
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder")
    if is_diffusers_pipeline(path):
        path = path / "transformer"
        if not path.is_dir():
            raise CheckpointError(f"{path.parent}: model_index.json is there, the folder transformer/ is not")
    config = read_json(path / "config.json") if (path / "config.json").is_file() else None
    return Located(files=_weights_in(path), config=config)


def _config_beside(path: Path) -> dict[str, Any] | None:
    """The config.json of a single file, where the file is the folder's one transformer (diffusers' and Wan's name)."""
    config = path.parent / "config.json"
    if path.stem.startswith(_DIFFUSERS_STEM) and config.is_file():
        return read_json(config)
    return None


def _weights_in(folder: Path) -> tuple[Path, ...]:
    for index in sorted(folder.glob(f"{_DIFFUSERS_STEM}*.index.json")):
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} of {len(shards)} shards are missing: {', '.join(missing[:3])}"
            )
        return tuple(folder / shard for shard in shards)
    if (standard := folder / f"{_DIFFUSERS_STEM}.safetensors").is_file():
        return (standard,)
    candidates = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and file.suffix in _SUFFIXES and not _OTHER_WEIGHTS.search(file.name)
    ]
    if len(candidates) == 1:
        return (candidates[0],)
    if candidates:
        names = ", ".join(file.name for file in candidates[:6])
        raise CheckpointError(f"{folder}: several weight files ({names}); give the path of the one to load")
    raise CheckpointError(
        f"{folder}: no transformer in it; expected {_DIFFUSERS_STEM}.safetensors (diffusers, original Wan) or one "
        "*.pt or *.safetensors file"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: unreadable, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, holds {type(value).__name__}")
    return value


def read_located(located: Located) -> Any:
    """What the located files hold; shards are merged into one dictionary."""
    if len(located.files) == 1:
        return read(located.files[0])
    merged: dict[str, Any] = {}
    for file in located.files:
        merged |= read(file)
    return merged


def read(path: Path) -> Any:
    """What one weight file holds: a state dict, or a dictionary of them. Tensors stay on disk until used (mmap).

    The format is told from the first bytes, not from the name.

    Raises:
        CheckpointError: missing, damaged, of an unknown format, or a pickle that would run code.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    size = path.stat().st_size
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` or download the file")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"{path}: a web page, not weights; the download went wrong")
    if head.startswith(b"GGUF"):
        raise CheckpointError(f"{path}: GGUF quantised weights are not supported; use the safetensors or .pt file")
    if head.startswith(b"PK\x03\x04"):
        return _read_pickle(path, size, mmap=True)
    if len(head) > 8 and head[8:9] == b"{":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(_damaged(path, size, error)) from None
    if head.startswith(b"\x80"):  # torch < 1.6 wrote bare pickles, which cannot be mapped
        return _read_pickle(path, size, mmap=False)
    raise CheckpointError(f"{path}: {size} bytes that are neither safetensors nor a torch checkpoint")


def _read_pickle(path: Path, size: int, *, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        named = re.search(r"nsupported (?:global: GLOBAL|GLOBAL|class) ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise CheckpointError(
            f"{path}: holds Python objects besides tensors{what}, and loading those can run code; refused. "
            "Use a file with weights only, or save its state dict as safetensors where you trust it"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(_damaged(path, size, error)) from None


def _damaged(path: Path, size: int, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{path}: damaged or cut short ({size} bytes: {reason}); download it again"
