"""Blocks of latent frames and the model calls that carry them: integers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from longvid.errors import InputError


@dataclass(frozen=True, slots=True)
class Block:
    """Latent frames [start, start + frames) of the video, the `index`-th block."""

    index: int
    start: int
    frames: int

    @property
    def end(self) -> int:
        return self.start + self.frames


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """How a video is cut into blocks: `frames_per_block` each, the first frame alone if it is independent."""

    frames_per_block: int
    independent_first_frame: bool = False

    def __getitem__(self, index: int) -> Block:
        if not self.independent_first_frame:
            return Block(index, index * self.frames_per_block, self.frames_per_block)
        if index == 0:
            return Block(0, 0, 1)
        return Block(index, 1 + (index - 1) * self.frames_per_block, self.frames_per_block)

    def count(self, frames: int) -> int:
        """Blocks in a video of `frames` latent frames. Raises InputError naming the nearest lengths that fit."""
        first = 1 if self.independent_first_frame else 0
        n = self.frames_per_block
        if frames < max(first, 1) or (frames - first) % n:
            low = first + max(0, (frames - first) // n) * n
            near = [str(f) for f in (low, low + n) if f > 0]
            rule = f"{n}k+1" if first else f"a multiple of {n}"
            raise InputError(f"latent frames={frames}: must be {rule}; nearest {' or '.join(near)}")
        return first + (frames - first) // n

    def next_block(self, frame: int) -> int:
        """Index of the first block that starts at `frame` or later."""
        first = 1 if self.independent_first_frame else 0
        if frame <= 0:
            return 0
        return first + -(-(frame - first) // self.frames_per_block)

    def round_up(self, frames: int) -> int:
        """The smallest length of whole blocks that is at least `frames`."""
        first = 1 if self.independent_first_frame else 0
        n = self.frames_per_block
        return max(first + -(-max(frames - first, 0) // n) * n, first or n)


@dataclass(frozen=True, slots=True)
class Window:
    """One model call: (block index in the scene, step index) pairs, oldest block first.

    Step 0 starts from pure noise; the last step gives the clean block.
    """

    entries: tuple[tuple[int, int], ...]


class Schedule(Protocol):
    """Which blocks are denoised together, at which step, in the w-th model call of a scene."""

    name: str
    steps: int
    blocks_per_call: int
    """At most."""

    def window(self, w: int, blocks: int | None) -> Window | None:
        """The w-th call of a scene of `blocks` blocks (None: endless), or None when the scene is done."""
        ...

    def entered(self, w: int) -> int:
        """How many blocks have entered before call w."""
        ...
