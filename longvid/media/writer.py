"""Writers: frames in, a file that plays at every instant out.

Order of events when a fragment is appended to ``clip.mp4``:

    1. the fragment is written behind its veil and synced:        ... | free(as long as the fragment) mdat ...
    2. the veil gives way to the fragment's own first bytes, synced: ... | moof mdat ...

A kill between the two leaves a tail that players step over and that the next run writes again. The file gets its final
name when its first fragment is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from longvid.errors import DiskFullError, OutputError
from longvid.media.fragment import VideoFormat

ENDINGS = (".mp4", ".gif", ".webp", ".png")
DEFAULT_CRF = 18.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Position(NamedTuple):
    """How far a file is whole."""

    frames: int
    bytes: int


class VideoWriter(Protocol):
    """What the renderer needs of a writer."""

    position: Position

    def append(self, frames_THWC: np.ndarray) -> Position:
        """Append uint8 [T, H, W, 3]; on return they are on the disk. Raises ``DiskFullError``, ``OutputError``."""
        ...

    def finish(self) -> None:
        """All frames were appended: leave the file in its final form."""
        ...

    def close(self) -> None:
        """Stop writing; what was appended stays."""
        ...


def ending_of(path: str | os.PathLike[str]) -> str:
    """The file ending, if it is one that is written. Raises ``OutputError``."""
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        known = ", ".join(ENDINGS)
        raise OutputError(f"out={os.fspath(path)!r}: the ending says the format, and must be one of {known}")
    return ending


def warn_if_unused(path: str | os.PathLike[str], crf: float, *, stacklevel: int = 2) -> None:
    """RuntimeWarning when a quality was chosen, and the format of ``path`` has none."""
    ending = ending_of(path)
    if crf != DEFAULT_CRF and ending != ".mp4":
        message = f"crf={crf:g}: is not used for {ending}; render to .mp4, or leave it out"
        warnings.warn(message, RuntimeWarning, stacklevel=stacklevel)


def length_of(path: str | os.PathLike[str]) -> int | None:
    """Bytes of the output that is there, 0 for numbered frames, None when there is none."""
    if ending_of(path) == ".png":
        from longvid.media.frames import existing_frames

        return 0 if existing_frames(path) else None
    return os.path.getsize(path) if os.path.isfile(path) else None


def open_writer(
    path: str | os.PathLike[str],
    *,
    width: int,
    height: int,
    fps: float,
    at: Position | None = None,
    crf: float = DEFAULT_CRF,
) -> VideoWriter:
    """A writer for ``path`` by its ending; ``at`` continues a file that is whole up to there (the rest is cut off).

    Raises ``OutputError`` when the file cannot be opened or is shorter than ``at``.
    """
    ending = ending_of(path)
    warn_if_unused(path, crf, stacklevel=5)  # the line that calls pipe.render
    if ending == ".png":
        from longvid.media.frames import FrameWriter

        return FrameWriter(path, at=at)
    form: VideoFormat
    if ending == ".mp4":
        from longvid.media.mp4 import Mp4Format

        form = Mp4Format(width=width, height=height, fps=fps, crf=crf)
    elif ending == ".gif":
        from longvid.media.gif import GifFormat

        form = GifFormat(width=width, height=height, fps=fps)
    else:
        from longvid.media.webp import WebpFormat

        form = WebpFormat(width=width, height=height, fps=fps)
    return FileWriter(path, form, at=at)


class FileWriter:
    """Appends the fragments of a ``VideoFormat`` to one file.

    Args:
        path: the file's final name.
        form: makes the fragments.
        at: None starts a new file, which replaces whatever has the name once its first fragment is whole; a position
            continues the file that is there.
    """

    def __init__(self, path: str | os.PathLike[str], form: VideoFormat, *, at: Position | None = None) -> None:
        self.path, self._form, self._trailer = os.fspath(path), form, b""
        self._part = f"{self.path}.part"
        with told(self.path):
            if at is None or at.frames == 0:
                self._file = os.open(
                    self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o644
                )
                self._named = False
                self.position = Position(0, 0)
            else:
                self._file = os.open(self.path, os.O_RDWR | getattr(os, "O_BINARY", 0))
                self._named = True
                length = os.fstat(self._file).st_size
                if length < at.bytes:
                    os.close(self._file)
                    raise OutputError(
                        f"out={self.path!r}: holds {length} bytes, but {at.bytes} were written; it was changed"
                    )
                self.position = at

    def append(self, frames_THWC: np.ndarray) -> Position:
        fragment = self._form.fragment(frames_THWC, self.position.frames)
        with told(self.path):
            try:
                start = self.position.bytes
                if not self._named:
                    head = self._form.header()
                    self._write(0, head)
                    start = len(head)
                veiled = len(fragment.veil)
                self._write(start, fragment.veil + fragment.data[veiled:] + fragment.trailer)
                os.ftruncate(self._file, start + len(fragment.data) + len(fragment.trailer))
                os.fsync(self._file)
                self._write(start, fragment.data[:veiled])
                if fragment.patch is not None:
                    self._write(*fragment.patch(start + len(fragment.data)))
                os.fsync(self._file)
                if not self._named:
                    os.replace(self._part, self.path)
                    sync_folder(self.path)
                    self._named = True
            except OSError:
                self._cut()
                raise
        self._trailer = fragment.trailer
        self.position = Position(self.position.frames + len(frames_THWC), start + len(fragment.data))
        return self.position

    def finish(self) -> None:
        self.close()
        with told(self.path):
            whole = f"{self.path}.whole"
            try:
                if self._form.finished(self.path, whole):
                    with open(whole, "rb+") as file:
                        os.fsync(file.fileno())
                    os.replace(whole, self.path)
                    sync_folder(self.path)
            except BaseException:
                Path(whole).unlink(missing_ok=True)
                raise

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            if not self._named:
                Path(self._part).unlink(missing_ok=True)

    def _cut(self) -> None:
        """After a failure: drop what is not whole, and give its room back."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, self.position.bytes + len(self._trailer))
            self._write(self.position.bytes, self._trailer)

    def _write(self, offset: int, data: bytes) -> None:
        os.lseek(self._file, offset, os.SEEK_SET)
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]


@contextlib.contextmanager
def told(path: str) -> Iterator[None]:
    """Operating system errors about ``path`` as errors that say what to do."""
    try:
        yield
    except (DiskFullError, OutputError):
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                error.errno, f"no room on the disk for {path!r}; what was rendered before is kept"
            ) from error
        raise OutputError(f"out={path!r}: cannot be written ({error.strerror or error})") from error


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Make a rename inside ``path``'s folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
