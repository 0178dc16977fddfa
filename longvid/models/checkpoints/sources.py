"""Where a checkpoint comes from: a path, a known name, or the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from longvid.errors import nearest
from longvid.models.checkpoints.known import KNOWN, Known
from longvid.models.checkpoints.report import CheckpointError

__all__ = ["Fetched", "fetch", "fetch_folder"]

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./-]+\.(?:safetensors|pt|pth|ckpt|bin)))?")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A checkpoint on this machine."""

    path: Path
    """File or folder."""
    lora: Path | None = None
    """The LoRA that a known checkpoint needs on top."""


def fetch(source: str | Path) -> Fetched:
    """Bring a checkpoint to this machine; a local path is taken as it is, and wins over a name.

    Raises:
        CheckpointError: no such path, name or repository, or the hub cannot be reached.
    """
    path = Path(source).expanduser()
    if path.exists():
        return Fetched(path=path)
    text = str(source)
    if text in KNOWN:
        return _fetch_known(KNOWN[text])
    match = _HUB_ID.fullmatch(text)
    if match is None or path.is_absolute():
        near = nearest(text, KNOWN)
        hint = f"; did you mean the checkpoint {near!r}?" if near else f"; known checkpoints: {', '.join(KNOWN)}"
        raise CheckpointError(f"{text}: no such file or folder{hint}")
    if match["file"]:
        return Fetched(path=_download(match["repo"], match["file"]))
    return Fetched(path=fetch_folder(match["repo"], ["model_index.json", "config.json", "transformer/*"]))


def _fetch_known(known: Known) -> Fetched:
    if known.file.endswith("/"):
        return Fetched(path=fetch_folder(known.hub, ["model_index.json", f"{known.file}*"]))
    lora = _download(known.hub, known.lora) if known.lora else None
    return Fetched(path=_download(known.hub, known.file), lora=lora)


def fetch_folder(source: str | Path, patterns: list[str]) -> Path:
    """A folder: local, or the matching files of a hub repository.

    Raises:
        CheckpointError: neither is there.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(_unreachable(str(source), error)) from None


def _download(repository: str, file: str) -> Path:
    try:
        return Path(hf_hub_download(repository, file))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(_unreachable(f"{repository}/{file}", error)) from None


def _unreachable(what: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"{what}: no such path here, and the Hugging Face hub did not give it ({reason}); "
        "download it elsewhere and give the path"
    )
