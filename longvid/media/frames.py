"""Numbered PNG files, each of which appears whole under its name."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from PIL import Image

from longvid.errors import OutputError
from longvid.media.writer import Position, sync_folder, told

_FIELD = re.compile(r"%0?(\d*)d")


def frame_pattern(path: str | os.PathLike[str]) -> str:
    """``clip.png`` names ``clip_000000.png``, ``clip_000001.png``, ...; a ``%06d`` in the name is used as it is.

    Raises ``OutputError`` for a pattern that cannot number frames.
    """
    text = os.fspath(path)
    name = Path(text).name
    if "%" not in name:
        return str(Path(text).with_name(f"{Path(text).stem}_%06d.png"))
    if len(_FIELD.findall(name)) != 1 or name.count("%") != 1:
        raise OutputError(f"out={text!r}: must hold one %06d, which becomes the frame's number")
    return text


def existing_frames(path: str | os.PathLike[str]) -> list[Path]:
    """Files that the pattern of ``path`` names, sorted."""
    pattern = Path(frame_pattern(path))
    head, tail = _FIELD.split(pattern.name)[0], _FIELD.split(pattern.name)[-1]
    name = re.compile(re.escape(head) + r"\d+" + re.escape(tail))
    return sorted(entry for entry in pattern.parent.glob("*.png") if name.fullmatch(entry.name))


class FrameWriter:
    """Writes frame ``i`` to ``pattern % i``.

    Args:
        path: see ``frame_pattern``.
        at: continue behind that many frames; None starts anew and removes frames of an earlier render at the end.
    """

    def __init__(self, path: str | os.PathLike[str], *, at: Position | None = None) -> None:
        self.path = os.fspath(path)
        self._pattern = frame_pattern(path)
        self.position = Position(at.frames if at else 0, 0)

    def append(self, frames_THWC: np.ndarray) -> Position:
        with told(self.path):
            for index, frame_HWC in enumerate(frames_THWC, start=self.position.frames):
                target = self._pattern % index
                part = target + ".part"
                try:
                    with open(part, "wb") as file:
                        Image.fromarray(frame_HWC).save(file, "PNG", compress_level=1)
                        file.flush()
                        os.fsync(file.fileno())
                    os.replace(part, target)
                except OSError:
                    Path(part).unlink(missing_ok=True)
                    raise
            sync_folder(target)
        self.position = Position(self.position.frames + len(frames_THWC), 0)
        return self.position

    def finish(self) -> None:
        """Remove frames of an earlier, longer render under the same pattern."""
        with told(self.path):
            kept = {Path(self._pattern % index) for index in range(self.position.frames)}
            for leftover in existing_frames(self.path):
                if leftover not in kept:
                    leftover.unlink()

    def close(self) -> None:
        """Nothing is held open."""
