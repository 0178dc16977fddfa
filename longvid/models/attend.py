"""Other self-attentions for cached calls: what `AttentionConfig` names, as a function the processors call.

Shape letters: B batch, L query tokens, T key tokens, N heads, D head dim.
"""

from __future__ import annotations

from torch import Tensor

from longvid.config import AttentionConfig
from longvid.errors import InputError

from .attention import Attend, AttentionCall


def attend_for(config: AttentionConfig, sink_frames: int = 1) -> Attend | None:
    """The attention function of a configuration; None for dense attention, which diffusers' dispatch runs.

    Radial (arXiv 2506.19852): queries are the call's frames, keys whatever the cache holds, each at its distance in
    frames. The frames of the call see each other in full, as block-causal models are trained; so are the cache's
    `sink_frames`. Far frames are thinned by their own number, which agrees with the cache policy `radial`. A call
    without a cache (a window of a queue) gets the published square mask.
    """
    if config.kind == "dense":
        return None
    from longvid.kernels.attention import ATTENTION_BACKENDS, block_sparse_attention
    from longvid.kernels.radial import RadialSpec, radial_blocks, rollout_blocks

    if config.backend not in ATTENTION_BACKENDS:
        known = ", ".join(ATTENTION_BACKENDS)
        raise InputError(f"attention.backend={config.backend!r}: must be one of {known} for radial attention")

    def attend(query_BLND: Tensor, key_BTND: Tensor, value_BTND: Tensor, *, call: AttentionCall) -> Tensor:
        view, tokens = call.view, call.tokens_per_frame
        if call.mask is not None:
            raise InputError("attention='radial': brings its own mask and takes no other; use 'dense'")
        if view is None:
            frames = query_BLND.shape[1] // tokens
            blocks = radial_blocks(frames, tokens, RadialSpec.for_grid(tokens, sink_frames=sink_frames))
        elif view.tokens:
            raise InputError(
                "attention='radial': needs whole frames in the cache; use a method without token selection, or 'dense'"
            )
        else:
            spec = RadialSpec.for_grid(tokens, sink_frames=sink_frames, anchor="key")
            blocks = rollout_blocks(view.own_frames, view.key_frames, tokens, spec, dense_chunk=True)
        out = block_sparse_attention(
            query_BLND.transpose(1, 2),
            key_BTND.to(query_BLND.dtype).transpose(1, 2),
            value_BTND.to(query_BLND.dtype).transpose(1, 2),
            blocks,
            backend=config.backend,
            strict=config.strict,
        )
        return out.transpose(1, 2)

    return attend
