"""An attention sink beside the window, positions counted inside it (arXiv 2309.17453)."""

from __future__ import annotations

from .base import LongVideoPipeline


class StreamingLLMPipeline(LongVideoPipeline):
    """An attention sink beside the window, positions counted inside it (arXiv 2309.17453).

    Everything that makes it this method is in configs/streaming-llm.yaml.
    """

    method_name = "streaming-llm"
