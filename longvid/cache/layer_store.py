"""One layer's bytes: keys as they are read, un-roped originals where a policy re-phases them, values.

Shape letters: B batch, T tokens of the storage, L tokens of a call, N heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .selection import TokenSelector
from .storage import allocate


class Rotary(Protocol):
    """What the cache needs to know of a position embedding; `longvid.models.rope.RotaryTables` is one."""

    tokens_per_frame: int

    def at(self, positions: Any) -> tuple[Tensor, Tensor]: ...

    def apply(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor: ...

    def rotate(self, x: Tensor, positions: Any, out: Tensor | None = None) -> Tensor: ...


@dataclass(slots=True)
class CallView:
    """A plan's view, resolved to token ranges: what every layer of one model call does.

    lo, hi: when cached and own tokens lie side by side, the storage range that is attended to (no copy); hi = -1
    otherwise. spans: the cached ranges that are read in the other case. writes: (storage token, own token, count) of
    the own tokens that are stored. own: first own token that is attended to (a recache skips the oldest).
    cos, sin: rotary tables of the call's own tokens, [L, 1, D/2]. raw: also keep the un-roped keys (commit calls).
    start: first frame of the call. tokens: the store's own bookkeeping (token-level policies) decides the ranges.
    own_frames: the call's frames. key_frames: the frames that are attended to, in the order of their keys in memory
    (empty for token-level policies, whose tokens form no frames).
    """

    cos: Tensor
    sin: Tensor
    lo: int = 0
    hi: int = -1
    spans: tuple[tuple[int, int], ...] = ()
    writes: tuple[tuple[int, int, int], ...] = ()
    own: int = 0
    raw: bool = False
    start: int = 0
    tokens: bool = False
    own_frames: tuple[int, ...] = ()
    key_frames: tuple[int, ...] = ()


class LayerStore:
    """Preallocated storage of one layer.

    keys, values: [B, T, N, D]; keys are rotated to the position recorded by the cache. raw: [B, R, N, D] un-roped keys
    of the first R tokens (those that the policy may re-phase), or None. scratch: all layers share one.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        raw: Tensor | None,
        rotary: Rotary,
        scratch: Scratch,
        selector: TokenSelector | None = None,
    ) -> None:
        self.keys, self.values, self.raw, self.rotary = keys, values, raw, rotary
        self.scratch, self.selector = scratch, selector

    def read(self, view: CallView, query_BLND: Tensor, key_BLND: Tensor, value_BLND: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a call's own keys (before RoPE) and values; give the keys and values that its queries attend to.

        query_BLND is rotated already; only token-level policies look at it.
        """
        if torch.is_grad_enabled() and key_BLND.requires_grad:
            return self._read_functional(view, key_BLND, value_BLND)
        if view.tokens:
            assert self.selector is not None
            return self.selector.read(self, view, query_BLND, key_BLND, value_BLND)
        if view.hi >= 0:
            for dst, src, count in view.writes:
                self._write(view, dst, src, count, key_BLND, value_BLND)
            return self.keys[:, view.lo : view.hi], self.values[:, view.lo : view.hi]
        own, cos, sin = key_BLND[:, view.own :], view.cos[view.own :], view.sin[view.own :]
        if view.spans:
            keys, values = self.scratch.take(sum(b - a for a, b in view.spans) + own.shape[1])
            at = 0
            for a, b in view.spans:
                keys[:, at : at + b - a] = self.keys[:, a:b]
                values[:, at : at + b - a] = self.values[:, a:b]
                at += b - a
            self.rotary.apply(own, cos, sin, out=keys[:, at:])
            values[:, at:] = value_BLND[:, view.own :]
        else:  # a call that reads nothing but itself
            keys, values = self.rotary.apply(own, cos, sin), value_BLND[:, view.own :]
        for dst, src, count in view.writes:
            self._write(view, dst, src, count, key_BLND, value_BLND)
        return keys, values

    def _write(self, view: CallView, dst: int, src: int, count: int, key_BLND: Tensor, value_BLND: Tensor) -> None:
        key = key_BLND[:, src : src + count]
        self.rotary.apply(
            key, view.cos[src : src + count], view.sin[src : src + count], out=self.keys[:, dst : dst + count]
        )
        self.values[:, dst : dst + count] = value_BLND[:, src : src + count]
        if view.raw and self.raw is not None and dst < self.raw.shape[1]:
            kept = min(count, self.raw.shape[1] - dst)
            self.raw[:, dst : dst + kept] = key[:, :kept]

    def _read_functional(self, view: CallView, key_BLND: Tensor, value_BLND: Tensor) -> tuple[Tensor, Tensor]:
        """Under autograd: history detached, own keys and values with their graph, the storage untouched by the graph.

        The reference writes into the cache in place and so leaks gradient into earlier blocks; the papers say detached.
        """
        if view.tokens:
            raise RuntimeError("token-level cache policies are for inference; train with a frame-level policy")
        rotated = self.rotary.apply(key_BLND, view.cos, view.sin)
        spans = view.spans if view.hi < 0 else _without(view.lo, view.hi, view.writes)
        keys = [self.keys[:, a:b].detach() for a, b in spans] + [rotated[:, view.own :]]
        values = [self.values[:, a:b].detach() for a, b in spans] + [value_BLND[:, view.own :]]
        with torch.no_grad():
            for dst, src, count in view.writes:
                self._write(view, dst, src, count, key_BLND.detach(), value_BLND.detach())
        return torch.cat(keys, dim=1), torch.cat(values, dim=1)


def _without(lo: int, hi: int, writes: tuple[tuple[int, int, int], ...]) -> list[tuple[int, int]]:
    """[lo, hi) less the written ranges."""
    spans, at = [], lo
    for dst, _, count in sorted(writes):
        if dst > at:
            spans.append((at, dst))
        at = max(at, dst + count)
    if at < hi:
        spans.append((at, hi))
    return spans


class Scratch:
    """One pair of buffers for all layers, for views whose tokens do not lie side by side.

    keys: of one layer, [B, T, N, D]. tokens: of the widest such view; it grows for a call that reads more all the same.
    """

    def __init__(self, keys: Tensor, tokens: int) -> None:
        self._keys = keys
        self._allocate(tokens)

    def _allocate(self, tokens: int) -> None:
        batch, _, heads, dim = self._keys.shape
        shape, like = (1, batch, tokens, heads, dim), self._keys
        self.tokens = tokens
        self.buffers = (allocate(shape, like.dtype, like.device)[0], allocate(shape, like.dtype, like.device)[0])

    def take(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Buffers for keys and values, [B, tokens, N, D] each; what they held is lost."""
        if tokens > self.tokens:
            self._allocate(tokens)
        keys, values = self.buffers
        return keys[:, :tokens], values[:, :tokens]
