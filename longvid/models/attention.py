"""Attention processors that let diffusers' stock WanTransformer3DModel read a FrameKVCache.

The stock block calls ``attn1(x, None, None, rotary_emb)`` and ``attn2(x, text, None, None)``. `CallRope` makes the
`AttentionCall` of the moment arrive as `rotary_emb`; the text's keys and values lie ready on the cross-attention
processor, computed once a prompt.

Per-frame noise levels: frames travel in the batch axis, [B*F, S, dim], so that the stock block's per-sample modulation
is per frame; only attention needs to see them side by side again.

Shape letters: B batch, F frames of the call, S tokens in a frame, L = F*S, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from .rope import apply_rotary

if TYPE_CHECKING:
    from ..cache.layer_store import CallView, LayerStore

Attend = Callable[..., Tensor]


@dataclass(slots=True)
class AttentionCall:
    """One model call, as the self-attention layers see it.

    batch: samples (guidance branches included); the hidden states are [batch * F, S, dim]. cos, sin: rotary tables of
    the call's tokens, [L, 1, D/2]. view: what to read from the cache, None to attend to the call's own tokens alone.
    mask: optional boolean or additive mask over own tokens (only without a cache). attend: another attention function,
    ``attend(query_BLND, key_BTND, value_BTND, call=call, store=store) -> [B, L, N, D]``, `store` being the layer's part
    of the cache or None.
    """

    batch: int
    cos: Tensor
    sin: Tensor
    view: CallView | None = None
    mask: Tensor | None = None
    attend: Attend | None = None
    tokens_per_frame: int = 0

    def key_frames(self, differentiable: bool) -> tuple[int, ...]:
        """The frame of each `tokens_per_frame` keys that a frame-level cache answers, in their order.

        differentiable: whether they carry gradients; the call's own keys then come last, not in the slot where they
        are stored.
        """
        view = self.view
        assert view is not None
        if not differentiable:
            return view.key_frames
        past = tuple(frame for frame in view.key_frames if frame < view.start)
        return past + view.own_frames[view.own // self.tokens_per_frame :]


class SelfAttentionProcessor:
    """Self-attention of one layer against the cache that is bound to it."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self) -> None:
        self.store: LayerStore | None = None
        self._stock: Any = WanAttnProcessor()  # type: ignore[no-untyped-call]

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        if not isinstance(rotary_emb, AttentionCall):  # the transformer is used without a Denoiser
            self._stock._attention_backend = self._attention_backend
            plain: Tensor = self._stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            return plain
        call = rotary_emb
        folded = hidden_states.shape
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        shape = (call.batch, -1, attn.heads, query.shape[-1] // attn.heads)
        query_BLND = attn.norm_q(query).reshape(shape)
        key_BLND, value_BLND = attn.norm_k(key).reshape(shape), value.reshape(shape)
        if call.view is not None and torch.compiler.is_compiling():
            # Which tokens are read and written where changes from block to block; a graph for each would never end.
            eager = torch.compiler.disable(self._attend)  # type: ignore[no-untyped-call]
            out = eager(call, query_BLND, key_BLND, value_BLND)
        else:
            out = self._attend(call, query_BLND, key_BLND, value_BLND)
        hidden_states = out.flatten(2).type_as(query).reshape(folded[0], folded[1], -1)
        projected: Tensor = attn.to_out[1](attn.to_out[0](hidden_states))
        return projected

    def _attend(self, call: AttentionCall, query_BLND: Tensor, key_BLND: Tensor, value_BLND: Tensor) -> Tensor:
        """Rotate, take own keys and values into the cache, and attend to what the call may see; [B, L, N, D]."""
        query_BLND = apply_rotary(query_BLND, call.cos, call.sin)
        if call.view is None:
            keys, values = apply_rotary(key_BLND, call.cos, call.sin), value_BLND
        else:
            assert self.store is not None
            keys, values = self.store.read(call.view, query_BLND, key_BLND, value_BLND)
        if call.attend is not None:
            return call.attend(query_BLND, keys, values, call=call, store=None if call.view is None else self.store)
        attended: Tensor = dispatch_attention_fn(
            query_BLND,
            keys.to(query_BLND.dtype),
            values.to(query_BLND.dtype),
            attn_mask=call.mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attended


class TextAttentionProcessor:
    """Cross-attention of one layer to text keys and values that were computed once for the prompt.

    text: keys and values of the call's prompt. parts: (frames, keys and values) when the call's frames have several
    prompts, in the order of the frames; `text` then is the first.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self) -> None:
        self.text: tuple[Tensor, Tensor] | None = None
        self.parts: list[tuple[int, tuple[Tensor, Tensor]]] | None = None
        self._stock: Any = WanAttnProcessor()  # type: ignore[no-untyped-call]

    @staticmethod
    def keys_values(attn: Any, text_BLC: Tensor) -> tuple[Tensor, Tensor]:
        """Project embedded text to this layer's keys and values, each [B, L_text, N, D]."""
        if attn.fused_projections:
            key, value = attn.to_kv(text_BLC).chunk(2, dim=-1)
        else:
            key, value = attn.to_k(text_BLC), attn.to_v(text_BLC)
        return attn.norm_k(key).unflatten(2, (attn.heads, -1)), value.unflatten(2, (attn.heads, -1))

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        if self.text is None:
            self._stock._attention_backend = self._attention_backend
            plain: Tensor = self._stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            return plain
        key, value = self.text
        folded = hidden_states.shape
        query = attn.norm_q(attn.to_q(hidden_states)).reshape(key.shape[0], -1, *key.shape[2:])
        if self.parts is None:
            out = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        else:
            tokens = folded[1]  # in a frame
            queries = torch.split(query, [frames * tokens for frames, _ in self.parts], dim=1)
            out = torch.cat(
                [
                    dispatch_attention_fn(part, *text, backend=self._attention_backend)
                    for part, (_, text) in zip(queries, self.parts, strict=True)
                ],
                dim=1,
            )
        hidden_states = out.flatten(2).type_as(query).reshape(folded[0], folded[1], -1)
        projected: Tensor = attn.to_out[1](attn.to_out[0](hidden_states))
        return projected


def block_causal_mask(block_sizes: list[int], tokens_per_frame: int, window: int = -1) -> Tensor:
    """Boolean mask [L, L], True = may attend: full attention inside a block, causal between blocks.

    window: frames counted back from the end of the query's own block, -1 = all. The truth that cached evaluation is
    tested against.
    """
    ends, at = [], 0
    for size in block_sizes:
        at += size
        ends += [at] * size
    end = torch.tensor(ends).repeat_interleave(tokens_per_frame)
    frame = torch.arange(at).repeat_interleave(tokens_per_frame)
    allowed = frame[None, :] < end[:, None]
    if window != -1:
        allowed &= frame[None, :] >= end[:, None] - window
    return allowed
