"""What is wrong with a checkpoint, in one short error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from longvid.errors import ModelError

__all__ = ["CheckpointError", "KeyReport", "compare_keys"]

_SHOWN = 4


class CheckpointError(ModelError):
    """A file that cannot be loaded as what it was asked to be; the message says why, and what to do."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeyReport:
    """How a state dict differs from what a model needs."""

    missing: tuple[str, ...] = ()
    """Names that the model needs and the file lacks."""
    unexpected: tuple[str, ...] = ()
    """Names that the file has and the model does not know."""
    wrong_shape: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    """(name, shape in the file, shape in the model)."""

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        shapes = [f"{name} {list(found)} instead of {list(wanted)}" for name, found, wanted in self.wrong_shape]
        parts = [
            f"{len(names)} {label}: {_head(names)}"
            for label, names in (("missing", self.missing), ("unexpected", self.unexpected), ("of wrong shape", shapes))
            if names
        ]
        return "; ".join(parts) or "complete"


def _head(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def compare_keys(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], ignore: Sequence[str] = ()
) -> KeyReport:
    """Compare the names and shapes of a file with those of a model.

    Args:
        found: name -> shape in the file.
        wanted: name -> shape in the model.
        ignore: an unexpected name that contains one of these is let pass.
    """
    return KeyReport(
        missing=tuple(sorted(set(wanted) - set(found))),
        unexpected=tuple(
            name for name in sorted(set(found) - set(wanted)) if not any(pattern in name for pattern in ignore)
        ),
        wrong_shape=tuple(
            (name, tuple(found[name]), tuple(wanted[name]))
            for name in sorted(set(found) & set(wanted))
            if tuple(found[name]) != tuple(wanted[name])
        ),
    )
