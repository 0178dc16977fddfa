"""Prompts to train on: distillation needs no videos, only captions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from longvid.errors import InputError

logger = logging.getLogger("longvid")


class Prompts(Protocol):
    def draw(self, rng: np.random.Generator, count: int) -> list[str]:
        """`count` prompts."""
        ...


class FilePrompts:
    """The non-empty lines of a text file."""

    def __init__(self, path: Path) -> None:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except OSError as error:
            raise InputError(f"prompts={str(path)!r}: cannot be read ({error.strerror})") from None
        self.lines = [line for line in lines if line]
        if not self.lines:
            raise InputError(f"prompts={str(path)!r}: holds no prompt; write one a line")

    def draw(self, rng: np.random.Generator, count: int) -> list[str]:
        return [self.lines[i] for i in rng.integers(0, len(self.lines), count)]


class WorldPrompts:
    """Captions of the embedded model's world; combinations that are held out for measuring never appear."""

    def draw(self, rng: np.random.Generator, count: int) -> list[str]:
        from longvid.training.describe import describe
        from longvid.training.world import random_scene

        return [describe(random_scene(rng, held_out=False), rng) for _ in range(count)]


def find_prompts(path: Path | None, text_encoder: Any) -> Prompts:
    """A file's prompts, or the world's for a model that reads captions of it.

    Raises InputError when neither is there.
    """
    from longvid.models.captions import CaptionEncoder

    if path is not None:
        prompts = FilePrompts(path)
        if isinstance(text_encoder, CaptionEncoder):
            unread = [line for line in prompts.lines if text_encoder.report(line).message()]
            if unread:
                logger.warning(
                    "%d of %d prompts are not fully read, first: %r", len(unread), len(prompts.lines), unread[0]
                )
        return prompts
    if isinstance(text_encoder, CaptionEncoder):
        return WorldPrompts()
    raise InputError("prompts: not given, and this model has no world of its own; give a text file, one prompt a line")
