"""Reading a golden case: tensors, facts, the tiny model. Latents are [B, F, C, h, w] on disk, ours [B, C, F, h, w]."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from longvid.models.checkpoints import load_transformer
from longvid.models.denoiser import Denoiser


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        meta = json.loads((file.metadata() or {}).get("meta", "{}"))
    return tensors, meta


def config(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


@lru_cache(maxsize=8)
def denoiser(directory: Path, weights: str = "weights_generator.safetensors") -> Denoiser:
    """The directory's model, float32, on the CPU."""
    model = load_transformer(directory / weights, config=config(directory)["model"], dtype=torch.float32)
    return Denoiser(model.eval())


def frames_second(x: Tensor) -> Tensor:
    """[B, C, F, h, w] <-> [B, F, C, h, w]."""
    return x.transpose(1, 2)


def difference(ours: Tensor, golden: Tensor) -> float:
    """Largest absolute difference; infinite for another shape or a value that is not finite."""
    if ours.shape != golden.shape or not bool(torch.isfinite(ours).all()):
        return float("inf")
    return float((ours - golden).abs().max()) if ours.numel() else 0.0


RUNNERS: dict[str, Any] = {}
