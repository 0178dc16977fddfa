"""Self-Forcing (arXiv 2506.08009): causal blocks through a sliding window."""

from __future__ import annotations

from .base import LongVideoPipeline


class SelfForcingPipeline(LongVideoPipeline):
    """Self-Forcing (arXiv 2506.08009): causal blocks through a sliding window.

    Everything that makes it this method is in configs/self-forcing.yaml.
    """

    method_name = "self-forcing"
