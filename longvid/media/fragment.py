"""Fragments: the bytes of one block of frames, and how a file grows by them without ever being broken.

Every format here makes the bytes of a block from that block's frames and its place alone (for H.264 that is a closed
group of pictures from a fresh encoder). So a render that is cut off and goes on writes the very bytes that an
uninterrupted one writes.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np


class Fragment(NamedTuple):
    """Bytes to append, and how to make them appear at once."""

    data: bytes
    """What is appended."""
    veil: bytes = b""
    """Stands in for the first bytes of ``data`` until the rest is on the disk; a player takes it for the end."""
    trailer: bytes = b""
    """Follows ``data`` and is overwritten by the next fragment."""
    patch: Callable[[int], tuple[int, bytes]] | None = None
    """Given the file's new length, an (offset, bytes) that commits the fragment (a length field in a header)."""


class VideoFormat(Protocol):
    """A file format that grows by fragments."""

    def header(self) -> bytes:
        """The file's first bytes."""
        ...

    def fragment(self, frames_THWC: np.ndarray, start_frame: int) -> Fragment:
        """The bytes of frames ``start_frame ..``, uint8 [T, H, W, 3], T at least 1."""
        ...

    def finished(self, path: str, target: str) -> bool:
        """Write a tidier equal of ``path`` to ``target``; False when the file is as good as it gets."""
        ...


def frame_rate(fps: float) -> Fraction:
    """``fps`` as the fraction that files carry: 23.976 becomes 24000/1001."""
    for nominal in (24, 30, 48, 60, 120):
        if abs(fps - nominal / 1.001) < 0.005:
            return Fraction(nominal * 1000, 1001)
    return Fraction(fps).limit_denominator(100)
