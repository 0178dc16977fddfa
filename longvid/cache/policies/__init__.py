"""Cache policies: pure decisions on frame and token indices, one class a published rule."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from longvid.config import CacheConfig
from longvid.errors import InputError, UnknownNameError

from .participative import Keep, ParticipativePolicy
from .plan import Merge, Plan, Policy, RecachePlan, View
from .radial import RadialPolicy
from .rolling import RollingPolicy
from .sinks import DeepSinkPolicy, EmaSinkPolicy
from .sliding import SlidingPolicy

__all__ = [
    "DeepSinkPolicy",
    "EmaSinkPolicy",
    "Keep",
    "Merge",
    "ParticipativePolicy",
    "Plan",
    "Policy",
    "RadialPolicy",
    "RecachePlan",
    "RollingPolicy",
    "SlidingPolicy",
    "View",
    "policy_from_config",
    "policy_settings",
]

POLICIES = ("full", "window", "sink", "deep-sink", "participative", "ema-sink", "rolling", "radial")


def policy_from_config(cache: Any, frames_per_block: int, total_frames: int | None = None) -> Policy:
    """Build the policy that a CacheConfig names.

    cache: an object with CacheConfig's fields. frames_per_block: the schedule's block. total_frames: the length of the
    video in latent frames, None when endless; "full" (and window=-1) keep all of it and need to know.

    Raises ValueError naming the field for combinations that cannot be.
    """
    n = frames_per_block
    window = cache.window
    if cache.policy == "radial":
        return RadialPolicy(
            window=window,
            sink=cache.sink,
            dense=cache.recent,
            positions=cache.positions,
            frames_per_block=n,
            commit_window=cache.commit_window,
            frames=total_frames,
        )
    if cache.policy == "full" or window == -1:
        if cache.policy not in ("full", "window", "sink"):
            raise InputError(f"window=-1: only policies full, window and sink keep everything, not {cache.policy!r}")
        if total_frames is None:
            raise InputError(
                "window=-1: an endless video cannot keep all its frames; name a length, or a window such as 21"
            )
        sink = 0 if cache.policy == "full" else min(cache.sink, max(0, total_frames - n))
        return SlidingPolicy(
            name=cache.policy,
            window=max(total_frames, sink + n),
            sink=sink,
            positions=cache.positions,
            frames_per_block=n,
            commit_window=cache.commit_window,
        )
    if cache.policy in ("window", "sink"):
        return SlidingPolicy(
            name=cache.policy,
            window=window,
            sink=0 if cache.policy == "window" else cache.sink,
            positions=cache.positions,
            frames_per_block=n,
            commit_window=cache.commit_window,
        )
    if cache.policy == "deep-sink":
        return DeepSinkPolicy(
            window=window,
            sink=cache.sink,
            frames_per_block=n,
            hole_free=cache.hole_free,
            commit_window=cache.commit_window,
        )
    if cache.policy == "participative":
        if cache.commit_window:
            raise InputError(
                f"commit_window={cache.commit_window}: the participative policy commits in its own view; use 0"
            )
        return ParticipativePolicy(
            window=window,
            sink=cache.sink,
            budget=cache.budget,
            recent=cache.recent,
            fusion=cache.fusion,
            max_reuse=cache.max_reuse,
            frames_per_block=n,
            hole_free=cache.hole_free,
            unify=cache.unify,
            per_head=cache.per_head,
        )
    if cache.policy == "ema-sink":
        return EmaSinkPolicy(
            window=window,
            sink=cache.sink,
            ema_alpha=cache.ema_alpha,
            static=cache.static,
            frames_per_block=n,
            commit_window=cache.commit_window,
        )
    if cache.policy == "rolling":
        if cache.commit_window:
            raise InputError(f"commit_window={cache.commit_window}: rolling forcing has its own commit view; use 0")
        return RollingPolicy(
            window=window, sink=cache.sink, frames_per_block=n, cache_frames=cache.cache_frames or None
        )
    raise UnknownNameError("cache policy", cache.policy, POLICIES)


def policy_settings(policy: Policy) -> dict[str, Any]:
    """The values of CacheConfig's fields that a policy goes by; fields that it does not read are not among them."""
    own = dict(vars(policy))
    if isinstance(policy, RadialPolicy):
        own["recent"] = policy.dense
    return {field.name: own[field.name] for field in fields(CacheConfig) if field.name in own}
