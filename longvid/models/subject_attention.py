"""Subject-aware cross-frame attention on a video transformer (Ouroboros-Diffusion, Eq. 4).

The published layer attends within each frame and appends the subject's keys and values of all the window's frames:

    O_j = softmax( Q_j [K_j ; K']^T / sqrt(D) ) [V_j ; V']         K', V' = rows of K, V under the subject mask

A transformer with joint space-time attention already mixes the window's frames, so appending rows that are there
(``boost``) only adds log 2 to the logits of the subject's keys. What joint attention lacks is what lies outside the
window; ``bridge`` appends the subject's keys and values of the frames before the window, as the pass before left them.

Shape letters: B batch, F latent frames, S tokens in a frame, L = F * S tokens, M appended tokens, N heads, D head dim.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor

from longvid.config import AttentionConfig
from longvid.kernels.backend import BackendError
from longvid.models.attention import Attend, AttentionCall, SelfAttentionProcessor


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

    def repeat(self, times: int) -> SubjectTokens:
        """``[B, ...]`` to ``[times * B, ...]``, sample by sample within each of ``times``."""
        return SubjectTokens(*(x.repeat(times, *[1] * (x.ndim - 1)) for x in self))

    def join(self, other: SubjectTokens) -> SubjectTokens:
        """Both sets of tokens."""
        return SubjectTokens(*(torch.cat([a, b.to(a.dtype)], dim=1) for a, b in zip(self, other, strict=True)))


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
    """``softmax(Q [K ; K']^T / sqrt(D)) [V ; V']``, all ``[B, L, N, D]``; plain attention when there is no subject.

    Where rows of the batch have unlike numbers of tokens, the padding is masked and "native" takes the place of
    ``backend``: flash attention, sage attention and their kin refuse any mask.
    """
    attn_mask = None
    if subject is not None and subject.key.shape[1]:
        key = torch.cat([key, subject.key.to(key)], dim=1)
        value = torch.cat([value, subject.value.to(value)], dim=1)
        if not bool(subject.valid.all()):
            own = torch.ones(key.shape[0], key.shape[1] - subject.valid.shape[1], dtype=torch.bool, device=key.device)
            attn_mask = torch.cat([own, subject.valid.to(key.device)], dim=1)[:, None, None]
            backend = AttentionBackendName.NATIVE
    return dispatch_attention_fn(query, key, value, attn_mask=attn_mask, backend=backend)


def tell_masked(transformer: Any, layers: Sequence[int], config: AttentionConfig) -> None:
    """Say that masked calls of ``layers`` leave the transformer's attention backend for "native", if they do.

    Raises:
        BackendError: they do and ``config.strict`` forbids it.
    """
    backend = transformer.blocks[layers[0]].attn1.processor._attention_backend
    if backend is None or AttentionBackendName(backend) == AttentionBackendName.NATIVE:
        return
    name = AttentionBackendName(backend).value
    message = f"attention.backend={name!r}: layers {', '.join(map(str, layers))} see the subject under a mask"
    if config.strict:
        raise BackendError(f"{message}, and run on 'native'; name that, or allow falling back")
    warnings.warn(f"{message}; using 'native' there", RuntimeWarning, stacklevel=3)


@dataclass(slots=True)
class SubjectCall(AttentionCall):
    """A model call whose conditional rows see the subject's tokens once more.

    Attributes:
        conditional: how many of the last rows are conditional; rows before them are the negative prompt's.
        boost_mask: bool ``[conditional, L]``: append the window's own tokens under it (``boost``).
        boost_scores: ``[conditional, L]``, which of them stay when there are more than ``limit``.
        appended: layer to tokens from outside the window (``bridge``), ``[conditional, M, N, D]``.
        limit: tokens appended to a layer at most.
    """

    conditional: int = 0
    boost_mask: Tensor | None = None
    boost_scores: Tensor | None = None
    appended: Mapping[int, SubjectTokens] = field(default_factory=dict)
    limit: int = 1024

    def attend_in(self, layer: int, backend: Any) -> Attend:
        """Attention of one layer, for ``AttentionCall.attend``."""

        def with_subject(query: Tensor, key: Tensor, value: Tensor, subject: SubjectTokens | None) -> Tensor:
            if self.attend is not None:
                return self.attend(query, key, value, call=self, extra=subject)
            return attend_with_subject(query, key, value, subject, backend=backend)

        def attend(query: Tensor, key: Tensor, value: Tensor, *, call: Any, store: Any = None) -> Tensor:
            first = query.shape[0] - self.conditional
            q, k, v = query[first:], key[first:], value[first:]
            subject = self.appended.get(layer)
            if self.boost_mask is not None:
                own = gather_subject(k, v, self.boost_mask, scores=self.boost_scores, limit=self.limit)
                subject = own if subject is None else subject.join(own)
            out = with_subject(q, k, v, subject)
            if first == 0:
                return out
            plain = with_subject(query[:first], key[:first], value[:first], None)
            return torch.cat([plain, out])

        return attend


class SubjectAttentionProcessor(SelfAttentionProcessor):
    """Self-attention that obeys a ``SubjectCall``; any other call it leaves as it is."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        if isinstance(rotary_emb, SubjectCall):
            call = rotary_emb
            attend = call.attend_in(self.layer, self._attention_backend)
            rotary_emb = AttentionCall(
                call.batch, call.cos, call.sin, attend=attend, tokens_per_frame=call.tokens_per_frame
            )
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
