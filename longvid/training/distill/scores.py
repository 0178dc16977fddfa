"""The two judges' clean predictions of a noised clip: the real score (the frozen base) and the fake score (the critic).

"bidirectional", as published: the clip is denoised as a whole. "causal", for bases that were only trained block by
block: every block is denoised given the clean blocks before it (teacher forcing), so the judges compare
p(block | blocks before it) instead of p(clip). It needs no bidirectional teacher, and it is blind to errors that every
block inherits from the one before; docs/training.md says when to use which.

Shape letters: B batch, C channels, F latent frames, h w latent size, T text tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from longvid.training.layouts import teacher_forcing

Judgement = Literal["bidirectional", "causal"]
JUDGEMENTS: tuple[Judgement, ...] = ("bidirectional", "causal")
NetworkCall = Callable[..., tuple[Tensor, object]]
"""`Network.forward`, or a wrapper around it (DistributedDataParallel)."""


def score_velocity(
    network: NetworkCall,
    noisy: Tensor,
    timestep: Tensor,
    text: Tensor,
    *,
    judgement: Judgement = "bidirectional",
    clean: Tensor | None = None,
    frames_per_block: int = 1,
) -> Tensor:
    """Velocity [B, C, F, h, w] of a clip that is noised to one level a sample.

    noisy, clean: [B, C, F, h, w]; `clean` is what "causal" conditions on. timestep: [B]. text: [B, T, text_dim].
    """
    batch, frames = noisy.shape[0], noisy.shape[2]
    times = timestep.to(noisy.device, torch.float32)[:, None].expand(batch, frames)
    if judgement == "bidirectional":
        return network(noisy, times, text, range(frames))[0]
    assert clean is not None
    # The layout of teacher forcing: [clean blocks but the last | noisy blocks]; its noise levels are not used.
    layout = teacher_forcing(np.random.default_rng(0), batch, frames // frames_per_block, frames_per_block)
    source, noised = torch.from_numpy(layout.source), torch.from_numpy(layout.loss)
    context = clean.detach()[:, :, source[~noised]]
    sequence = torch.cat([context, noisy], dim=2)
    times = torch.cat([times.new_zeros(batch, context.shape[2]), times], dim=1)
    mask = torch.from_numpy(layout.mask)
    return network(sequence, times, text, source.tolist(), mask=mask)[0][:, :, context.shape[2] :]


def guided_velocity(
    network: NetworkCall, noisy: Tensor, timestep: Tensor, text: Tensor, negative: Tensor, scale: float, **how: object
) -> Tensor:
    """v_u + scale (v_c - v_u), both branches in one call. negative: [B, T, text_dim].

    The released code writes v_c + w (v_c - v_u): its w = 3 is a scale of 4 here.
    """
    if scale == 1.0:
        return score_velocity(network, noisy, timestep, text, **how)  # type: ignore[arg-type]
    doubled = {name: torch.cat([x, x]) if isinstance(x, Tensor) else x for name, x in how.items()}
    both = score_velocity(
        network,
        torch.cat([noisy, noisy]),
        torch.cat([timestep, timestep]),
        torch.cat([negative, text]),
        **doubled,  # type: ignore[arg-type]
    )
    unconditional, conditional = both.chunk(2)
    return unconditional + scale * (conditional - unconditional)
