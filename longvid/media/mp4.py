"""Fragmented MP4 with H.264, one closed group of pictures a fragment.

    ftyp moov | moof mdat | moof mdat | ...          while rendering: plays up to the last whole fragment
    ftyp moov(tables) mdat                           finished: the same packets as an ordinary, seekable file

An encoder is opened for each fragment, so its bytes depend on nothing but its frames; a fresh x264 costs a few
milliseconds. There are no B-frames, so that decoding and showing order agree and fragments need no overlap.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from longvid.errors import InputError
from longvid.media.fragment import Fragment, frame_rate

_BT709 = 1  # H.264's code for BT.709, in primaries, transfer and matrix alike


class Mp4Format:
    """H.264 4:2:0 in MP4.

    Args:
        width, height: pixels, even.
        fps: frames a second.
        crf: x264's quality, 0 (lossless) to 51; 18 is hard to tell from the source.
        preset: x264's preset.
    """

    def __init__(self, *, width: int, height: int, fps: float, crf: float = 18, preset: str = "veryfast") -> None:
        if width % 2 or height % 2:
            raise InputError(f"out: {width}x{height} pixels cannot be H.264, whose sides are even; use .webp or .png")
        self.width, self.height, self.crf, self.preset = width, height, crf, preset
        self.rate = frame_rate(fps)
        # Ticks a second: a multiple of the numerator, so that a frame lasts a whole number of ticks.
        self.timescale = self.rate.numerator * max(1, -(-10_000 // self.rate.numerator))
        self.ticks = int(self.timescale / self.rate)
        self._header: bytes | None = None

    def header(self) -> bytes:
        if self._header is None:
            black = np.zeros((1, self.height, self.width, 3), np.uint8)
            self._header, _ = _split(self._encode(black))
        return self._header

    def fragment(self, frames_THWC: np.ndarray, start_frame: int) -> Fragment:
        header, body = _split(self._encode(frames_THWC))
        if header != self.header():
            raise RuntimeError("the encoder changed its parameters between fragments")
        _patch(body, sequence=start_frame + 1, decode_time=start_frame * self.ticks)
        # A `free` box as long as the fragment: until the eight bytes become moof's, players step over it.
        return Fragment(bytes(body), veil=struct.pack(">I4s", len(body), b"free"))

    def finished(self, path: str, target: str) -> bool:
        """Copy the packets into an ordinary MP4 with its index in front."""
        options = {"movflags": "+faststart", "fflags": "+bitexact", "video_track_timescale": str(self.timescale)}
        with av.open(path) as source, av.open(target, "w", format="mp4", options=options) as sink:
            video = source.streams.video[0]
            copy = sink.add_stream_from_template(video)
            for packet in source.demux(video):
                if packet.dts is None:  # the demuxer's closing packet
                    continue
                packet.stream = copy
                sink.mux(packet)
        return True

    def _encode(self, frames_THWC: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        options = {
            "movflags": "empty_moov+default_base_moof+frag_custom+skip_trailer",
            "video_track_timescale": str(self.timescale),
            "fflags": "+bitexact",
        }
        with av.open(buffer, "w", format="mp4", options=options) as container:
            stream = container.add_stream("libx264", rate=self.rate)
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
            # One thread: the bits must not depend on the machine's number of cores. No macroblock tree: with AVX-512
            # x264 reads beyond its table when a picture is a few blocks wide, and about one fragment in 100 differs.
            stream.options = {
                "preset": self.preset,
                "crf": str(self.crf),
                "x264-params": "bframes=0:scenecut=0:keyint=infinite:threads=1:mbtree=0",
            }
            context = stream.codec_context
            context.color_range = av.video.reformatter.ColorRange.MPEG
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            for index, frame_HWC in enumerate(frames_THWC):
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
                picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
                picture.pts, picture.time_base = index, Fraction(1) / self.rate
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        return buffer.getvalue()


def _boxes(data: bytes | bytearray, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the ISO boxes between ``start`` and ``end``."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        yield kind, start, start + size
        start += size


def _split(data: bytes) -> tuple[bytes, bytearray]:
    """The initialisation boxes, and the one moof + mdat pair, of a fragmented MP4."""
    head, body = bytearray(), bytearray()
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind in (b"ftyp", b"moov"):
            head += data[start:end]
        elif kind in (b"moof", b"mdat"):
            body += data[start:end]
    if [kind for kind, _, _ in _boxes(body, 0, len(body))] != [b"moof", b"mdat"]:
        raise RuntimeError("the muxer did not make one fragment")
    return bytes(head), body


def _patch(body: bytearray, *, sequence: int, decode_time: int) -> None:
    """Write the fragment's sequence number (mfhd) and decode time (tfdt, version 1) in place."""
    _, start, end = next(_boxes(body, 0, len(body)))
    for kind, at, stop in _boxes(body, start + 8, end):
        if kind == b"mfhd":
            struct.pack_into(">I", body, at + 12, sequence)
        elif kind == b"traf":
            for inner, place, _ in _boxes(body, at + 8, stop):
                if inner == b"tfdt":
                    assert body[place + 8] == 1  # version 1: a 64-bit time
                    struct.pack_into(">Q", body, place + 12, decode_time)
