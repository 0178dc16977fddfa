"""Deep sink + Participative Compression (Deep Forcing, arXiv 2512.05081, sec. 4.2), decided on token counts.

When a block does not fit, each layer keeps ``[ sink | the C tokens that matter most to the newest queries | recent ]``
and drops the rest, so that the cache falls back from the window (21 frames) to the budget (16) at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .plan import Plan, RecachePlan, Rephase, View, require

Fusion = Literal["sum", "max"]
TRAINED_FRAMES = 21
"""Length of the clips that Self-Forcing was trained on; a literal in the released first sink shift."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Token ranges of one layer's compression, over the concatenation [cache | new block] of `total` tokens.

    sink: tokens [0, sink) stay. Candidates are [sink, recent_start); `top` of them stay. [recent_start, total) stay.
    """

    sink: int
    recent_start: int
    top: int
    total: int


class ParticipativePolicy:
    """Token-level, per layer: one choice for each sample, and for all heads of the layer unless `per_head`.

    budget: frames kept in all, sink and recent included. recent: newest frames that always stay; their queries are
    the ones that score. fusion: "sum" or "max" over these queries. max_reuse: how often a token may be chosen
    (unpublished default of the release, 7); 0 = no limit.
    hole_free: the sink's phase. False is the released code: the first shift is `21 - budget`, later ones follow the
    video. True places the sink directly before the frames that follow it.
    unify: chosen tokens are read as consecutive frames directly before the recent ones (eq. 10-11 of the paper). The
    release has code for it that its pipeline never reaches: there chosen tokens keep their own phases.
    per_head: every head scores, chooses and counts for itself; sink and recent frames stay for all, and all keep as
    many tokens. Neither the paper nor the release has it.
    """

    name = "participative"
    merged = 0

    def __init__(
        self,
        *,
        window: int,
        sink: int,
        budget: int,
        recent: int,
        frames_per_block: int,
        fusion: Fusion = "sum",
        max_reuse: int = 7,
        hole_free: bool = False,
        unify: bool = False,
        per_head: bool = False,
    ) -> None:
        require(sink >= 0, f"sink={sink}: must be 0 or more frames")
        require(fusion in ("sum", "max"), f"fusion={fusion!r}: must be 'sum' or 'max'")
        require(max_reuse >= 0, f"max_reuse={max_reuse}: must be 0 (no limit) or more")
        require(
            recent >= frames_per_block,
            f"recent={recent}: must cover the current block ({frames_per_block} frames), whose tokens stay",
        )
        require(
            budget >= sink + recent,
            f"budget={budget}: must hold sink ({sink}) + recent ({recent}); use {sink + recent} or more",
        )
        require(
            window >= budget,
            f"window={window}: must be at least the budget ({budget}), which compression falls back to",
        )
        self.window, self.sink, self.budget, self.recent = window, sink, budget, recent
        self.frames_per_block, self.max_reuse, self.hole_free = frames_per_block, max_reuse, hole_free
        self.fusion: Fusion = fusion
        self.unify, self.per_head = unify, per_head
        self.rephase: Rephase = "all" if unify else "sink"
        self.capacity = window

    def gathered(self, window: int) -> int:
        return 0  # tokens are kept side by side

    def triggers(self, cached_tokens: int, new_tokens: int, tokens_per_frame: int) -> bool:
        """Whether a block of `new_tokens` must wait for a compression."""
        return cached_tokens + new_tokens > self.window * tokens_per_frame

    def keep(self, cached_tokens: int, new_tokens: int, queries: int, tokens_per_frame: int) -> Keep:
        """The ranges of one compression; `queries` counts the query tokens remembered so far."""
        total = cached_tokens + new_tokens
        recent = min(queries, self.recent * tokens_per_frame, total)
        sink = min(self.sink * tokens_per_frame, total)
        kept = min(self.budget, self.window) * tokens_per_frame
        kept = min(max(kept, sink + recent), total)
        return Keep(sink=sink, recent_start=total - recent, top=max(0, kept - sink - recent), total=total)

    def sink_shift(self, start: int, kept_tokens: int, tokens_per_frame: int, origin: int | None) -> tuple[int, int]:
        """The total phase shift of the sink after a compression at the block `start`, and the origin it counts from.

        kept_tokens: tokens after compression, current block included. origin: what an earlier call returned, None at
        the first compression. Released code: want = start - tail - sink; the first call shifts by 21 - budget and
        calls that `want`; later calls add the growth of `want`.
        """
        sink_tokens = self.sink * tokens_per_frame
        tail = (kept_tokens - sink_tokens) // tokens_per_frame
        if self.hole_free:
            # The tail ends at start + block - 1, so the sink's last frame stands just before the tail's first.
            return start + self.frames_per_block - tail - self.sink, 0
        want = start - tail - self.sink
        if origin is None:
            origin = want - (TRAINED_FRAMES - self.budget)
        return want - origin, origin

    def plan(self, resident: Sequence[int], start: int, frames: int, window: int, memory: Mapping[str, int]) -> Plan:
        raise TypeError("the participative policy plans in tokens (triggers, keep, sink_shift), not in frames")

    def plan_recache(
        self, resident: Sequence[int], newest: Sequence[int], keep_sink: bool, memory: Mapping[str, int]
    ) -> RecachePlan:
        raise TypeError("the participative policy plans in tokens; the cache re-encodes its newest frames itself")


def view_of(start: int, frames: int) -> View:
    """The own positions of a call under token-level policies: absolute, cached tokens are not named by frame."""
    return View((), (), tuple(range(start, start + frames)))
