"""Denoiser: a stock WanTransformer3DModel that predicts velocity block by block against a FrameKVCache.

Shape letters: B batch, C channels, F latent frames, h w latent size, S tokens in a frame, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..cache.frame_cache import FrameKVCache
from ..cache.policies import Policy
from .attention import Attend, AttentionCall, SelfAttentionProcessor, TextAttentionProcessor
from .rope import CallRope, ExactTimesteps, RotaryTables


@dataclass(slots=True)
class TextContext:
    """A prompt, ready for every layer: cross-attention keys and values, each [branches * B, L_text, N, D].

    branches: 1, or 2 when the negative prompt's branch (first half of the batch) is carried for guidance.
    embeds: the prompt embeddings that they were computed from, [branches * B, L_text, text_dim].
    """

    layers: list[tuple[Tensor, Tensor]]
    embeds: Tensor
    branches: int = 1
    _batch: int = field(init=False)

    def __post_init__(self) -> None:
        self._batch = self.embeds.shape[0] // self.branches

    @property
    def batch(self) -> int:
        return self._batch


class _Stock(NamedTuple):
    """The transformer's own parts while a Denoiser holds it. A tuple, so that no module registers them."""

    rope: Any
    timesteps: Any
    processors: list[tuple[Any, Any]]


class Denoiser:
    """Owns the wiring between one transformer and the caches of its rollouts.

    transformer: diffusers' WanTransformer3DModel, text-to-video. Its class, weights and state-dict keys stay as they
    are; its parameterless position and timestep modules and its attention processors are exchanged (`release()` puts
    the stock ones back). Several caches and prompts may take turns on one Denoiser.

    attend: another self-attention function for cached calls, see `AttentionCall`. device: where calls run, when that is
    not where the weights lie (offloading).
    """

    def __init__(
        self, transformer: Any, attend: Attend | None = None, device: torch.device | str | None = None
    ) -> None:
        config = transformer.config
        if config.patch_size[0] != 1:
            raise ValueError(f"patch_size={tuple(config.patch_size)}: the temporal patch must be 1")
        if config.image_dim is not None or config.added_kv_proj_dim is not None:
            raise ValueError(
                "transformer: image-conditioned Wan checkpoints (image_dim) are not supported; use text-to-video"
            )
        if config.out_channels not in (None, config.in_channels):
            raise ValueError(
                f"transformer: in_channels={config.in_channels} and out_channels={config.out_channels} must agree; "
                "checkpoints that take a picture beside the latents are not supported; use text-to-video"
            )
        self.transformer, self.attend = transformer, attend
        self.device = torch.device(device or transformer.patch_embedding.weight.device)
        self.heads, self.head_dim = config.num_attention_heads, config.attention_head_dim
        self.channels, self.text_dim = config.in_channels, config.text_dim
        self._patch = tuple(config.patch_size)
        self._tables: dict[tuple[int, int, torch.device], RotaryTables] = {}
        self._install()

    def _install(self) -> None:
        model = self.transformer
        if not isinstance(model.rope, CallRope):
            processors = [(b.attn1.processor, b.attn2.processor) for b in model.blocks]
            model._longvid_stock = _Stock(model.rope, model.condition_embedder.timesteps_proj, processors)
            model.rope = CallRope(self.head_dim, self._patch)
            model.condition_embedder.timesteps_proj = ExactTimesteps(model.config.freq_dim)
        for block in model.blocks:
            for attn, kind in ((block.attn1, SelfAttentionProcessor), (block.attn2, TextAttentionProcessor)):
                if not isinstance(attn.processor, kind):
                    backend = getattr(attn.processor, "_attention_backend", None)
                    attn.set_processor(kind())
                    attn.processor._attention_backend = backend
        self._rope: CallRope = model.rope

    def release(self) -> None:
        """Give the transformer its stock rope and attention processors back."""
        stock = self.transformer.__dict__.pop("_longvid_stock", None)
        if stock is None:
            return
        self.transformer.rope = stock.rope
        self.transformer.condition_embedder.timesteps_proj = stock.timesteps
        for block, (first, second) in zip(self.transformer.blocks, stock.processors, strict=True):
            block.attn1.set_processor(first)
            block.attn2.set_processor(second)

    # Asked of the layers at each call: another Denoiser of the same transformer may have exchanged some since.

    @property
    def _self(self) -> list[SelfAttentionProcessor]:
        return [block.attn1.processor for block in self.transformer.blocks]

    @property
    def _text(self) -> list[TextAttentionProcessor]:
        return [block.attn2.processor for block in self.transformer.blocks]

    # ---------------------------------------------------------------- sizes

    @property
    def layers(self) -> int:
        return len(self.transformer.blocks)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.transformer.patch_embedding.weight.dtype
        return dtype

    def rotary(self, height: int, width: int) -> RotaryTables:
        """The tables of a latent size. Raises ValueError when the patch does not divide it."""
        for name, size, patch in (("height", height, self._patch[1]), ("width", width, self._patch[2])):
            if size < patch or size % patch:
                near = max(patch, size // patch * patch)
                raise ValueError(f"{name}={size} (latent): must be a multiple of the patch {patch}; nearest {near}")
        key = (height // self._patch[1], width // self._patch[2], self.device)
        if key not in self._tables:
            self._tables[key] = RotaryTables(self.head_dim, *key)
        return self._tables[key]

    def new_cache(
        self,
        policy: Policy,
        *,
        batch: int,
        height: int,
        width: int,
        dtype: torch.dtype | None = None,
        window: int = 0,
    ) -> FrameKVCache:
        """A cache of this model for latents of height x width; `batch` counts guidance branches too. window: frames of
        a call at most, when it carries more than a block."""
        return FrameKVCache(
            policy,
            layers=self.layers,
            batch=batch,
            heads=self.heads,
            head_dim=self.head_dim,
            rotary=self.rotary(height, width),
            dtype=dtype or self.dtype,
            device=self.device,
            window=window,
        )

    # ---------------------------------------------------------------- text

    @torch.no_grad()
    def encode_text(self, prompt_embeds: Tensor, negative_embeds: Tensor | None = None) -> TextContext:
        """Text MLP and every layer's text keys and values, once a prompt.

        prompt_embeds, negative_embeds: [B, L_text, text_dim] of the text encoder.
        """
        embeds = prompt_embeds if negative_embeds is None else torch.cat([negative_embeds, prompt_embeds])
        if embeds.ndim != 3 or embeds.shape[-1] != self.text_dim:
            raise ValueError(f"prompt_embeds: shape {tuple(embeds.shape)} must be [batch, tokens, {self.text_dim}]")
        model = self.transformer
        # Not called through the transformer, whose hook would fetch it: whole-model offloading leaves it where it lies,
        # sequential offloading (weights on "meta") fetches it by a hook of its own.
        where: torch.device = model.patch_embedding.weight.device
        text = model.condition_embedder.text_embedder(
            embeds.to(self.device if where.type == "meta" else where, self.dtype)
        )
        layers = []
        for block in model.blocks:
            key, value = TextAttentionProcessor.keys_values(block.attn2, text)
            layers.append((key.to(self.device), value.to(self.device)))
        return TextContext(layers, embeds.detach(), branches=1 if negative_embeds is None else 2)

    # ---------------------------------------------------------------- model calls

    def __call__(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: TextContext | Sequence[tuple[int, TextContext]],
        cache: FrameKVCache,
        view: Literal["denoise", "commit"] = "denoise",
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Velocity [B, C, F, h, w] (float32) of the frames of the cache's open block or window.

        latents: [B, C, F, h, w]. timesteps: [B, F] or [F], in 0..1000. text: the prompt, or (frames, prompt) pairs in
        order when frames of the call have different ones. view: "commit" also keeps the un-roped keys;
        follow it with cache.commit(). guidance_scale: v_uncond + g (v_cond - v_uncond), when `text` has two branches.
        """
        resolved = cache.view(view)
        call = AttentionCall(
            cache.batch,
            resolved.cos,
            resolved.sin,
            view=resolved,
            attend=self.attend,
            tokens_per_frame=cache.tokens_per_frame,
        )
        processors = self._self
        for processor, store in zip(processors, cache.layers, strict=True):
            processor.store = store
        try:
            return self._run(latents, timesteps, text, call, guidance_scale)
        finally:
            # A rollout that is dropped must free its cache: the transformer outlives it.
            for processor in processors:
                processor.store = None

    def full(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: TextContext,
        *,
        mask: Tensor | None = None,
        positions: Sequence[float] | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Velocity of a whole clip in one call without a cache: bidirectional, or under a mask over its tokens.

        positions: temporal positions, 0..F-1 when not given.
        """
        frames, height, width = latents.shape[2:]
        rotary = self.rotary(height, width)
        cos, sin = rotary.at(range(frames) if positions is None else positions)
        call = AttentionCall(
            latents.shape[0] * text.branches, cos, sin, mask=mask, tokens_per_frame=rotary.tokens_per_frame
        )
        return self._run(latents, timesteps, text, call, guidance_scale)

    def _run(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: TextContext | Sequence[tuple[int, TextContext]],
        call: AttentionCall,
        guidance_scale: float,
    ) -> Tensor:
        parts: Sequence[tuple[int, TextContext]] = ()
        if not isinstance(text, TextContext):
            parts = text if len(text) > 1 else ()
            text = text[0][1]
        batch, channels, frames, height, width = latents.shape
        if channels != self.channels:
            raise ValueError(f"latents: {channels} channels, the transformer takes {self.channels}")
        if text.batch != batch:
            raise ValueError(f"latents: batch {batch} does not match the prompt's batch {text.batch}")
        # Frames go into the batch axis: one timestep and one modulation a frame, in the stock forward.
        folded = latents.transpose(1, 2).reshape(batch * frames, channels, 1, height, width).to(self.dtype)
        timesteps = timesteps.to(self.device, torch.float32).expand(batch, frames).reshape(-1)
        if text.branches == 2:
            folded, timesteps = folded.repeat(2, 1, 1, 1, 1), timesteps.repeat(2)
        processors = self._text
        for i, processor in enumerate(processors):
            processor.text = text.layers[i]
            processor.parts = [(frames, part.layers[i]) for frames, part in parts] if parts else None
        self._rope.call = call
        try:
            # The text lies ready in the processors; the stock text MLP gets zero tokens.
            nothing = folded.new_empty(1, 0, self.text_dim)
            velocity: Tensor = self.transformer(folded, timesteps, nothing, return_dict=False)[0]
        finally:
            self._rope.call = None
            for processor in processors:
                processor.text = processor.parts = None
        velocity = velocity.reshape(text.branches, batch, frames, -1, height, width).transpose(2, 3).float()
        if text.branches == 1:
            return velocity[0]
        uncond, cond = velocity
        return uncond + guidance_scale * (cond - uncond)
