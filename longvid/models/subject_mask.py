"""Where a prompt's subject is: a mask over video tokens, read from the model's own text cross-attention.

How much of each token's cross-attention goes to the words that name the subject, averaged over heads and over the
middle layers, cut in two by Otsu's threshold. Ouroboros-Diffusion (arXiv 2501.09019) uses such a mask without giving
its rule; this one is ours.

Shape letters: B batch, F latent frames, S tokens in a frame, L = F * S tokens, P text tokens, N heads, D head dim,
h w mask height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def subject_probability(
    query: Tensor, text_key: Tensor, positions: Sequence[Sequence[int]], chunk: int = 4096
) -> Tensor:
    """Share of each token's cross-attention that goes to the subject's words, mean over heads, float32 ``[B, L]``.

    Wan's cross-attention has no text mask: padding takes part in the softmax, so the true normaliser over all ``P``
    text tokens is computed, and only the subject's columns are kept: ``p = exp(q k_w / sqrt(D) - LSE(q))``.

    Args:
        query: normed queries ``[B, L, N, D]``.
        text_key: normed text keys ``[B, P, N, D]``.
        positions: for each batch row, positions of the subject's words among the text tokens.
        chunk: queries at a time; bounds memory at ``chunk * P * N``.
    """
    scale = query.shape[-1] ** -0.5
    columns = torch.zeros(text_key.shape[:2], device=query.device)
    for row, row_positions in enumerate(positions):
        columns[row, list(row_positions)] = 1.0
    parts = []
    for block in torch.split(query, chunk, dim=1):
        weights = (torch.einsum("blnd,bpnd->bnlp", block.float(), text_key.float()) * scale).softmax(dim=-1)
        parts.append(torch.einsum("bnlp,bp->bl", weights, columns) / query.shape[2])
    return torch.cat(parts, dim=1)


def otsu_threshold(values: Tensor, bins: int = 64) -> Tensor:
    """Otsu's threshold of values in [0, 1], one for each row of ``[..., S]``: the cut between the two classes whose
    means lie furthest apart, weighted by their sizes. Rows without two classes get 0.5."""
    rows = values.reshape(-1, values.shape[-1])
    index = (rows * bins).long().clamp(0, bins - 1)
    counts = torch.zeros(rows.shape[0], bins, device=rows.device).scatter_add_(1, index, torch.ones_like(rows))
    centres = (torch.arange(bins, device=rows.device) + 0.5) / bins
    below, mass = counts.cumsum(1), (counts * centres).cumsum(1)
    above = below[:, -1:] - below
    mean_below = mass / below.clamp_min(1)
    mean_above = (mass[:, -1:] - mass) / above.clamp_min(1)
    spread = below * above * (mean_below - mean_above) ** 2
    best = spread.max(dim=1)
    # Between two far classes every cut is equally good; take the middle of the plateau.
    plateau = spread >= best.values[:, None] * (1 - 1e-6)
    cut = (plateau * (torch.arange(bins, device=rows.device) + 1.0)).sum(1) / plateau.sum(1) / bins
    return torch.where(best.values > 0, cut, torch.full_like(cut, 0.5)).reshape(values.shape[:-1])


def binary_mask(probability: Tensor, *, min_area: float = 0.02, max_area: float = 0.60) -> Tensor:
    """Where the subject is: per-frame min-max, Otsu, and nothing at all when the area is not a subject's.

    Args:
        probability: ``[..., F, S]``.

    Returns:
        bool ``[..., F, S]``; a frame whose masked share is outside ``[min_area, max_area]`` is empty. A frame of
        few tokens may always hold one of them.
    """
    low, high = probability.amin(-1, keepdim=True), probability.amax(-1, keepdim=True)
    scaled = (probability - low) / (high - low).clamp_min(1e-12)
    mask = scaled > otsu_threshold(scaled)[..., None]
    area = mask.float().mean(-1, keepdim=True)
    smallest = min(min_area, 1.0 / probability.shape[-1])
    return mask & (area >= smallest) & (area <= max_area)


def dilated_mask(mask: Tensor, token_hw: tuple[int, int]) -> Tensor:
    """A mask ``[F, h, w]`` on another grid: bilinear, then everything above zero, so it grows by the interpolation."""
    resized = functional.interpolate(mask[None].to(torch.float64), size=token_hw, mode="bilinear", align_corners=False)
    return resized[0] != 0
