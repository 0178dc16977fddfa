"""Prompt schedules: what is shown when, in one line of text.

    a man walks[5s] | he runs[10s] | night falls[10s#]

Parts are parted by ``|``. A part may end in ``[...]``: its length in seconds (``5s``, ``2.5s``), and ``#`` if it begins
with a hard cut instead of flowing out of the part before. Only the last part may go without a length: it lasts until
the end of the video. ``\\`` before ``| [ ] \\`` takes the character itself. Command line, Python, prompt files
and the server share this syntax.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from longvid.errors import InputError, PromptSyntaxError

#: Characters in one part: several times what a text encoder of 512 tokens reads.
MAX_PART_CHARACTERS = 4_000
#: Parts in one schedule.
MAX_PARTS = 1_000
_SPECIAL = "|[]\\"
_LENGTH = re.compile(r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*s)?\s*(?P<cut>#)?\s*")


class PromptPart(NamedTuple):
    """One prompt of a schedule."""

    text: str
    seconds: float | None
    """How long it lasts; None (last part only) is until the end."""
    cut: bool
    """It begins with a hard cut."""


class PromptSchedule(NamedTuple):
    """Prompts in the order in which they are shown."""

    parts: tuple[PromptPart, ...]

    @property
    def starts(self) -> tuple[float, ...]:
        """Second at which each part begins."""
        starts = [0.0]
        for part in self.parts[:-1]:
            assert part.seconds is not None  # only the last part may be endless
            starts.append(starts[-1] + part.seconds)
        return tuple(starts)

    @property
    def seconds(self) -> float | None:
        """Length of the whole, or None when the last part is endless."""
        last = self.parts[-1].seconds
        return None if last is None else self.starts[-1] + last

    def index_at(self, second: float) -> int:
        """Index of the part that is shown at ``second``; the last part goes on for ever."""
        return max(index for index, start in enumerate(self.starts) if start <= second + 1e-9 or index == 0)

    def length(self, seconds: float | None) -> float:
        """The video's length: ``seconds`` if given, else the schedule's own.

        Raises ``InputError`` when neither says, or when a part would begin after the end.
        """
        total = self.seconds if seconds is None else seconds
        if total is None:
            raise InputError("seconds=None: the prompt has no length of its own; give seconds, or write 'prompt[10s]'")
        if not math.isfinite(total) or total <= 0:
            raise InputError(f"seconds={total!r}: must be a finite number above 0")
        late = [index for index, start in enumerate(self.starts) if start >= total]
        if late:
            raise InputError(
                f"seconds={total:g}: part {late[0] + 1} of the prompt begins at {self.starts[late[0]]:g} s and would "
                f"never be shown; give more seconds, or drop it"
            )
        return total

    def __str__(self) -> str:
        return " | ".join(_written(part) for part in self.parts)


def parse_prompt(source: str) -> PromptSchedule:
    """Parse a prompt schedule; plain text is a schedule of one endless part.

    Raises:
        PromptSyntaxError: it does not parse; the message names the character.
        InputError: it is empty, too long, or no text at all.
    """
    if not isinstance(source, str):
        raise InputError(f"prompt={type(source).__name__}: must be text")
    if not source.strip():
        raise InputError("prompt='': must not be empty")
    parts: list[PromptPart] = []
    for start, end in _split(source):
        part = _parse_part(source, start, end)
        if parts and parts[-1].seconds is None:
            raise PromptSyntaxError(
                source, start - 1, "only the last part may go without a length; write '[5s]' before '|'"
            )
        if part.cut and not parts:
            raise PromptSyntaxError(
                source, source.index("#", start), "the first part has nothing to cut from; drop '#'"
            )
        parts.append(part)
        if len(parts) > MAX_PARTS:
            raise PromptSyntaxError(source, start, f"more than {MAX_PARTS} parts")
    return PromptSchedule(tuple(parts))


def parse_switch(source: str) -> str:
    """The text of a prompt that takes over in a running video: one part, without a length.

    Raises:
        PromptSyntaxError, InputError: as ``parse_prompt``; or it is a schedule, or has a length.
    """
    parts = parse_prompt(source).parts
    if len(parts) > 1:
        found, fix = f"{len(parts)} parts", "give each when its time comes (a bare '|' in the text is written '\\|')"
    elif parts[0].seconds is not None:
        found, fix = f"a length of {parts[0].seconds:g} s", "drop the brackets, and switch again when it is over"
    else:
        return parts[0].text
    raise InputError(f"prompt: has {found}; a switch takes one prompt without a length: {fix}")


def read_prompts(path: str | os.PathLike[str]) -> list[str]:
    """The prompts of a text file: one schedule a line; blank lines and lines that begin with ``#`` are skipped.

    Raises ``InputError`` for a file that cannot be read, is not UTF-8, holds no prompt, or has a line that does not
    parse (its number is named).
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise InputError(f"prompts file {str(path)!r}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"prompts file {str(path)!r}: is not UTF-8 text (byte {error.start})") from None
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            parse_prompt(line)
        except InputError as error:
            raise InputError(f"prompts file {str(path)!r}, line {number}: {error}") from None
        prompts.append(line.strip())
    if not prompts:
        raise InputError(f"prompts file {str(path)!r}: holds no prompt")
    return prompts


def _split(source: str) -> Iterator[tuple[int, int]]:
    """Spans of the parts between bare ``|``."""
    start = index = 0
    while index < len(source):
        if source[index] == "\\":
            index += 1
        elif source[index] == "|":
            yield start, index
            start = index + 1
        index += 1
    yield start, len(source)


def _parse_part(source: str, start: int, end: int) -> PromptPart:
    text: list[str] = []
    seconds, cut, index = None, False, start
    while index < end:
        character = source[index]
        if character == "\\":
            if index + 1 >= end or source[index + 1] not in _SPECIAL:
                raise PromptSyntaxError(
                    source, index, "'\\' must stand before one of | [ ] \\; write '\\\\' for itself"
                )
            text.append(source[index + 1])
            index += 2
        elif character == "[":
            seconds, cut, index = _parse_length(source, index, end)
            rest = source[index:end]
            if rest.strip():
                at = index + len(rest) - len(rest.lstrip())
                raise PromptSyntaxError(
                    source, at, "'|' or the end must follow ']'; write '\\[' for a bracket in the text"
                )
            break
        elif character == "]":
            raise PromptSyntaxError(source, index, "']' without '['; write '\\]' for a bracket in the text")
        elif ord(character) < 32 and character not in "\t\n\r":
            raise PromptSyntaxError(source, index, f"control character {character!r}; remove it")
        else:
            text.append(character)
            index += 1
    words = " ".join("".join(text).split())
    if not words:
        raise PromptSyntaxError(
            source, start if start < len(source) else start - 1, "a part is empty; write a prompt there"
        )
    if len(words) > MAX_PART_CHARACTERS:
        raise InputError(f"prompt: {len(words)} characters in one part; at most {MAX_PART_CHARACTERS}")
    return PromptPart(words, seconds, cut)


def _parse_length(source: str, opening: int, end: int) -> tuple[float | None, bool, int]:
    """Read ``[5s#]`` at ``opening``; returns seconds, cut, and the index behind ``]``."""
    closing = source.find("]", opening, end)
    if closing < 0:
        raise PromptSyntaxError(
            source, opening, "'[' is never closed; write '[5s]', or '\\[' for a bracket in the text"
        )
    match = _LENGTH.fullmatch(source, opening + 1, closing)
    if match is None or not (match["number"] or match["cut"]):
        rule = "a length is written '[5s]', '[2.5s]' or '[5s#]'; write '\\[' for a bracket in the text"
        raise PromptSyntaxError(source, opening + 1, rule)
    seconds = float(match["number"]) if match["number"] else None
    if seconds is not None and not 0 < seconds < 1e7:
        raise PromptSyntaxError(source, opening + 1, "a length must be above 0 seconds and below 10,000,000")
    return seconds, bool(match["cut"]), closing + 1


def _written(part: PromptPart) -> str:
    text = "".join("\\" + character if character in _SPECIAL else character for character in part.text)
    length = "" if part.seconds is None else f"{_number(part.seconds)}s"
    return text + (f"[{length}{'#' if part.cut else ''}]" if length or part.cut else "")


def _number(value: float) -> str:
    return f"{value:.12f}".rstrip("0").rstrip(".") if value < 1e7 else repr(value)
