"""Memory of the cache: zeros for tokens of all layers, laid out for the device that attends to them.

Shape letters: B batch, T tokens, N heads, D head dim; shapes begin with the layers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def allocate(shape_LBTND: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros [layers, B, T, N, D].

    On a CPU the tokens of a head lie side by side in memory: attention to thousands of keys is faster so than where
    each token's heads do, with rows kilobytes apart. GPU kernels copy whole tokens.
    """
    if torch.device(device).type != "cpu":
        return torch.zeros(shape_LBTND, dtype=dtype, device=device)
    layers, batch, tokens, heads, dim = shape_LBTND
    return torch.zeros((layers, batch, heads, tokens, dim), dtype=dtype).transpose(2, 3)


def pieces(span_LBTND: Tensor) -> Tensor:
    """A span of tokens as [M, T, ., D], each of the M pieces one stretch of memory: samples, or heads of samples."""
    _, _, tokens, heads, dim = span_LBTND.shape
    if span_LBTND.stride(2) < span_LBTND.stride(3):
        return span_LBTND.transpose(2, 3).view(-1, tokens, 1, dim)
    return span_LBTND.view(-1, tokens, heads, dim)
