"""A joint window of blocks at rising noise levels (arXiv 2509.25161)."""

from __future__ import annotations

from .base import LongVideoPipeline


class RollingForcingPipeline(LongVideoPipeline):
    """A joint window of blocks at rising noise levels (arXiv 2509.25161).

    Everything that makes it this method is in configs/rolling-forcing.yaml.
    """

    method_name = "rolling-forcing"
