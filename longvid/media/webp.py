"""Animated WebP, frame by frame: an ANMF chunk is appended, then the RIFF length in the header takes it in."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image

from longvid.media.fragment import Fragment, frame_rate

_ANIMATION = 0x02
_NO_BLEND = 0x02


class WebpFormat:
    """Animated WebP; time in milliseconds.

    Args:
        width, height: pixels, at most 16,383.
        fps: frames a second.
        quality: 0 to 100.
    """

    def __init__(self, *, width: int, height: int, fps: float, quality: int = 90) -> None:
        self.width, self.height, self.rate, self.quality = width, height, frame_rate(fps), quality

    def header(self) -> bytes:
        canvas = bytes([_ANIMATION, 0, 0, 0]) + _uint24(self.width - 1) + _uint24(self.height - 1)
        chunks = _chunk(b"VP8X", canvas) + _chunk(b"ANIM", struct.pack("<IH", 0xFF000000, 0))  # loop for ever
        return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks

    def fragment(self, frames_THWC: np.ndarray, start_frame: int) -> Fragment:
        data = bytearray()
        for index, frame_HWC in enumerate(frames_THWC, start=start_frame):
            duration = self._milliseconds(index + 1) - self._milliseconds(index)
            place = _uint24(0) + _uint24(0) + _uint24(self.width - 1) + _uint24(self.height - 1)
            data += _chunk(b"ANMF", place + _uint24(duration) + bytes([_NO_BLEND]) + self._still(frame_HWC))
        return Fragment(bytes(data), patch=lambda length: (4, struct.pack("<I", length - 8)))

    def finished(self, path: str, target: str) -> bool:
        return False

    def _still(self, frame_HWC: np.ndarray) -> bytes:
        """The bitstream chunk (VP8 or VP8L) of one picture."""
        buffer = io.BytesIO()
        Image.fromarray(frame_HWC).save(buffer, "WEBP", quality=self.quality, method=2)
        return buffer.getvalue()[12:]

    def _milliseconds(self, frame: int) -> int:
        return round(1000 * frame / self.rate)


def _uint24(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
