"""Subject-aware cross-frame attention on a video transformer (Ouroboros-Diffusion, Eq. 4).

The published layer attends within each frame and appends the subject's keys and values of all the window's frames:

    O_j = softmax( Q_j [K_j ; K']^T / sqrt(D) ) [V_j ; V']         K', V' = rows of K, V under the subject mask

A transformer with joint space-time attention already mixes the window's frames, so appending rows that are there
(``boost``) only adds log 2 to the logits of the subject's keys. What joint attention lacks is what lies outside the
window; ``bridge`` appends the subject's keys and values of the frames before the window, as the pass before left them.

The mask comes from the text: how much of each token's cross-attention goes to the words that name the subject.

Shape letters: B batch, F latent frames, S tokens in a frame, L = F * S tokens, M appended tokens, P text tokens,
N heads, D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor
from torch.nn import functional


class SubjectTokens(NamedTuple):
    """Keys and values to append, padded to one length.

    Attributes:
        key, value: ``[B, M, N, D]``.
        valid: bool ``[B, M]``, False where a row is padding.
    """

    key: Tensor
    value: Tensor
    valid: Tensor

    def expand(self, batch: int) -> SubjectTokens:
        """The same tokens for every one of ``batch`` rows."""
        return SubjectTokens(*(x.expand(batch, *x.shape[1:]) for x in self))


def top_rows(mask: Tensor, scores: Tensor | None, limit: int) -> tuple[Tensor, Tensor]:
    """Indices of the masked rows, best scores first, at most ``limit``.

    Args:
        mask: bool ``[B, L]``.
        scores: ``[B, L]`` or None (the earliest rows win).

    Returns:
        ``index`` int64 ``[B, M]`` and ``valid`` bool ``[B, M]``, ``M`` the longest row's count.
    """
    if scores is None:
        scores = -torch.arange(mask.shape[1], device=mask.device, dtype=torch.float32).expand(mask.shape)
    count = min(limit, int(mask.sum(dim=1).max()))
    index = scores.float().masked_fill(~mask, -math.inf).topk(count, dim=1).indices
    return index, mask.gather(1, index)


def take_rows(x_BLND: Tensor, index: Tensor) -> Tensor:
    """Rows ``index [B, M]`` of ``[B, L, ...]``."""
    return x_BLND.gather(1, index[:, :, None, None].expand(-1, -1, *x_BLND.shape[2:]))


def gather_subject(
    key: Tensor, value: Tensor, mask: Tensor, *, scores: Tensor | None = None, limit: int = 1024
) -> SubjectTokens:
    """Keys and values under a mask: ``K', V'`` of Eq. 4.

    Args:
        key, value: ``[B, L, N, D]``.
        mask: bool ``[B, L]``.
        scores: ``[B, L]``; with more than ``limit`` masked tokens the highest stay.
    """
    index, valid = top_rows(mask, scores, limit)
    return SubjectTokens(take_rows(key, index), take_rows(value, index), valid)


def attend_with_subject(
    query: Tensor, key: Tensor, value: Tensor, subject: SubjectTokens | None, *, backend: Any = None
) -> Tensor:
    """``softmax(Q [K ; K']^T / sqrt(D)) [V ; V']``, all ``[B, L, N, D]``; plain attention when there is no subject."""
    attn_mask = None
    if subject is not None and subject.key.shape[1]:
        key = torch.cat([key, subject.key.to(key)], dim=1)
        value = torch.cat([value, subject.value.to(value)], dim=1)
        if not bool(subject.valid.all()):
            own = torch.ones(key.shape[0], key.shape[1] - subject.valid.shape[1], dtype=torch.bool, device=key.device)
            attn_mask = torch.cat([own, subject.valid.to(key.device)], dim=1)[:, None, None]
    return dispatch_attention_fn(query, key, value, attn_mask=attn_mask, backend=backend)


# -- masks -------------------------------------------------------------------------------------------------------


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
