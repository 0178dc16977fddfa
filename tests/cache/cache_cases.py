"""Policies of every kind, small caches of them, and what plays random blocks through one."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from longvid.cache import FrameKVCache
from longvid.cache.policies import (
    DeepSinkPolicy,
    EmaSinkPolicy,
    ParticipativePolicy,
    RadialPolicy,
    RollingPolicy,
    SlidingPolicy,
)
from longvid.models.rope import RotaryTables

N = 3
POLICIES = {
    "full": lambda: SlidingPolicy(window=60, frames_per_block=N, name="full"),
    "window": lambda: SlidingPolicy(window=8, frames_per_block=N),
    "sink": lambda: SlidingPolicy(window=10, sink=4, frames_per_block=N),
    "sink-window-positions": lambda: SlidingPolicy(window=9, sink=3, positions="window", frames_per_block=N),
    "commit-window": lambda: SlidingPolicy(window=12, sink=3, frames_per_block=N, commit_window=5),
    "deep-sink": lambda: DeepSinkPolicy(window=12, sink=5, frames_per_block=N),
    "deep-sink-hole-free": lambda: DeepSinkPolicy(window=12, sink=5, frames_per_block=N, hole_free=True),
    "ema-sink": lambda: EmaSinkPolicy(window=9, sink=3, ema_alpha=0.8, frames_per_block=N),
    "ema-behind-static": lambda: EmaSinkPolicy(window=12, sink=6, static=3, ema_alpha=0.8, frames_per_block=N),
    "participative": lambda: ParticipativePolicy(
        window=12, sink=4, budget=9, recent=4, max_reuse=2, frames_per_block=N
    ),
    "participative-unify": lambda: ParticipativePolicy(
        window=12, sink=4, budget=10, recent=4, max_reuse=3, unify=True, hole_free=True, frames_per_block=N
    ),
    "participative-max": lambda: ParticipativePolicy(
        window=11, sink=2, budget=11, recent=3, max_reuse=1, fusion="max", frames_per_block=N
    ),
}
MORE = POLICIES | {
    "rolling": lambda: RollingPolicy(window=15, sink=3, frames_per_block=N),
    "radial": lambda: RadialPolicy(dense=4, frames_per_block=N),
    "radial-window": lambda: RadialPolicy(dense=4, window=20, frames_per_block=N),
    "participative-per-head": lambda: ParticipativePolicy(
        window=12, sink=4, budget=9, recent=4, per_head=True, frames_per_block=N
    ),
}


def make(policy, kind=FrameKVCache, *, layers=2, batch=1, heads=2, dim=12, rows=2, columns=2, **more):
    return kind(
        policy,
        layers=layers,
        batch=batch,
        heads=heads,
        head_dim=dim,
        rotary=RotaryTables(dim, rows, columns),
        **more,
    )


class Player:
    """Feeds a cache the same random blocks as its twin and collects what attention gives."""

    def __init__(self, cache, seed=0, batch=1, heads=2, dim=12, dtype=torch.float32):
        self.cache, self.generator = cache, torch.Generator().manual_seed(seed)
        self.shape, self.dtype = (batch, heads, dim), dtype

    def call(self, kind, frames):
        view = self.cache.view(kind)
        batch, heads, dim = self.shape
        tokens = frames * self.cache.tokens_per_frame
        out = []
        for layer in self.cache.layers:
            q, k, v = (
                torch.randn(batch, tokens, heads, dim, generator=self.generator).to(self.dtype) for _ in range(3)
            )
            q = self.cache.rotary.apply(q, view.cos, view.sin)
            keys, values = layer.read(view, q, k, v)
            o = scaled_dot_product_attention(*(x.float().transpose(1, 2) for x in (q, keys, values)))
            out.append(o)
        return torch.stack(out)

    def block(self, start, frames=N, calls=2, commit=True):
        self.cache.begin(start, frames)
        out = [self.call("denoise", frames) for _ in range(calls)]
        if commit:
            out.append(self.call("commit", frames))
            self.cache.commit()
        return torch.stack(out)
