"""Other self-attentions for model calls: what `AttentionConfig` names, as a function the processors call.

Shape letters: B batch, L query tokens, T key tokens, M appended tokens, N heads, D head dim.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor

from longvid.config import AttentionConfig, MethodConfig
from longvid.errors import InputError, UnknownNameError
from longvid.kernels.attention import ATTENTION_BACKENDS, block_sparse_attention, merge_attention
from longvid.kernels.backend import BackendError
from longvid.kernels.blocks import BlockCSR, uniform_starts
from longvid.kernels.radial import RadialSpec, rollout_blocks

from .attention import Attend, AttentionCall
from .recency import Recency, recency_attend


def attend_for_method(method: MethodConfig) -> Attend | None:
    """The attention function of a method's calls; None for dense attention without a bias.

    Raises InputError for a backend that its attention does not have.
    """
    if method.attention.recency:
        return recency_attend(Recency.of(method))
    return attend_for(method.attention, max(1, method.cache.sink))


def attend_for(config: AttentionConfig, sink_frames: int = 1) -> Attend | None:
    """The attention function of a configuration; None for dense attention, which diffusers' dispatch runs.

    Radial (arXiv 2506.19852): queries are the call's frames, keys whatever the cache holds, each at its distance in
    frames. The frames of the call see each other in full, as block-causal models are trained; so are the cache's
    `sink_frames`. Far frames are thinned by their own number, which agrees with the cache policy `radial`. In a call
    without a cache (a window of a queue) every frame is at its distance from every other and frames are thinned by
    distance, as published. Blocks are cut inside frames, so that a grid of any size keeps every block that it should.
    Tokens that a policy selected one by one (Deep Forcing) belong to no frame any more: every query sees them and the
    sinks in front of them; the whole frames behind them are banded.

    A recency bias needs to know blocks and cache, so it is `attend_for_method`'s.

    Its `settings` say which tokens see each other, whatever kernel computes it.

    The function takes `extra` = (key [B, M, N, D], value, valid bool [B, M]): tokens from outside the grid, which every
    query sees.
    """
    if config.kind == "dense":
        return None
    if config.backend not in ATTENTION_BACKENDS:
        known = ", ".join(ATTENTION_BACKENDS)
        raise InputError(f"attention.backend={config.backend!r}: must be one of {known} for radial attention")
    backend: dict[str, Any] = {"backend": config.backend, "strict": config.strict}

    def blocks_of(call: AttentionCall, length: int, store: Any, differentiable: bool) -> BlockCSR:
        view, tokens = call.view, call.tokens_per_frame
        if call.mask is not None:
            raise InputError("attention='radial': brings its own mask and takes no other; use 'dense'")
        if view is None:
            window = range(length // tokens)
            return rollout_blocks(window, window, tokens, RadialSpec.for_grid(tokens, sink_frames=sink_frames))
        spec = RadialSpec.for_grid(tokens, sink_frames=sink_frames, anchor="key")
        if not view.tokens:
            return rollout_blocks(view.own_frames, call.key_frames(differentiable), tokens, spec, dense_chunk=True)
        whole = store.selector.whole_frames()
        frames = (*range(view.start - whole, view.start), *view.own_frames[view.own // tokens :])
        return _beside(store.selector.length - whole * tokens, view.own_frames, frames, tokens, spec)

    def attend(
        query_BLND: Tensor,
        key_BTND: Tensor,
        value_BTND: Tensor,
        *,
        call: AttentionCall,
        store: Any = None,
        extra: Any = None,
    ) -> Tensor:
        query, key, value = (x.to(query_BLND.dtype).transpose(1, 2) for x in (query_BLND, key_BTND, value_BTND))
        blocks = blocks_of(call, query.shape[2], store, key.requires_grad)
        if extra is None or not extra[0].shape[1]:
            alone: Tensor = block_sparse_attention(query, key, value, blocks, **backend)
            return alone.transpose(1, 2)
        out, lse = block_sparse_attention(query, key, value, blocks, return_lse=True, **backend)
        more_key, more_value, valid = extra
        rows = []
        for sample in range(len(query)):
            one = slice(sample, sample + 1)
            kept = valid[sample].nonzero()[:, 0].to(query.device)
            if not len(kept):
                rows.append(out[one])
                continue
            k, v = (x[one].index_select(1, kept).to(query.dtype).transpose(1, 2) for x in (more_key, more_value))
            whole = BlockCSR.dense(uniform_starts(query.shape[2], 128), [0, len(kept)])
            part, part_lse = block_sparse_attention(query[one], k, v, whole, return_lse=True, **backend)
            rows.append(merge_attention(out[one], lse[one], part, part_lse)[0])
        return torch.cat(rows).transpose(1, 2)

    attend.settings = {"kind": config.kind, "sink_frames": sink_frames}  # type: ignore[attr-defined]
    return attend


@lru_cache(maxsize=64)
def _beside(loose: int, own: tuple[int, ...], frames: tuple[int, ...], tokens: int, spec: RadialSpec) -> BlockCSR:
    """The mask of `own` over [loose tokens, seen by all ; frames]."""
    banded = rollout_blocks(own, frames, tokens, spec, dense_chunk=True)
    if not loose:
        return banded
    rows = np.repeat(np.arange(banded.q_blocks), np.diff(banded.row_ptr))
    every = np.arange(banded.q_blocks)
    return BlockCSR.from_pairs(
        np.concatenate([every, rows]),
        np.concatenate([np.zeros_like(every), banded.col_idx + 1]),
        banded.q_starts,
        np.concatenate([[0], banded.kv_starts + loose]),
    )


def set_dense_backend(transformer: Any, config: AttentionConfig, device: torch.device) -> None:
    """Run the dense attention of a Wan transformer through one of diffusers' backends ("flash", "xformers", ...).

    "auto" changes nothing: `transformer.set_attention_backend` may have been called. A backend that cannot run here is
    found out by a call with a few tokens of the model's own head size, type and device; then the one before stays, with
    a warning that says why, or BackendError if `config.strict`. Raises UnknownNameError on another name.
    """
    name = config.backend
    if config.kind != "dense" or name == "auto":
        return
    known = [str(backend.value) for backend in AttentionBackendName]
    if name not in known:
        raise UnknownNameError("attention.backend", name, known, where="diffusers")
    before = transformer.blocks[0].attn1.processor._attention_backend
    fallback = str(before.value) if before else "native"
    try:
        transformer.set_attention_backend(name)
        shape = (1, 16, transformer.config.num_attention_heads, transformer.config.attention_head_dim)
        tokens = torch.zeros(shape, dtype=transformer.dtype, device=device)
        dispatch_attention_fn(tokens, tokens, tokens, backend=AttentionBackendName(name))
    except Exception as error:  # each library has its own way of saying that it is not there or does not like the input
        if transformer.blocks[0].attn1.processor._attention_backend != before:
            transformer.set_attention_backend(fallback)  # also for what else in the process follows the latest choice
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0].rstrip(".") if lines else type(error).__name__
        message = f"attention.backend={name!r} cannot be used: {reason}"
        if config.strict:
            raise BackendError(f"{message}; name another or allow falling back") from error
        warnings.warn(f"{message}; using {fallback!r}", RuntimeWarning, stacklevel=3)
