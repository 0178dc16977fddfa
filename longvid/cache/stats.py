"""What a cache has done, counted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CacheStats:
    """What the cache has moved since it was made: frames re-phased and merged, blocks committed."""

    blocks: int = 0
    rephased_frames: int = 0
    merged_frames: int = 0
