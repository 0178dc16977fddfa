"""Rolling Forcing's joint window (arXiv 2509.25161, sec. 3.2): as many blocks as steps, noise rising to the newest.

::

    w       0     1     2     3     4     5    6    7        T = 3 steps, 6 blocks; entries: step of each block
    block 0 0     1     2                                    warm-up: the window grows
    block 1       0     1     2                              steady: one block enters, the oldest leaves clean
    ...
    block 5                                0    1    2       drain: nothing enters
"""

from __future__ import annotations

from .blocks import Window


class RollingSchedule:
    """Call w carries blocks max(0, w - T + 1) ... min(blocks - 1, w); block b is at step w - b."""

    name = "rolling"

    def __init__(self, steps: int) -> None:
        self.steps = self.blocks_per_call = steps

    def window(self, w: int, blocks: int | None) -> Window | None:
        first = max(0, w - self.steps + 1)
        last = w if blocks is None else min(w, blocks - 1)
        if first > last:
            return None
        return Window(tuple((block, w - block) for block in range(first, last + 1)))

    def entered(self, w: int) -> int:
        return w
