"""A transformer as training calls it: any sequence of frames, with or without a past, in the precision of the run.

Shape letters: B batch, C channels, K frames of the call, P frames of the past, Y layers, N heads, S tokens in a frame,
D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longvid.training.backbone import rotary_table, rotate, sequence_forward
from longvid.training.distill.adapter import adapter_sums, worn_as_sums
from longvid.training.distill.history import FrameKeys

Past = Sequence[tuple[Tensor, Tensor]]


class Network(nn.Module):
    """Velocity of a frame sequence.

    transformer: diffusers' WanTransformer3DModel. precision: float32, or bfloat16 for matrix products under autocast
    (weights stay as they are). recompute: trade time for memory by recomputing the call's activations in the backward
    pass.
    """

    def __init__(
        self,
        transformer: Any,
        *,
        precision: torch.dtype = torch.float32,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.transformer, self.precision, self.recompute = transformer, precision, recompute
        self._sums: list[tuple[Any, Tensor]] = []

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        positions: Sequence[float],
        *,
        mask: Tensor | None = None,
        past: Past | None = None,
        record: bool = False,
    ) -> tuple[Tensor, FrameKeys | None]:
        """(velocity float32 [B, C, K, h, w], the frames' keys and values if they are to be recorded).

        latents: [B, C, K, h, w]. timesteps: [B, K]. text: [B, T, text_dim]. positions: K temporal positions. mask: bool
        [K, P + K]. past: `History.read`.
        """
        arguments = (latents, timesteps, text, torch.tensor(positions, dtype=torch.float64), mask, past, record)
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._run, *arguments, use_reentrant=False)  # type: ignore[no-any-return]
        return self._run(*arguments)

    def _run(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        past: Past | None,
        record: bool,
    ) -> tuple[Tensor, FrameKeys | None]:
        layers: list[tuple[Tensor, Tensor]] | None = [] if record else None
        # A cast of the weights made without gradient must not serve a call that is trained: it would cut the graph.
        trained = torch.is_grad_enabled()
        with self._low(reuse=not trained), worn_as_sums([] if trained else self._sums):
            velocity = sequence_forward(self.transformer, latents, timesteps, text, positions, mask, past, layers)
        if layers is None:
            return velocity.float(), None
        frames = latents.shape[2]
        keys, values = (torch.unflatten(torch.stack(side), 3, (frames, -1)) for side in zip(*layers, strict=True))
        return velocity.float(), FrameKeys(keys, values)

    def _low(self, reuse: bool) -> torch.autocast:
        low, device = self.precision != torch.float32, self.transformer.patch_embedding.weight.device.type
        return torch.autocast(device, self.precision if low else None, enabled=low, cache_enabled=reuse)

    @contextmanager
    def session(self) -> Iterator[None]:
        """A region within which no weight changes: calls without gradient share casts of the weights, and read an
        adapter's layers as one matrix (a third of a rollout)."""
        self._sums = adapter_sums(self.transformer, None if self.precision == torch.float32 else self.precision)
        try:
            with self._low(reuse=True):
                yield
        finally:
            self._sums = []

    def rotate(self, keys: Tensor, positions: Sequence[float], height: int, width: int) -> Tensor:
        """Keys [..., K*S, D] of frames of latent size height x width, turned to temporal positions."""
        config = self.transformer.config
        place = torch.tensor(positions, dtype=torch.float64, device=keys.device)
        _, rows, columns = config.patch_size
        cos, sin = rotary_table(place, height // rows, width // columns, config.attention_head_dim)
        return rotate(keys, (cos.to(keys.dtype), sin.to(keys.dtype)))
