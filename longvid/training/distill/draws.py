"""The random numbers of one training pass, as a function of the seed and the pass alone.

So a resumed run draws what an uninterrupted one would have drawn, with no generator state to save; and what must be the
same on every process (lengths, exit steps: they decide which model calls are made) is the same without a broadcast.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000


class Draws(Protocol):
    """Where a pass takes its random numbers from, in the order in which it asks."""

    def integers(self, low: int, high: int, count: int = 1) -> list[int]:
        """`count` numbers in [low, high), the same on every process."""
        ...

    def uniform(self) -> float:
        """A number in [0, 1), the same on every process."""
        ...

    def timesteps(self, batch: int) -> Tensor:
        """int64 [batch] in [0, 1000), of this process."""
        ...

    def normal(self, shape: tuple[int, ...], within: tuple[int, int] | None = None) -> Tensor:
        """Standard normal float32 [B, C, F, h, w], of this process.

        within: (frames of the model call, first of them that `shape` covers). Only recorded draws need it: Rolling
        Forcing's release draws for a whole window and uses one block of it.
        """
        ...


class SeededDraws:
    """Draws of pass `place`, such as ("critic", step, micro-batch), on process `rank`."""

    def __init__(self, seed: int, *place: int | str, rank: int = 0, device: torch.device | str = "cpu") -> None:
        self._shared = _generator(seed, *place)
        self._own = _generator(seed, *place, "rank", rank)
        self._device = device

    def integers(self, low: int, high: int, count: int = 1) -> list[int]:
        return [int(i) for i in torch.randint(low, high, (count,), generator=self._shared)]

    def uniform(self) -> float:
        return float(torch.rand((), generator=self._shared, dtype=torch.float64))

    def timesteps(self, batch: int) -> Tensor:
        return torch.randint(0, TRAIN_TIMESTEPS, (batch,), generator=self._own).to(self._device)

    def normal(self, shape: tuple[int, ...], within: tuple[int, int] | None = None) -> Tensor:
        return torch.randn(shape, generator=self._own, dtype=torch.float32).to(self._device)


def _generator(*place: int | str) -> torch.Generator:
    digest = hashlib.sha256("/".join(map(str, place)).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
