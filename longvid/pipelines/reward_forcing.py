"""EMA-Sink: frames that leave the window are averaged into the sink (arXiv 2512.04678)."""

from __future__ import annotations

from .base import LongVideoPipeline


class RewardForcingPipeline(LongVideoPipeline):
    """EMA-Sink: frames that leave the window are averaged into the sink (arXiv 2512.04678).

    Everything that makes it this method is in configs/reward-forcing.yaml.
    """

    method_name = "reward-forcing"
