"""The last frames of a video file, as pictures to go on from."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import av

from longvid.errors import InputError


def last_frames(path: str | os.PathLike[str], *, block: int, most: int, temporal: int = 4) -> list[Any]:
    """The last frames of ``path`` as PIL images: as many as fill whole blocks of latent frames.

    block: latent frames a block. most: latent frames at most. temporal: video frames a latent frame, of which the
    first holds one; so F latent frames are 1 + (F - 1) * temporal pictures.

    Raises ``InputError`` for a file that is no video, or is shorter than one block.
    """
    most = max(block, most // block * block)
    kept: deque[Any] = deque(maxlen=1 + (most - 1) * temporal)
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                raise InputError(f"video={os.fspath(path)!r}: holds no pictures")
            for frame in container.decode(video=0):
                kept.append(frame)
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"video={os.fspath(path)!r}: cannot be read ({error.strerror or error})") from None
    latents = (1 + (len(kept) - 1) // temporal) // block * block if kept else 0
    if not latents:
        least = 1 + (block - 1) * temporal
        raise InputError(f"video={os.fspath(path)!r}: holds {len(kept)} frames; {least} or more are needed")
    return [frame.to_image() for frame in list(kept)[-(1 + (latents - 1) * temporal) :]]
