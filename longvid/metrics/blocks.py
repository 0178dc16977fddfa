"""Where the blocks and the hard cuts of a rendered file lie, as its render noted them in ``clip.mp4.frames_md5``."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from longvid.errors import InputError
from longvid.media.journal import read_marks, sidecar
from longvid.metrics.reader import VideoReader


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedBlocks:
    """Frame numbers, from 0."""

    boundaries: frozenset[int]
    """First frames of the blocks, those that begin the video or a scene left out: nothing leads into them."""
    cuts: frozenset[int]
    """First frames of the scenes behind hard cuts, where decoder and block grid begin anew."""
    temporal_stride: int | None
    """Video frames of a latent frame; None where no scene holds two."""


def rendered_blocks(reader: VideoReader) -> RenderedBlocks | None:
    """The blocks of a video that longvid rendered; None where nothing beside the file tells them.

    Raises InputError when the ``.frames_md5`` beside the file is not this video's: another size or number of frames.
    """
    found = read_marks(reader.path)
    if found is None:
        return None
    recipe, marks = found
    noted = len(marks), recipe.get("width"), recipe.get("height")
    here = reader.count(), reader.width, reader.height
    if noted != here:
        raise InputError(
            "{}: tells the blocks of {} frames of {}x{}, this video has {} of {}x{}; "
            "remove it, or give the blocks yourself".format(sidecar(reader.path).name, *noted, *here)
        )
    begun = [index for index, mark in enumerate(marks) if mark != "-"]
    return RenderedBlocks(
        boundaries=frozenset(index for index, mark in enumerate(marks) if mark == "block"),
        cuts=frozenset(index for index, mark in enumerate(marks) if mark == "scene" and index),
        # The largest gap: the first latent frame of a scene is shorter, and the last one of a video may be.
        temporal_stride=max((after - index for index, after in pairwise(begun)), default=None),
    )
