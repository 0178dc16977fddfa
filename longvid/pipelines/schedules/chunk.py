"""Chunk-wise: one block after the other, all its steps in a row (Self-Forcing, arXiv 2506.08009, algorithm 2)."""

from __future__ import annotations

from .blocks import Window


class ChunkSchedule:
    """Block b takes calls b * steps ... b * steps + steps - 1."""

    name = "chunk"
    blocks_per_call = 1

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def window(self, w: int, blocks: int | None) -> Window | None:
        block, step = divmod(w, self.steps)
        if blocks is not None and block >= blocks:
            return None
        return Window(((block, step),))

    def entered(self, w: int) -> int:
        return -(-w // self.steps)
