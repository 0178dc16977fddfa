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
    `sink_frames`. Far frames are thinned by their own number, which agrees with the cache policy `radial`.
    """
    if config.kind == "dense":
        return None
    from longvid.kernels.attention import ATTENTION_BACKENDS, block_sparse_attention
    from longvid.kernels.radial import RadialSpec, rollout_blocks

    if config.backend not in ATTENTION_BACKENDS:
        known = ", ".join(ATTENTION_BACKENDS)
        raise InputError(f"attention.backend={config.backend!r}: must be one of {known} for radial attention")

    def attend(query_BLND: Tensor, key_BTND: Tensor, value_BTND: Tensor, *, call: AttentionCall) -> Tensor:
        view = call.view
        if view is None or view.tokens:
            raise InputError(
                "attention='radial': needs whole frames in the cache; use a method without token selection, or 'dense'"
            )
        spec = RadialSpec.for_grid(call.tokens_per_frame, sink_frames=sink_frames, anchor="key")
        blocks = rollout_blocks(view.own_frames, view.key_frames, call.tokens_per_frame, spec, dense_chunk=True)
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
