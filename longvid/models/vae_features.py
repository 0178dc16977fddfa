"""What a Wan VAE stream remembers between calls: the last inputs of every causal convolution, tile by tile."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["FeatureMaps", "Features"]

# diffusers' decoder leaves this word in the slot of a temporal upsampler that has seen one latent frame.
_BYPASSED = "Rep"
_EMPTY, _TENSOR, _MARKER = 0, 1, 2
# What diffusers calls feat_cache: one entry a causal convolution.
Features = list[Tensor | str | None]


class FeatureMaps:
    """What a stream remembers: for each spatial tile, one entry a causal convolution (None, a marker or a tensor)."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.tiles: list[Features] = []

    def start(self, tiles: int) -> None:
        self.tiles = [[None] * self.slots for _ in range(tiles)]

    @property
    def bytes(self) -> int:
        tensors = (entry for tile in self.tiles for entry in tile if isinstance(entry, Tensor))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def to(self, device: torch.device) -> None:
        for tile in self.tiles:
            tile[:] = [entry.to(device) if isinstance(entry, Tensor) else entry for entry in tile]

    def state_dict(self) -> dict[str, Tensor]:
        kinds = torch.full((len(self.tiles), self.slots), _EMPTY, dtype=torch.int64)
        state = {}
        for t, tile in enumerate(self.tiles):
            for s, entry in enumerate(tile):
                if isinstance(entry, Tensor):
                    kinds[t, s] = _TENSOR
                    state[f"features.{t}.{s}"] = entry.detach().clone(memory_format=torch.contiguous_format)
                elif entry == _BYPASSED:
                    kinds[t, s] = _MARKER
        state["kinds"] = kinds
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        kinds = state["kinds"]
        if kinds.ndim != 2 or kinds.shape[1] != self.slots:
            raise ValueError(
                f"state: it has {tuple(kinds.shape)} entries, this VAE keeps {self.slots} a tile; "
                "it was saved with another VAE"
            )
        named = {name for name in state if name.startswith("features.")}
        wanted = {f"features.{t}.{s}" for t, s in (kinds == _TENSOR).nonzero().tolist()}
        if named != wanted:
            raise ValueError(f"state: damaged; features differ from the list: {sorted(named ^ wanted)[:4]}")
        self.tiles = [
            [
                state[f"features.{t}.{s}"].clone() if kind == _TENSOR else _BYPASSED if kind == _MARKER else None
                for s, kind in enumerate(row)
            ]
            for t, row in enumerate(kinds.tolist())
        ]
