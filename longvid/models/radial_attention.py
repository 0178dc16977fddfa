"""Radial attention on diffusers' stock video transformers: Wan, HunyuanVideo and Mochi.

    radial = RadialAttention.preset("wan2.1-14b")
    radial.attach(pipe.transformer)          # any stock pipeline; its class, weights and schedule stay as they are
    video = pipe("...", num_frames=69).frames
    radial.detach()

As published (arXiv 2506.19852, sec. 5.1), the first layers and the first sampling steps stay dense: they run the stock
processor, hence whatever backend `transformer.set_attention_backend` chose (flash, xformers, native...).

Shape letters: B batch, L video tokens (frame by frame), E text tokens, N heads, D head dim, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel, MochiTransformer3DModel, WanTransformer3DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_wan import _get_qkv_projections
from torch import Tensor

from longvid.errors import InputError, UnknownNameError
from longvid.kernels.attention import ATTENTION_BACKENDS, block_sparse_attention
from longvid.kernels.radial import RadialSpec, radial_blocks

from .rope import apply_rotary

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # Numbers of the released scripts: decay, block, dense layers, dense steps (of 50, 50, 40 and 50).
        "wan2.1-14b": {"spec": RadialSpec.wan(decay=0.2), "dense_layers": 1, "dense_steps": 12},
        "wan2.2-a14b": {"spec": RadialSpec.wan(decay=0.8, block=64), "dense_layers": 1, "dense_steps": 11},
        "hunyuan": {"spec": RadialSpec.hunyuan(decay=0.95), "dense_layers": 0, "dense_steps": 12},
        # Longer than trained, with a length-extension LoRA.
        "wan2.1-14b-long": {"spec": RadialSpec.wan(), "dense_layers": 2, "dense_steps": 2},
        "hunyuan-long": {"spec": RadialSpec.hunyuan(), "dense_layers": 2, "dense_steps": 2},
        "mochi-long": {"spec": RadialSpec.wan(), "dense_layers": 2, "dense_steps": 2},
    }
)
"""By model. `-long` ones are for clips beyond the training length, after fine-tuning."""


@dataclass
class RadialAttention:
    """One choice of radial attention, shared by every layer of the transformers it is attached to.

    spec: the mask's rule. dense_layers: first layers that stay dense. dense_steps: first sampling steps that stay
    dense, counted by the change of the timestep; it starts over when the timestep rises (a new video). Attach one
    object to both experts of Wan 2.2: they share the count. backend, strict: see `block_sparse_attention`.
    Use dense_steps=0 for training, where timesteps come in any order.
    """

    spec: RadialSpec = field(default_factory=RadialSpec)
    dense_layers: int = 0
    dense_steps: int = 0
    backend: str = "auto"
    strict: bool = False
    step: int = field(default=0, init=False)
    """Sampling step of the latest call, from 0."""
    grid: tuple[int, int] = field(default=(0, 0), init=False)
    """(latent frames, tokens in a frame) of the latest call."""

    def __post_init__(self) -> None:
        if self.backend not in ATTENTION_BACKENDS:
            raise UnknownNameError("backend", self.backend, ATTENTION_BACKENDS, where="radial attention")
        for name in ("dense_layers", "dense_steps"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}={getattr(self, name)}: must be 0 or more")
        self._timestep: float | None = None
        self._attached: list[tuple[Any, Any, list[tuple[Any, Any]]]] = []

    @classmethod
    def preset(cls, name: str, **changes: Any) -> RadialAttention:
        """The published numbers for a model, by a name of PRESETS."""
        if name not in PRESETS:
            raise UnknownNameError("preset", name, PRESETS, where="radial attention")
        return cls(**{**PRESETS[name], **changes})

    # ---------------------------------------------------------------- attach / detach

    def attach(self, transformer: Any) -> RadialAttention:
        """Set the self-attention processors of a stock transformer; returns itself. Refiners of text stay stock."""
        for model, _, _ in self._attached:
            if model is transformer:
                raise InputError("transformer: this radial attention is attached to it already; detach() first")
        kind = next((k for t, k in _PROCESSORS.items() if isinstance(transformer, t)), None)
        if kind is None:
            known = ", ".join(t.__name__ for t in _PROCESSORS)
            raise InputError(
                f"transformer: {type(transformer).__name__} is not supported; radial attention knows {known}"
            )
        replaced = []
        for layer, attention in enumerate(_self_attentions(transformer)):
            stock = attention.processor
            if isinstance(stock, _RadialProcessor):
                raise InputError("transformer: it has radial attention already; detach() that first")
            replaced.append((attention, stock))
            attention.processor = kind(self, layer, stock)  # Mochi's attention has no set_processor()
        hook = transformer.register_forward_pre_hook(self._observe, with_kwargs=True)
        self._attached.append((transformer, hook, replaced))
        return self

    def detach(self) -> None:
        """Give every transformer its stock processors back."""
        for _, hook, replaced in self._attached:
            hook.remove()
            for attention, stock in replaced:
                attention.processor = stock
        self._attached.clear()
        self._timestep, self.step = None, 0

    # ---------------------------------------------------------------- per call

    def _observe(self, model: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Before each forward of a transformer: note the grid, count the steps."""
        latents = named.get("hidden_states", arguments[0] if arguments else None)
        assert latents is not None
        patch = model.config.patch_size
        p_t = getattr(model.config, "patch_size_t", 1)
        if not isinstance(patch, int):
            p_t, p_h, p_w = patch
        else:
            p_h = p_w = patch
        frames, height, width = latents.shape[2:]
        self.grid = (frames // p_t, (height // p_h) * (width // p_w))
        if not self.dense_steps:
            return
        place = 2 if isinstance(model, MochiTransformer3DModel) else 1
        timestep = named.get("timestep", arguments[place] if len(arguments) > place else None)
        assert timestep is not None
        now = float(torch.as_tensor(timestep).max())
        if isinstance(model, MochiTransformer3DModel):
            now = -now  # Mochi's timesteps rise from 0 to 1000 while noise falls
        if self._timestep is None or now > self._timestep:
            self.step = 0
        elif now < self._timestep:
            self.step += 1
        self._timestep = now

    def is_dense(self, layer: int) -> bool:
        """Whether `layer` runs stock attention in the current call."""
        return layer < self.dense_layers or self.step < self.dense_steps

    def attend(self, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor) -> Tensor:
        """Radial attention over video tokens and, after them, any text (seen by all, seeing all). [B, L, N, D]."""
        frames, tokens = self.grid
        total = q_BLND.shape[1]
        if total < frames * tokens:
            raise InputError(
                f"attention over {total} tokens: the video alone has {frames} frames x {tokens}; context parallelism "
                "splits the sequence, which radial attention does not support"
            )
        blocks = radial_blocks(frames, tokens, self.spec, total=total)
        q, k, v = (x.transpose(1, 2) for x in (q_BLND, k_BLND, v_BLND))
        return block_sparse_attention(q, k, v, blocks, backend=self.backend, strict=self.strict).transpose(1, 2)


class _RadialProcessor:
    """What all three have in common: the dense case runs the processor that was there before."""

    _parallel_config = None

    def __init__(self, radial: RadialAttention, layer: int, stock: Any) -> None:
        self.radial, self.layer, self.stock = radial, layer, stock
        self._attention_backend = getattr(stock, "_attention_backend", None)

    def dense(self) -> bool:
        """Whether this call is the stock processor's; tells it which backend was chosen since."""
        if self._parallel_config is not None:
            raise InputError(
                "parallel_config: radial attention does not support context parallelism; detach() it first"
            )
        if not self.radial.is_dense(self.layer):
            return False
        if hasattr(self.stock, "_attention_backend"):
            self.stock._attention_backend = self._attention_backend  # set_attention_backend() reaches us, not it
        return True


class RadialWanProcessor(_RadialProcessor):
    """WanAttnProcessor's self-attention with block-sparse attention in its middle."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        if self.dense():
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)  # type: ignore[no-any-return]
        query, key, value = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)  # type: ignore[arg-type]
        q, k = (norm(x).unflatten(2, (attn.heads, -1)) for norm, x in ((attn.norm_q, query), (attn.norm_k, key)))
        cos, sin = rotary_emb[0][..., ::2], rotary_emb[1][..., 1::2]
        q, k = (apply_rotary(x, cos[0], sin[0]) for x in (q, k))
        out = self.radial.attend(q, k, value.unflatten(2, (attn.heads, -1)))
        result: Tensor = attn.to_out[1](attn.to_out[0](out.flatten(2).type_as(query)))
        return result


def _project(attn: Any, prefix: str, suffix: str, norm: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value heads of one stream, [B, L, N, D], normalised where the model normalises."""
    q, k, v = (getattr(attn, f"{prefix}{n}{suffix}")(x).unflatten(2, (attn.heads, -1)) for n in "qkv")
    norm_q, norm_k = getattr(attn, f"{norm}q", None), getattr(attn, f"{norm}k", None)
    return q if norm_q is None else norm_q(q), k if norm_k is None else norm_k(k), v


class _JointProcessor(_RadialProcessor):
    """Video and text in one sequence: text padding is left out of the attention, sample by sample."""

    def joint(
        self, video: tuple[Tensor, Tensor, Tensor], text: tuple[Tensor, Tensor, Tensor], valid_BE: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(video [B, L, N*D], text [B, E, N*D]); rows of padding in text are zero."""
        length = video[0].shape[1]
        batch, words = text[0].shape[:2]
        keep = torch.ones(batch, words, dtype=torch.bool) if valid_BE is None else valid_BE.bool().cpu()
        out_text = torch.zeros_like(text[0])
        pieces = []
        for sample in range(batch):
            index = keep[sample].nonzero()[:, 0].to(out_text.device)
            joined = [torch.cat([v[sample], t[sample, index]])[None] for v, t in zip(video, text, strict=True)]
            out = self.radial.attend(*joined)[0]
            pieces.append(out[:length])
            out_text[sample, index] = out[length:]
        return torch.stack(pieces).flatten(2), out_text.flatten(2)


class RadialHunyuanProcessor(_JointProcessor):
    """HunyuanVideoAttnProcessor2_0, double-stream and single-stream blocks, with block-sparse attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        if self.dense():
            return self.stock(  # type: ignore[no-any-return]
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
        q, k, v = _project(attn, "to_", "", "norm_", hidden_states)
        if attn.add_q_proj is None:  # single-stream blocks project video and text alike
            words = _project(attn, "to_", "", "norm_", encoder_hidden_states)
        else:
            words = _project(attn, "add_", "_proj", "norm_added_", encoder_hidden_states)
        if image_rotary_emb is not None:
            q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))  # type: ignore[assignment]
        valid = None
        if attention_mask is not None:  # [B, 1, 1, L + E], the same for every query
            valid = attention_mask[:, 0, 0, q.shape[1] :]
        video_out, text_out = self.joint((q, k, v), words, valid)
        if getattr(attn, "to_out", None) is not None:
            video_out = attn.to_out[1](attn.to_out[0](video_out))
        if getattr(attn, "to_add_out", None) is not None:
            text_out = attn.to_add_out(text_out)
        return video_out, text_out


class RadialMochiProcessor(_JointProcessor):
    """MochiAttnProcessor2_0 with block-sparse attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        if self.dense():
            return self.stock(  # type: ignore[no-any-return]
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
        q, k, v = _project(attn, "to_", "", "norm_", hidden_states)
        text = _project(attn, "add_", "_proj", "norm_added_", encoder_hidden_states)
        if image_rotary_emb is not None:
            q, k = (apply_rotary(x, *image_rotary_emb) for x in (q, k))
        video_out, text_out = self.joint((q, k, v), text, attention_mask)
        video_out = attn.to_out[1](attn.to_out[0](video_out))
        if hasattr(attn, "to_add_out"):
            text_out = attn.to_add_out(text_out)
        return video_out, text_out


_PROCESSORS: dict[type, Callable[[RadialAttention, int, Any], _RadialProcessor]] = {
    WanTransformer3DModel: RadialWanProcessor,
    HunyuanVideoTransformer3DModel: RadialHunyuanProcessor,
    MochiTransformer3DModel: RadialMochiProcessor,
}


def _self_attentions(transformer: Any) -> Iterator[Any]:
    """The video self-attentions in order; HunyuanVideo's single-stream blocks follow its double-stream ones."""
    kind = type(transformer)
    if issubclass(kind, WanTransformer3DModel):
        yield from (block.attn1 for block in transformer.blocks)
    elif issubclass(kind, HunyuanVideoTransformer3DModel):
        yield from (block.attn for block in transformer.transformer_blocks)
        yield from (block.attn for block in transformer.single_transformer_blocks)
    else:
        yield from (block.attn1 for block in transformer.transformer_blocks)
