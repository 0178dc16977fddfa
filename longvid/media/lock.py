"""One writer an output: an advisory lock that the system lets go of when its holder dies."""

from __future__ import annotations

import os
from pathlib import Path

from longvid.errors import OutputLockedError

if os.name == "nt":
    import msvcrt

    def _take(file: int) -> None:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
else:
    import fcntl

    def _take(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class OutputLock:
    """Holds ``path`` (made when missing) until ``release``.

    Raises:
        OutputLockedError: another process holds it; the message gives its id.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, output: str) -> None:
        self._path = path
        while True:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _take(self._file)
            except OSError:
                holder = os.read(self._file, 32).decode("ascii", "replace").strip() or "unknown"
                os.close(self._file)
                raise OutputLockedError(
                    f"out={output!r}: process {holder} is rendering to it; wait for it, or choose another file"
                ) from None
            if self._still_named():
                break
            os.close(self._file)  # its holder removed the file while we waited for it: take the new one
        os.ftruncate(self._file, 0)
        os.write(self._file, f"{os.getpid()}\n".encode())

    def release(self, *, remove: bool = False) -> None:
        """Let go; ``remove`` unlinks the file first, so that nobody locks a file that is gone."""
        if self._file < 0:
            return
        if remove and os.name != "nt":
            self._path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1
        if remove and os.name == "nt":
            self._path.unlink(missing_ok=True)

    def _still_named(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self._path))
        except FileNotFoundError:
            return False
