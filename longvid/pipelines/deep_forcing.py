"""Deep sink and participative compression (arXiv 2512.05081)."""

from __future__ import annotations

from .base import LongVideoPipeline


class DeepForcingPipeline(LongVideoPipeline):
    """Deep sink and participative compression (arXiv 2512.05081).

    Everything that makes it this method is in configs/deep-forcing.yaml.
    """

    method_name = "deep-forcing"
