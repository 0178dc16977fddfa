"""Slots of the cache as runs of neighbours: what can be read or rotated in one piece."""

from __future__ import annotations

from collections.abc import Sequence


def runs(slots: Sequence[int]) -> list[tuple[int, int]]:
    """Slots as (first, count) of consecutive runs, ascending."""
    return ordered_runs(sorted(slots))


def ordered_runs(slots: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive runs in the order given."""
    found: list[tuple[int, int]] = []
    for slot in slots:
        if found and found[-1][0] + found[-1][1] == slot:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((slot, 1))
    return found
