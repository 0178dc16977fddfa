"""What a user did wrong, in one line: argument, value, rule, fix.

Everything here derives from ``InputError``, itself a ``ValueError``; the command line prints its message and exits
with code 2. Anything else that escapes is a defect of longvid's and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A value that cannot be used. The message names the argument, the value, the rule and the fix."""


class UnknownNameError(InputError):
    """A name that is not among the known ones; the message proposes the nearest."""

    def __init__(self, kind: str, name: object, known: Iterable[str], *, where: str = "") -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        near = nearest(str(name), self.known)
        hint = f"did you mean {near!r}?" if near else f"known: {', '.join(self.known) or 'none'}"
        super().__init__(f"unknown {kind} {str(name)!r}{f' in {where}' if where else ''}: {hint}")


class PromptSyntaxError(InputError):
    """A prompt schedule that does not parse.

    Attributes:
        source: the whole schedule.
        position: 0-based index into ``source`` of the character at fault.
    """

    def __init__(self, source: str, position: int, rule: str) -> None:
        self.source, self.position = source, position
        around = source[max(0, position - 20) : position + 20].replace("\n", " ")
        super().__init__(f"prompt, character {position + 1}: {rule} (near {around!r})")


class OutputError(InputError):
    """The output path cannot be written: it exists, is no file, lies in no folder, or has an unknown ending."""


class OutputLockedError(OutputError):
    """Another process is writing this output."""


class ResumeError(InputError):
    """There is nothing to resume, or what is there was made with another configuration (the message names it)."""


class ModelError(InputError):
    """A model that is missing, incomplete, damaged or of another architecture."""


class DiskFullError(OSError):
    """The disk ran full while writing. What was rendered before stays playable and can be resumed."""


class Interrupted(Exception):
    """The user stopped a command; the message says what there is and how to go on."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to ``name`` (case, ``-`` and ``_`` do not count), or None when none is close."""
    by_key = {key.lower().replace("_", "-"): key for key in known}
    found = difflib.get_close_matches(name.lower().replace("_", "-"), by_key, n=1, cutoff=0.5)
    return by_key[found[0]] if found else None
