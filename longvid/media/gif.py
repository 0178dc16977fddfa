"""Animated GIF, frame by frame: each frame has its own palette, and the closing byte moves along."""

from __future__ import annotations

import struct

import numpy as np
from PIL import GifImagePlugin, Image

from longvid.media.fragment import Fragment, frame_rate

_TRAILER = b";"
_LOOP_FOR_EVER = b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"


class GifFormat:
    """256 colours a frame. GIF counts time in 1/100 s, so frames of 16 fps last 6, 6, 6, 7, ... of them.

    Args:
        width, height: pixels.
        fps: frames a second, at most 50: players show shorter frames at 10 fps.
    """

    def __init__(self, *, width: int, height: int, fps: float) -> None:
        self.width, self.height, self.rate = width, height, frame_rate(fps)

    def header(self) -> bytes:
        screen = struct.pack("<HHBBB", self.width, self.height, 0x70, 0, 0)  # no global palette
        return b"GIF89a" + screen + _LOOP_FOR_EVER

    def fragment(self, frames_THWC: np.ndarray, start_frame: int) -> Fragment:
        data = bytearray()
        for index, frame_HWC in enumerate(frames_THWC, start=start_frame):
            picture = Image.fromarray(frame_HWC).quantize(
                256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
            )
            duration = self._centiseconds(index + 1) - self._centiseconds(index)
            data += b"!\xf9\x04" + struct.pack("<BHBB", 4, duration, 0, 0)  # 4: leave the frame in place
            for piece in GifImagePlugin.getdata(picture, (0, 0), include_color_table=True):
                data += piece
        return Fragment(bytes(data), veil=_TRAILER, trailer=_TRAILER)

    def finished(self, path: str, target: str) -> bool:
        return False

    def _centiseconds(self, frame: int) -> int:
        return round(100 * frame / self.rate)
