"""Recency bias of cached self-attention: the older a cached frame between sink and newest block, the less it counts.

After Recency Forcing (arXiv 2609.19729). To the scores of a key whose block lies d blocks before the call, and before
the softmax, is added

    bias = -beta * min(1, max(0, d - 1) / span) ** gamma

    sink      history of a call, span = 4        own frames
    [ 0 ]     [ 5 ][ 4 ][ 3 ][ 2 ][ 1 ]          [  0  ]       d of the history; the bias is 0 at sink, d = 1 and own

Shape letters: B batch, L query tokens, T key tokens, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor

from longvid.config import MethodConfig
from longvid.errors import InputError

from .attention import Attend, AttentionCall

GAMMA = 0.1 * 2**2.5
"""Exponent of the distance. The paper takes 0.1 * 2**t at its denoising step t = 1..4; this is their geometric mean."""


@dataclass(frozen=True, slots=True)
class Recency:
    """Which cached frames count less, and by how much.

    beta: bias of the oldest history, 0 or more; re-implementations of the paper use 4. frames_per_block: frames of a
    block. sink: first frames, which are never biased. window: `CacheConfig.window`, sink and current block included;
    -1: no such number (everything is kept, or thinned by age). gamma: exponent of the distance.
    """

    beta: float
    frames_per_block: int
    sink: int = 0
    window: int = -1
    gamma: float = GAMMA

    @classmethod
    def of(cls, method: MethodConfig) -> Recency:
        """The bias of a method."""
        cache = method.cache
        return cls(
            beta=method.attention.recency,
            frames_per_block=method.schedule.frames_per_block,
            sink=0 if cache.policy in ("full", "window") else cache.sink,  # as the policies do
            window=-1 if cache.policy in ("full", "radial") else cache.window,
        )

    def distance(self, start: int, frame: int) -> int:
        """Blocks from the call's first frame back to the block of `frame`: 1 for the newest, 0 for the call's own.

        Counted back from the call, where all blocks are whole: a first frame that is a block of its own is the oldest.
        """
        return max(0, -((frame - start) // self.frames_per_block))

    def span(self, own_frames: Sequence[int], key_frames: Sequence[int]) -> int:
        """Distance in blocks from the newest block of a full history to its oldest, at least 1.

        What the window leaves beside the sink and one block, the same in every call: also in one that carries several
        blocks, and while the history still grows. Without a window: back to the oldest frame that the call reads.
        """
        start = own_frames[0]
        if self.window > 0:
            oldest = start - (self.window - self.sink - self.frames_per_block)
        else:
            oldest = min((frame for frame in key_frames if frame >= self.sink), default=start)
        return max(1, self.distance(start, oldest) - 1)

    def bias(self, own_frames: Sequence[int], key_frames: Sequence[int]) -> tuple[float, ...]:
        """The bias of each key frame, 0 or below, in the order of `key_frames`.

        own_frames: the call's frames, one or more, rising. key_frames: ids of the frames that are read, in any order.
        """
        start, span = own_frames[0], self.span(own_frames, key_frames)
        found = []
        for frame in key_frames:
            past = 0 if frame < self.sink else self.distance(start, frame) - 1
            found.append(-self.beta * min(1.0, past / span) ** self.gamma if past > 0 else 0.0)
        return tuple(found)


def recency_attend(recency: Recency) -> Attend:
    """Dense attention with a recency bias on what the cache holds, as a function for `AttentionCall.attend`.

    The bias is the same in all layers, heads and calls: also in a block's commit call, which sees what the denoise
    calls see unless `cache.commit_window` narrows it. In a joint window (schedule "rolling") the distance counts from
    the window's first frame, for all of its frames. A recache (one call over all remembered frames) has no history
    beside the sink, so no bias; nor has a call whose window leaves one block of history or none.

    gamma is constant where the paper's doubles with every denoising step: attention does not know the step, a joint
    window holds all steps in one call, and students have one to five steps where the paper counts four.

    Runs on torch's scaled_dot_product_attention, whatever backend the transformer has: flash and its kin take no bias.
    Where nothing is biased yet, none is passed. The function raises InputError for a token-level policy's call, whose
    keys belong to no frame.
    """
    bias_of = lru_cache(maxsize=64)(recency.bias)

    def attend(
        query_BLND: Tensor, key_BTND: Tensor, value_BTND: Tensor, *, call: AttentionCall, store: Any = None
    ) -> Tensor:
        mask, view = call.mask, call.view
        if view is not None:
            if view.tokens:
                raise InputError(
                    f"attention.recency={recency.beta:g}: the cache's tokens belong to no frame; use a policy of frames"
                )
            frames = call.key_frames(key_BTND.requires_grad)
            mask = _mask(bias_of(view.own_frames, frames), call.tokens_per_frame, query_BLND.dtype, query_BLND.device)
        attended: Tensor = dispatch_attention_fn(
            query_BLND,
            key_BTND.to(query_BLND.dtype),
            value_BTND.to(query_BLND.dtype),
            attn_mask=mask,
            backend=AttentionBackendName.NATIVE,
        )
        return attended

    attend.settings = {"recency": recency.beta}  # type: ignore[attr-defined]
    return attend


@lru_cache(maxsize=64)
def _mask(bias: tuple[float, ...], tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """The additive mask [1, 1, 1, T] of frames of `tokens` tokens; None where it would add nothing."""
    if not any(bias):
        return None
    with torch.inference_mode(False):  # it is kept, and autograd takes no inference tensors
        return torch.tensor(bias, dtype=dtype, device=device).repeat_interleave(tokens)[None, None, None]
