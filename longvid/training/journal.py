"""Logs and checkpoints shared by the training stages: JSON lines, atomic files, resumable."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn


class JsonLog:
    """Append-only log, one JSON object a line, flushed at each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **values: object) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}) + "\n")


def save_checkpoint(
    path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ema: dict[str, Tensor]
) -> None:
    """Write step, weights, their moving average and the optimiser's state, then rename: never half a file."""
    partial = path.with_suffix(".part")
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema}, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: dict[str, Tensor]) -> int:
    """Load what :func:`save_checkpoint` wrote, in place; returns the step to go on from (0 without a file)."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, mmap=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for k, v in state["ema"].items():
        ema[k].copy_(v)
    return int(state["step"])
