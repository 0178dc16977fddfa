"""Noise that depends on the seed, the block and the step alone.

So a stream, a render, a resumed render and a re-ordered schedule all draw the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NoiseSource = Callable[[int, int, tuple[int, ...]], Tensor]
"""(block, step, shape) -> standard normal float32 on the CPU; step 0: initial noise, step i: the draw before it."""


def noise_for(seed: int, block: int, step: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32 on the CPU, of its own generator."""
    digest = hashlib.sha256(f"{seed}/{block}/{step}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


class SeededNoise:
    """Noise of a batch: sample i draws with the i-th seed, so a batch equals its samples rendered one by one.

    seeds: one seed, which sample i turns into seed + i, or one a sample.
    """

    def __init__(self, seeds: int | Sequence[int]) -> None:
        self.seeds = seeds

    def __call__(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        batch = shape[0]
        seeds = [self.seeds + i for i in range(batch)] if isinstance(self.seeds, int) else list(self.seeds)
        if len(seeds) != batch:
            raise ValueError(f"seed={seeds}: give one, or one a sample ({batch})")
        return torch.cat([noise_for(seed, block, step, (1, *shape[1:])) for seed in seeds])
