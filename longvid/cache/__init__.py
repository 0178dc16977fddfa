"""The KV cache of a long rollout: `FrameKVCache` owns bytes and slots, `policies` decide what they hold.

Torch is imported only when `FrameKVCache` is asked for, so that policies can be planned and tested without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .frame_cache import FrameKVCache as FrameKVCache

__all__ = ["FrameKVCache"]


def __getattr__(name: str) -> Any:
    if name == "FrameKVCache":
        from .frame_cache import FrameKVCache

        return FrameKVCache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
