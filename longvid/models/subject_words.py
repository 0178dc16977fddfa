"""Which words of a prompt name its subject, and where they stand among the text tokens.

No parser and no model: the first noun phrase of the prompt, up to whatever ends it. When that is wrong, the caller
names the words.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from longvid.errors import InputError

_DETERMINERS = frozenset(re.findall(r"\w+", "a an the this that some one two three four five his her its their my our"))
_ENDS_PHRASE = frozenset(
    re.findall(
        r"\w+",
        "is are was were be been am has have had does do can will who which that while as and or but then when where"
        " in on at over under above below across along through by near with without from into onto out of off past"
        " behind before against beside between upon to towards up down around for during inside outside"
        " walk run sit stand fly swim play dance jump ride drive sing eat look move go",
    )
)
_PLACES = frozenset(re.findall(r"\w+", "in on at under over above below near by inside outside during from across"))
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")


def subject_words(prompt: str) -> tuple[str, ...]:
    """The words of a prompt's first noun phrase, without its determiners.

    ``"a red ball bounces over green hills"`` gives ``("red", "ball")``. A prompt that opens with a place
    (``"in a forest, an old fox runs"``) is read from its first comma on.

    Raises:
        InputError: nothing in the prompt can be a subject.
    """
    words = _WORD.findall(prompt)
    if words and words[0].lower() in _PLACES and "," in prompt:
        words = _WORD.findall(prompt.split(",", 1)[1])
    phrase: list[str] = []
    singular = False
    for word in words:
        lower = word.lower()
        if not phrase and lower in _DETERMINERS:
            singular = lower in ("a", "an", "one", "this")
            continue
        if lower in _ENDS_PHRASE or lower.endswith("ly"):
            break
        if phrase and lower.endswith("ing"):
            break
        # After "a red ball", a word in -s is the verb; after "two" or nothing, it is the plural that ends the phrase.
        if phrase and singular and lower.endswith("s") and not lower.endswith("ss"):
            break
        phrase.append(word)
        if not singular and lower.endswith("s") and not lower.endswith("ss"):
            break
    if not phrase:
        raise InputError(f"subject_words: no subject found in the prompt {prompt!r}; name it: subject_words=('...',)")
    return tuple(phrase)


class Subject(NamedTuple):
    """The words that name a prompt's subject, and the positions of their tokens."""

    words: tuple[str, ...]
    positions: tuple[int, ...]


def find_subject(prompt: str, words: Sequence[str], *, tokenizer: Any, text_encoder: Any) -> Subject:
    """The subject of a prompt.

    Args:
        words: that may name it; those that are in the prompt count. None: the prompt's first noun phrase, or, for a
            text encoder that reads a prompt into slots, the slots of the subject's colour and shape.

    Raises:
        InputError: there is none.
    """
    if words:
        spoken = words_in(prompt, words) or tuple(words)  # none: let check_words name the first
        return Subject(spoken, token_positions(prompt, spoken, tokenizer=tokenizer, text_encoder=text_encoder))
    if tokenizer is not None:
        spoken = subject_words(prompt)
        return Subject(spoken, token_positions(prompt, spoken, tokenizer=tokenizer, text_encoder=text_encoder))
    slots, read = _slots(text_encoder), text_encoder.report(prompt).concepts
    own = [slot for slot in ("colour", "shape") if slot in read] or ["shape"]
    return Subject(tuple(read.get(slot, slot) for slot in own), tuple(slots.index(slot) for slot in own))


def words_in(prompt: str, words: Sequence[str]) -> tuple[str, ...]:
    """Those of the words that the prompt has."""
    spoken = {word.lower() for word in _WORD.findall(prompt)}
    return tuple(w for w in words if (parts := _WORD.findall(w.lower())) and all(part in spoken for part in parts))


def check_words(prompt: str, words: tuple[str, ...]) -> None:
    """Every word must be in the prompt.

    Raises:
        InputError: names the word and the prompt's nearest.
    """
    if not words:
        raise InputError("subject_words=(): name at least one word of the prompt")
    spoken = [word.lower() for word in _WORD.findall(prompt)]
    for word in words:
        parts = [part.lower() for part in _WORD.findall(word)]
        if not parts or any(part not in spoken for part in parts):
            near = difflib.get_close_matches(word.lower(), spoken, n=1)
            hint = f"; nearest {near[0]!r}" if near else f"; its words: {', '.join(spoken)}"
            raise InputError(f"subject_words={word!r}: not in the prompt {prompt!r}{hint}")


def token_positions(prompt: str, words: tuple[str, ...], *, tokenizer: Any, text_encoder: Any) -> tuple[int, ...]:
    """Positions of the words' tokens in the encoded prompt, ascending.

    A text encoder that reads a prompt into slots (the embedded model's) gives the slots that the words fill; any
    other is asked through its tokenizer, and each word's tokens are searched for as a run of ids.

    Raises:
        InputError: a word that is not in the prompt, or of which the text encoder keeps nothing.
    """
    check_words(prompt, words)
    if tokenizer is None:
        return _slot_positions(prompt, words, text_encoder)
    ids = list(tokenizer(prompt, add_special_tokens=True).input_ids)
    found: set[int] = set()
    for word in words:
        as_written = re.search(re.escape(word), prompt, flags=re.IGNORECASE)
        spellings = (as_written.group(0) if as_written else word, word.lower())
        for spelling in dict.fromkeys(spellings):
            run = list(tokenizer(spelling, add_special_tokens=False).input_ids)
            starts = [i for i in range(len(ids) - len(run) + 1) if run and ids[i : i + len(run)] == run]
            if starts:
                found.update(range(starts[0], starts[0] + len(run)))
                break
        else:
            raise InputError(
                f"subject_words={word!r}: the tokenizer splits it differently inside {prompt!r}; name a whole word"
            )
    return tuple(sorted(found))


def _slots(text_encoder: Any) -> list[str]:
    return [slot for slot, _ in text_encoder.config.concepts]


def _slot_positions(prompt: str, words: tuple[str, ...], text_encoder: Any) -> tuple[int, ...]:
    slots = _slots(text_encoder)
    read = text_encoder.report(prompt).concepts
    found: set[int] = set()
    for word in words:
        concepts = text_encoder.report(word).concepts
        found.update(slots.index(slot) for slot, concept in concepts.items() if read.get(slot) == concept)
    if not found:
        raise InputError(
            f"subject_words={', '.join(words)}: the text encoder reads none of them in {prompt!r};"
            " name a colour or a shape that the prompt has"
        )
    return tuple(sorted(found))
