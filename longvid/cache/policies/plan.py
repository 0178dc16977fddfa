"""What a policy answers: which frames leave, which merge, and what each kind of model call reads.

Frame ids count latent frames from the start of the scene; positions are temporal RoPE positions. Both are plain
integers: nothing here knows tensors, so every rule of a method can be tested on integers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from longvid.errors import InputError

Rephase = Literal["none", "sink", "all"]
"""Which cached keys a policy may read at a new position: their un-roped originals are kept."""


@dataclass(frozen=True, slots=True)
class View:
    """What one kind of model call reads.

    frames: ids of the cached frames that the call attends to, oldest first.
    positions: the temporal position at which each of them is read.
    own_positions: the positions of the frames that the call itself carries.
    """

    frames: tuple[int, ...]
    positions: tuple[int, ...]
    own_positions: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.frames) != len(self.positions):
            raise ValueError(f"positions={self.positions}: must be one a cached frame, {len(self.frames)} in this view")


@dataclass(frozen=True, slots=True)
class Merge:
    """Evicted frames that are averaged into sink frames: sink <- alpha * sink + (1 - alpha) * evicted."""

    evicted: tuple[int, ...]
    into: tuple[int, ...]
    alpha: float


@dataclass(frozen=True, slots=True)
class Plan:
    """One block's decisions. The denoise calls and the commit call may see different things."""

    evict: tuple[int, ...]
    denoise: View
    commit: View
    merge: Merge | None = None
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecachePlan:
    """A KV-recache: the newest clean frames go through the model once more under a new prompt (LongLive, sec. 3.2).

    keep: resident sink frames that stay as they are and are read, at `kept_positions`.
    store: which of the re-encoded frames are written (the others only ask questions), by their offset.
    own_positions: positions of all re-encoded frames.
    """

    keep: tuple[int, ...]
    kept_positions: tuple[int, ...]
    store: tuple[int, ...]
    own_positions: tuple[int, ...]
    memory: Mapping[str, int] = field(default_factory=dict)


class Policy(Protocol):
    """A pure decision on what is remembered.

    name: the policy's name in configuration files.
    capacity: frame slots that the storage needs.
    sink: the number of leading frames that never leave.
    merged: how many frames of the sink, its last, are averages of frames that left.
    rephase: which cached keys change their position over time.
    """

    name: str
    capacity: int
    sink: int
    merged: int
    rephase: Rephase

    def gathered(self, window: int) -> int:
        """The most frames, its own included, of a call that reads cached ones where they do not lie side by side, when
        calls carry up to `window` frames (0: a block's). 0: they always do."""
        ...

    def plan(self, resident: Sequence[int], start: int, frames: int, window: int, memory: Mapping[str, int]) -> Plan:
        """Plan the block of `frames` frames at `start`, when model calls carry `window` >= frames frames."""
        ...

    def plan_recache(
        self, resident: Sequence[int], newest: Sequence[int], keep_sink: bool, memory: Mapping[str, int]
    ) -> RecachePlan:
        """Plan the re-encoding of the clean frames `newest` (ids, oldest first)."""
        ...


def outlasts(
    policy: Policy,
    resident: Sequence[int],
    block: Sequence[int],
    frames: int,
    memory: Mapping[str, int],
) -> bool:
    """Whether any of ``block``, committed behind ``resident``, is kept or merged when a block of ``frames`` follows.

    If not, nobody reads what its commit call would write.
    """
    plan = policy.plan((*resident, *block), block[-1] + 1, frames, frames, memory)
    merged = plan.merge.evicted if plan.merge else ()
    return any(frame not in plan.evict or frame in merged for frame in block)


def require(condition: bool, message: str) -> None:
    """Raise InputError(message) unless `condition`."""
    if not condition:
        raise InputError(message)


def newest(frames: Sequence[int], count: int) -> tuple[int, ...]:
    """The last `count` frames; none for count <= 0 (a plain negative slice would return all)."""
    return tuple(frames[len(frames) - min(count, len(frames)) :]) if count > 0 else ()


def evict_oldest(
    resident: Sequence[int], frames: int, window: int, sink: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split the resident frames into (evicted, kept) so that kept + `frames` fits `window`; sinks never leave."""
    over = max(0, len(resident) + frames - window)
    evicted = tuple(resident[sink : sink + over])
    if len(evicted) < over:
        raise InputError(f"window={window}: cannot hold sink={sink} and a block of {frames} frames; enlarge the window")
    return evicted, tuple(resident[:sink]) + tuple(resident[sink + over :])
