"""Ouroboros-Diffusion (arXiv 2501.09019): FIFO-Diffusion that keeps its subject."""

from __future__ import annotations

from .fifo import FifoPipeline


class OuroborosPipeline(FifoPipeline):
    """Coherent tail sampling, subject-aware attention and self-recurrent guidance (arXiv 2501.09019) on a FIFO queue.

    Everything that makes it this method is in configs/ouroboros.yaml; each of the three parts can be switched alone.
    """

    method_name = "ouroboros"
