"""May this output be written? Asked before weights are loaded, and again under the lock."""

from __future__ import annotations

import os
from pathlib import Path

from longvid.errors import OutputError
from longvid.media.journal import journal_folder
from longvid.media.writer import ending_of, length_of


def check_output(path: str | os.PathLike[str], *, resume: bool = False, overwrite: bool = False) -> None:
    """Raise ``OutputError`` unless a render may go to ``path``: known ending, writable place, nothing in the way.

    ``resume`` goes on with an unfinished render, or accepts a finished one; ``overwrite`` replaces what is there.
    """
    text = os.fspath(path)
    if resume and overwrite:
        raise OutputError("resume, overwrite: give one of them, not both")
    if "\0" in text:
        raise OutputError(f"out={text!r}: holds a NUL character")
    ending_of(path)
    if os.path.isdir(path):
        raise OutputError(f"out={text!r}: is a folder; add a file name such as {os.path.join(text, 'out.mp4')!r}")
    folder = Path(os.path.abspath(path)).parent
    if not folder.is_dir():
        raise OutputError(f"out={text!r}: there is no folder {str(folder)!r}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"out={text!r}: the folder {str(folder)!r} cannot be written to")
    if os.path.exists(path) and not os.path.isfile(path):
        raise OutputError(f"out={text!r}: is no ordinary file; choose another name")
    if resume or overwrite:
        return
    if (journal_folder(path) / "recipe.json").is_file():
        raise OutputError(
            f"out={text!r}: an unfinished render; resume=True (--resume) goes on with it, overwrite=True (--overwrite) "
            "starts anew"
        )
    if length_of(path) is not None:
        raise OutputError(f"out={text!r}: exists; choose another name, or use overwrite=True (--overwrite)")
