"""A training forward over the stock WanTransformer3DModel: any frame sequence, any frame mask, a timestep a frame.

The stock module is the parameter container and the format on disk; its own forward has neither an attention mask nor a
timestep a frame. This one has both and is otherwise the same mathematics (a test holds the two together to 1e-5), so
what it trains runs under diffusers as it is. It can also read keys and values of frames that went before, and give its
own: the functional form of a cache.

Shapes: B batch, C channels, K frames in the sequence (a clean copy, then a noisy one, say), P frames read from the
past, S tokens in a frame, L = K*S tokens, N heads, D head dim, E = N*D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from diffusers import WanTransformer3DModel
from torch import Tensor


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Wan's split of a head's rotary dimensions into time, height, width."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rotary_table(positions: Tensor, height: int, width: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin [K*height*width, head_dim], pairs repeated, for temporal positions [K] and a token grid."""
    angles = []
    rows, columns = (torch.arange(size, device=positions.device).double() for size in (height, width))
    grid = torch.meshgrid(positions.double(), rows, columns, indexing="ij")
    for axis, dim in zip(grid, axis_dims(head_dim), strict=True):
        frequency = 10000.0 ** (-torch.arange(0, dim, 2, device=positions.device).double() / dim)
        angles.append((axis.flatten()[:, None] * frequency).repeat_interleave(2, 1))
    angle = torch.cat(angles, 1)
    return angle.cos().float(), angle.sin().float()


def _swap(head_dim: int, like: Tensor) -> Tensor:
    """[D, D] matrix P with x @ P = (-x1, x0, -x3, x2, ...): a matrix product is faster here than strided copies."""
    swap = torch.zeros(head_dim, head_dim, dtype=like.dtype, device=like.device)
    even = torch.arange(0, head_dim, 2, device=like.device)
    swap[even + 1, even] = -1
    swap[even, even + 1] = 1
    return swap


def rotate(x: Tensor, table: tuple[Tensor, Tensor], swap: Tensor | None = None) -> Tensor:
    """Turn keys or queries [..., L, D] by the tables [L, D] of :func:`rotary_table`."""
    cos, sin = table
    return torch.addcmul(x * cos, x @ (_swap(cos.shape[-1], x) if swap is None else swap), sin)


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm through one reduction; torch's own is six passes over x on a CPU."""
    inverse = torch.rsqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1] + eps)
    return x * inverse * weight.to(x.dtype)


def _modulated(x: Tensor, eps: float, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm without weights, then scale and shift [B, K, 1, E] over the tokens [B, K, S, E] of each frame."""
    return torch.addcmul(shift, nnf.layer_norm(x, (x.shape[-1],), None, None, eps), 1 + scale)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(attn, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention, written out on a CPU: its fused attention has a slow backward at these sizes."""
    if q.is_cuda:
        out = nnf.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))
    score = q @ (k * q.shape[-1] ** -0.5).transpose(-1, -2)
    if bias is not None:
        score = score + bias
    out = torch.softmax(score, -1, dtype=score.dtype) @ v
    return attn.to_out[0](out.transpose(1, 2).flatten(2))


def _self_attention(
    attn,
    x: Tensor,
    table: tuple[Tensor, Tensor],
    swap: Tensor,
    bias: Tensor | None,
    past: tuple[Tensor, Tensor] | None,
    record: list[tuple[Tensor, Tensor]] | None,
) -> Tensor:
    heads = attn.heads
    q = _heads(_rms(attn.to_q(x), attn.norm_q.weight, attn.norm_q.eps), heads)
    k = _heads(_rms(attn.to_k(x), attn.norm_k.weight, attn.norm_k.eps), heads)
    v = _heads(attn.to_v(x), heads)
    if record is not None:
        record.append((k, v))
    q, k = rotate(q, table, swap), rotate(k, table, swap)
    if past is not None:
        k, v = torch.cat([past[0].to(k.dtype), k], 2), torch.cat([past[1].to(v.dtype), v], 2)
    return _attend(attn, q, k, v, bias)


def _text_attention(attn, x: Tensor, text: Tensor) -> Tensor:
    heads = attn.heads
    q = _heads(_rms(attn.to_q(x), attn.norm_q.weight, attn.norm_q.eps), heads)
    k = _heads(_rms(attn.to_k(text), attn.norm_k.weight, attn.norm_k.eps), heads)
    return _attend(attn, q, k, _heads(attn.to_v(text), heads), None)


def sequence_forward(
    model: WanTransformer3DModel,
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    positions: Tensor,
    frame_mask: Tensor | None,
    past: Sequence[tuple[Tensor, Tensor]] | None = None,
    record: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Velocity [B, C, K, h, w] for every frame of a sequence.

    Args:
        latents: [B, C, K, h, w].
        timestep: [B, K], 0..1000.
        text: caption embeddings [B, T, text_dim].
        positions: [K] temporal positions (a clean copy and a noisy copy share theirs).
        frame_mask: bool [K, P + K], query frame may see key frame, those of the past first; None for all.
        past: keys, already rotated to where they are read, and values [B, N, P*S, D] of earlier frames, a layer each.
        record: a list to which each layer appends its keys before rotation and its values, [B, N, L, D].
    """
    config = model.config
    batch, _, frames, height, width = latents.shape
    grid = (height // config.patch_size[1], width // config.patch_size[2])
    tokens = grid[0] * grid[1]
    device = latents.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else latents.dtype
    cos, sin = rotary_table(positions.to(latents.device), *grid, config.attention_head_dim)
    table = (cos.to(dtype), sin.to(dtype))
    swap = _swap(config.attention_head_dim, cos.to(dtype))
    bias = None
    if frame_mask is not None:
        blocked = torch.zeros(frame_mask.shape, dtype=dtype, device=latents.device)
        blocked = blocked.masked_fill(~frame_mask.to(latents.device), float("-inf"))
        bias = blocked.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)

    embed = model.condition_embedder
    wave = embed.timesteps_proj(timestep.flatten())
    temb = embed.time_embedder(wave.to(dtype)).unflatten(0, (batch, frames))
    six = embed.time_proj(embed.act_fn(temb)).unflatten(-1, (6, -1))
    text = embed.text_embedder(text.to(dtype))

    patches = latents.transpose(1, 2).reshape(batch * frames, -1, height, width)
    x = nnf.conv2d(
        patches.to(dtype),
        model.patch_embedding.weight[:, :, 0].to(dtype),
        model.patch_embedding.bias.to(dtype),
        stride=config.patch_size[1:],
    )
    x = x.flatten(2).transpose(1, 2).unflatten(0, (batch, frames))  # [B, K, S, E]
    for index, block in enumerate(model.blocks):
        mod = (block.scale_shift_table.to(dtype) + six).unsqueeze(3)  # [B, K, 6, 1, E]
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = mod.unbind(2)
        h = _modulated(x, config.eps, scale_a, shift_a).flatten(1, 2)
        before = None if past is None else past[index]
        attended = _self_attention(block.attn1, h, table, swap, bias, before, record)
        x = torch.addcmul(x, gate_a, attended.unflatten(1, (frames, tokens)))
        h = x
        if config.cross_attn_norm:
            h = nnf.layer_norm(x, (x.shape[-1],), block.norm2.weight.to(dtype), block.norm2.bias.to(dtype), config.eps)
        x = x + _text_attention(block.attn2, h.flatten(1, 2), text).unflatten(1, (frames, tokens))
        x = torch.addcmul(x, gate_f, block.ffn(_modulated(x, config.eps, scale_f, shift_f)))
    shift, scale = (model.scale_shift_table.to(dtype) + temb.unsqueeze(2)).unsqueeze(3).unbind(2)
    out = model.proj_out(_modulated(x, config.eps, scale, shift))
    p = config.patch_size[1:]
    out = out.view(batch, frames, *grid, *p, -1).permute(0, 6, 1, 2, 4, 3, 5)
    return out.reshape(batch, -1, frames, height, width)
