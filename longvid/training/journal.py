"""Logs and checkpoints shared by the training stages: JSON lines, atomic files, resumable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from longvid.errors import InputError


class JsonLog:
    """Append-only log, one JSON object a line, flushed at each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **values: object) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}) + "\n")

    def cut(self, step: int) -> None:
        """Drop the rows of steps after ``step``, which a resumed run does again, and a last line that was cut short."""
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        partial = self._path.with_suffix(".part")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, self._path)


def changed(one: Mapping[str, Any], other: Mapping[str, Any], where: str = "") -> list[str]:
    """Settings that differ between two plain mappings, as "name: old -> new"."""
    found: list[str] = []
    for key in [*one, *(k for k in other if k not in one)]:
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += changed(a, b, f"{where}{key}.")
        elif a != b:
            found.append(f"{where}{key}: {a!r} -> {b!r}")
    return found


def save_checkpoint(path: Path, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a stage's state and the settings that it came from, then rename: never half a file."""
    partial = path.with_suffix(".part")
    torch.save({**state, "settings": dict(settings)}, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What :func:`save_checkpoint` wrote, on the CPU; None without a file.

    Raises InputError for a checkpoint of other settings, or one that does not say what its settings were.
    """
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    if "settings" not in state:
        raise InputError(
            f"checkpoint={path}: it is of an earlier version, which drew other batches, and does not say its settings: "
            "it can be exported but not resumed; use another --folder, or move it away to train anew"
        )
    if differences := changed(state["settings"], settings):
        raise InputError(
            f"checkpoint={path}: the training to resume had other settings ({'; '.join(differences)}); "
            "use those, or another --folder"
        )
    return state
