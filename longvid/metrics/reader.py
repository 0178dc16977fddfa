"""Frames of a video file, one at a time: a ten-minute file needs the memory of one frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from longvid.errors import InputError


class VideoReader:
    """Streams the frames of a file; ``fps``, ``height`` and ``width`` are known before the first frame is decoded.

    Iterating decodes from the start. ``truncated`` says afterwards whether decoding stopped at damaged data, as it
    does on the file of a render that was killed.
    """

    def __init__(self, path: str | Path) -> None:
        """Open ``path``. Raises InputError when it does not exist or holds no video stream that can be read."""
        self.path = Path(path)
        self.truncated = False
        if not self.path.is_file():
            raise InputError(f"video={str(path)!r}: no such file")
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise InputError(f"video={str(path)!r}: has no video stream")
                stream = container.streams.video[0]
                rate = stream.average_rate or stream.guessed_rate
                self.height, self.width = stream.height, stream.width
        except av.FFmpegError as error:
            raise InputError(f"video={str(path)!r}: cannot be read as a video ({error})") from error
        if not rate:
            raise InputError(f"video={str(path)!r}: does not say its frame rate")
        self.fps = float(rate)

    def count(self) -> int:
        """Number of frames: as the file says, or counted without decoding where it does not say."""
        with av.open(str(self.path)) as container:
            stream = container.streams.video[0]
            return stream.frames or sum(1 for packet in container.demux(stream) if packet.size)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield every frame as uint8 [H, W, 3], sRGB."""
        self.truncated = False
        with av.open(str(self.path)) as container:
            stream = container.streams.video[0]
            # Not frame threads: what a thread finds wrong with the last frames is lost when the decoder is drained, so
            # whether damage is seen would depend on the number of cores.
            stream.thread_type = "SLICE"
            try:
                for packet in container.demux(stream):
                    self.truncated |= packet.is_corrupt
                    for frame in packet.decode():
                        yield frame.to_ndarray(format="rgb24")
            except av.FFmpegError:
                self.truncated = True
