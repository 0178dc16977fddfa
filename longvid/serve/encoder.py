"""Frames to pictures for the wire: JPEG and WebP, each on its own, or one H.264 stream a session.

Shape letters: T frames, H W pixels, 3 colours.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import av
import numpy as np
from PIL import Image

from .messages import Format
from .protocol import ProtocolError

JPEG_QUALITY = 90
WEBP_QUALITY = 85
H264_CRF = "20"


class Picture(NamedTuple):
    """An encoded frame. key: it decodes without the frames before it."""

    data: bytes
    key: bool


class FrameEncoder(Protocol):
    """What every format can do. One a session; not shared between threads."""

    def encode(self, frames_THW3: np.ndarray) -> list[Picture]:
        """One picture a frame, in order. frames: uint8 [T, H, W, 3] of one block; the first becomes a key."""

    def close(self) -> None:
        """Free the encoder. It may be called more than once."""


def make_encoder(kind: Format, width: int, height: int, fps: float) -> FrameEncoder:
    """A new encoder. Raises ProtocolError when the format cannot hold pictures of that size."""
    if kind == "h264":
        return H264Encoder(width, height, fps)
    return StillEncoder(kind)


class StillEncoder:
    """JPEG or WebP: every frame stands alone."""

    def __init__(self, kind: Format) -> None:
        self._options: dict[str, object]
        if kind == "jpeg":
            # Small pictures: colour at full resolution costs little and keeps edges of flat colours clean.
            self._options = {"format": "JPEG", "quality": JPEG_QUALITY, "subsampling": 0}
        else:
            self._options = {"format": "WEBP", "quality": WEBP_QUALITY, "method": 0}

    def encode(self, frames_THW3: np.ndarray) -> list[Picture]:
        pictures = []
        for frame in frames_THW3:
            buffer = io.BytesIO()
            Image.fromarray(frame).save(buffer, **self._options)  # type: ignore[arg-type]
            pictures.append(Picture(buffer.getvalue(), True))
        return pictures

    def close(self) -> None:
        pass


class H264Encoder:
    """H.264 constrained baseline, Annex B, parameter sets before every key frame: what WebCodecs takes as it comes.

    One access unit a frame and no reordering (zerolatency), so a frame can be shown when it arrives. The first frame of
    each block is a key frame: a viewer that comes back decodes from there.
    """

    def __init__(self, width: int, height: int, fps: float) -> None:
        if width % 2 or height % 2:
            raise ProtocolError(
                "bad_request", f"format='h264': needs even sizes, the video is {width}x{height}; use jpeg"
            )
        rate = Fraction(fps).limit_denominator(1001)
        self._context: av.VideoCodecContext | None = av.CodecContext.create("libx264", "w")
        self._context.width, self._context.height, self._context.pix_fmt = width, height, "yuv420p"
        self._context.framerate, self._context.time_base = rate, 1 / rate
        self._context.thread_count = 1
        self._context.options = {
            "preset": "veryfast",
            "tune": "zerolatency",
            "profile": "baseline",
            "crf": H264_CRF,
            # Said out loud: players guess the colour matrix of untagged streams, and guess differently.
            "x264-params": "annexb=1:repeat-headers=1:keyint=infinite:scenecut=0"
            ":colorprim=bt709:transfer=bt709:colormatrix=bt709",
        }
        self._count = 0

    def encode(self, frames_THW3: np.ndarray) -> list[Picture]:
        if self._context is None:
            raise ValueError("encode(): the encoder is closed")
        pictures = []
        for i, frame in enumerate(frames_THW3):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            picture.pts = self._count
            picture.pict_type = av.video.frame.PictureType.I if i == 0 else av.video.frame.PictureType.NONE
            self._count += 1
            packets = self._context.encode(picture)
            pictures.append(self._joined(packets))
        return pictures

    @staticmethod
    def _joined(packets: Sequence[av.Packet[Any]]) -> Picture:
        if len(packets) != 1:
            raise RuntimeError(f"h264: {len(packets)} packets for one frame; the encoder reorders or delays")
        return Picture(bytes(packets[0]), bool(packets[0].is_keyframe))

    def close(self) -> None:
        if self._context is not None:
            self._context.encode(None)
            self._context = None
