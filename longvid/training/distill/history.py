"""What a rollout remembers while it is trained: keys and values that are never written in place.

The cache of inference overwrites its storage; under autograd that ties the graphs of different blocks together. (The
published training code does just that, and gradient leaks through the overwritten slots into the noisy passes of
earlier blocks, although the papers say that history is detached.) Here every block appends, what was there is
untouched, and whether history carries a graph is decided where a block is appended. Which frames stay and at which
positions they are read is said by the same policies that inference uses.

Shape letters: Y layers, B batch, N heads, F latent frames, S tokens in a frame, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from longvid.cache.policies import Plan, Policy, View

Rotate = Callable[[Tensor, tuple[int, ...]], Tensor]
"""(keys [..., F*S, D] before RoPE, temporal positions of the F frames) -> rotated keys."""


class FrameKeys(NamedTuple):
    """Keys before RoPE and values of some frames, all layers: each [Y, B, N, F, S, D]."""

    keys: Tensor
    values: Tensor

    def detach(self) -> FrameKeys:
        return FrameKeys(self.keys.detach(), self.values.detach())

    def frames(self, count: int) -> FrameKeys:
        """The first `count` frames."""
        return FrameKeys(self.keys[:, :, :, :count], self.values[:, :, :, :count])


def straight_through(clean: FrameKeys, noisy: FrameKeys) -> FrameKeys:
    """The value of `clean` with the gradient of `noisy`: what the released training code's in-place cache amounts to.

    For comparison with that code only; the papers (and training here) detach history.
    """
    return FrameKeys(*(c.detach() + (n - n.detach()) for c, n in zip(clean, noisy, strict=True)))


@dataclass(frozen=True, slots=True)
class History:
    """Finished frames, oldest first.

    ids: their latent-frame numbers. kept: their keys and values, None when there are none. memory: what the policy
    remembers.
    """

    ids: tuple[int, ...] = ()
    kept: FrameKeys | None = None
    memory: Mapping[str, int] = field(default_factory=dict)

    def plan(self, policy: Policy, start: int, frames: int, window: int) -> tuple[Plan, History]:
        """The policy's plan for the block at `start`, and the history with its evictions and merges done."""
        plan = policy.plan(self.ids, start, frames, window, self.memory)
        return plan, self._merged(plan)._without(plan.evict, plan.memory)

    def append(self, start: int, keys: FrameKeys) -> History:
        """The history with a block's frames behind it."""
        ids = self.ids + tuple(range(start, start + keys.keys.shape[3]))
        if self.kept is None:
            return replace(self, ids=ids, kept=keys)
        kept = FrameKeys(*(torch.cat(pair, dim=3) for pair in zip(self.kept, keys, strict=True)))
        return replace(self, ids=ids, kept=kept)

    def read(self, view: View, rotate: Rotate) -> list[tuple[Tensor, Tensor]] | None:
        """Keys, rotated to the view's positions, and values, a layer each [B, N, F*S, D]; None for an empty view."""
        if not view.frames:
            return None
        assert self.kept is not None
        at = [self.ids.index(frame) for frame in view.frames]
        keys = rotate(self.kept.keys[:, :, :, at].flatten(3, 4), view.positions)
        return list(zip(keys.unbind(0), self.kept.values[:, :, :, at].flatten(3, 4).unbind(0), strict=True))

    def _merged(self, plan: Plan) -> History:
        """EMA-Sink: sink <- alpha * sink + (1 - alpha) * evicted (Reward Forcing, arXiv 2512.04678, sec. 3.2)."""
        if plan.merge is None:
            return self
        assert self.kept is not None
        alpha, ids = plan.merge.alpha, list(self.ids)
        into, out = ([ids.index(f) for f in frames] for frames in (plan.merge.into, plan.merge.evicted))
        merged = []
        for stored in self.kept:
            mixed = stored.clone()
            mixed[:, :, :, into] = alpha * stored[:, :, :, into] + (1 - alpha) * stored[:, :, :, out]
            merged.append(mixed)
        return replace(self, kept=FrameKeys(*merged))

    def _without(self, evicted: tuple[int, ...], memory: Mapping[str, int]) -> History:
        if not evicted:
            return replace(self, memory=dict(memory))
        assert self.kept is not None
        at = [i for i, frame in enumerate(self.ids) if frame not in evicted]
        kept = FrameKeys(self.kept.keys[:, :, :, at], self.kept.values[:, :, :, at])
        return History(tuple(self.ids[i] for i in at), kept, dict(memory))
