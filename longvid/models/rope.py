"""Wan's three-axis rotary position embedding at any temporal position, and its timestep sinusoid in full precision.

Shape letters: B batch, L tokens, N heads, D head dim, P positions (latent frames), S tokens in a frame.

Wan's own table ends at 1,024 latent frames (256 s). Here angles are computed for the positions that are asked for, in
float64, so positions may be any number, fractional or negative included.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longvid.kernels.backend import interpreting
from longvid.kernels.cache_ops import rotate_tokens

THETA = 10000.0


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Rotary dims of the (time, height, width) axes: (d - 4*floor(d/6), 2*floor(d/6), 2*floor(d/6))."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def _frequencies(dim: int) -> Tensor:
    return THETA ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


class RotaryTables:
    """Cosine and sine tables for frames of one size.

    `at(positions)` returns (cos, sin), each float32 [P*S, 1, D/2], tokens frame by frame, rows before columns. The
    newest few are remembered: every call of a block asks for the same.
    """

    REMEMBERED = 24

    def __init__(self, head_dim: int, rows: int, columns: int, device: torch.device | str = "cpu") -> None:
        if head_dim % 2:
            raise ValueError(f"head_dim={head_dim}: rotary pairs need an even number")
        self.head_dim, self.rows, self.columns = head_dim, rows, columns
        self.tokens_per_frame = rows * columns
        self.device = torch.device(device)
        time_dim, row_dim, column_dim = axis_dims(head_dim)
        self._time_frequencies = _frequencies(time_dim)
        row_angles = torch.arange(rows, dtype=torch.float64)[:, None] * _frequencies(row_dim)
        column_angles = torch.arange(columns, dtype=torch.float64)[:, None] * _frequencies(column_dim)
        space = torch.cat(
            [
                row_angles[:, None, :].expand(rows, columns, -1),
                column_angles[None, :, :].expand(rows, columns, -1),
            ],
            dim=-1,
        ).reshape(self.tokens_per_frame, -1)
        self._space_cos, self._space_sin = space.cos().float(), space.sin().float()
        self._remembered: OrderedDict[tuple[float, ...], tuple[Tensor, Tensor]] = OrderedDict()

    def at(self, positions: Sequence[float]) -> tuple[Tensor, Tensor]:
        key = tuple(positions)
        found = self._remembered.get(key)
        if found is not None:
            self._remembered.move_to_end(key)
            return found
        with torch.inference_mode(False):  # they are kept, and autograd takes no inference tensors
            angles = torch.tensor(key, dtype=torch.float64)[:, None] * self._time_frequencies
            tables = (
                self._join(angles.cos().float(), self._space_cos),
                self._join(angles.sin().float(), self._space_sin),
            )
        self._remembered[key] = tables
        if len(self._remembered) > self.REMEMBERED:
            self._remembered.popitem(last=False)
        return tables

    def _join(self, time: Tensor, space: Tensor) -> Tensor:
        count, tokens = time.shape[0], self.tokens_per_frame
        table = torch.cat(
            [time[:, None, :].expand(count, tokens, -1), space[None].expand(count, tokens, -1)], dim=-1
        ).reshape(count * tokens, 1, -1)
        return table.to(self.device)

    def apply(self, x_BLND: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
        return apply_rotary(x_BLND, cos, sin, out=out)

    def rotate(self, x_BLND: Tensor, positions: Sequence[float], out: Tensor | None = None) -> Tensor:
        """Rotate keys or queries of whole frames to `positions`."""
        return apply_rotary(x_BLND, *self.at(positions), out=out)


def apply_rotary(x_BLND: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Rotate adjacent pairs (2i, 2i+1) by the table's angles, in float32, back in x's dtype (RoFormer, eq. 34).

    out: written in place of a new tensor; its dtype may differ from x's.
    """
    differentiable = torch.is_grad_enabled() and x_BLND.requires_grad
    in_kernel = (x_BLND.is_cuda or interpreting()) and not differentiable and not torch.compiler.is_compiling()
    length, half = x_BLND.shape[1], x_BLND.shape[-1] // 2
    if in_kernel and cos.numel() == length * half:  # one table for all samples and heads
        # one pass over memory in place of eight
        return rotate_tokens(x_BLND, cos.reshape(length, half), sin.reshape(length, half), out=out)
    if out is None:
        out = torch.empty_like(x_BLND, memory_format=torch.contiguous_format)
    if not differentiable and not torch.compiler.is_compiling():
        # (even + i odd) (cos + i sin): the same products and sums, and one pass where the lines below take eight.
        pairs = torch.view_as_complex(x_BLND.float().contiguous().unflatten(-1, (-1, 2)))
        turn = torch.complex(cos, sin)
        if out.dtype == torch.float32:
            torch.mul(pairs, turn, out=torch.view_as_complex(out.unflatten(-1, (-1, 2))))
        else:
            out.copy_(torch.view_as_real(pairs * turn).flatten(-2))
        return out
    even, odd = x_BLND.unflatten(-1, (-1, 2)).unbind(-1)
    even, odd = even.float(), odd.float()
    if differentiable:
        pair = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
        return pair.flatten(-2).to(x_BLND.dtype)
    pairs = out.unflatten(-1, (-1, 2))
    pairs[..., 0] = even * cos - odd * sin
    pairs[..., 1] = even * sin + odd * cos
    return out


class CallRope(nn.Module):
    """Stands in for WanTransformer3DModel.rope: hands the current call to the attention processors.

    The stock forward passes whatever this module returns to every self-attention. Outside a call it computes what the
    stock module would, without its limit of 1,024 frames.
    """

    def __init__(self, head_dim: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.head_dim, self.patch_size = head_dim, tuple(patch_size)
        self.call: Any = None

    def forward(self, hidden_states: Tensor) -> Any:
        if self.call is not None:
            return self.call
        frames, height, width = hidden_states.shape[2:]
        p_t, p_h, p_w = self.patch_size
        tables = RotaryTables(self.head_dim, height // p_h, width // p_w, hidden_states.device)
        cos, sin = tables.at(range(frames // p_t))
        return tuple(t.repeat_interleave(2, dim=-1)[None] for t in (cos, sin))


class ExactTimesteps(nn.Module):
    """Stands in for the transformer's parameterless `timesteps_proj`: [cos, sin] of t * 10000^(-i/half), angles in
    float64 as the original Wan computes them (float32 angles of t near 1000 cost 1e-5 in the output)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.half = channels // 2
        self._frequencies: Tensor | None = None  # not a buffer: it stays float64 whatever the model is cast to

    def forward(self, timesteps: Tensor) -> Tensor:
        if self._frequencies is None or self._frequencies.device != timesteps.device:
            exponent = torch.arange(self.half, dtype=torch.float64, device=timesteps.device) / self.half
            self._frequencies = THETA**-exponent
        angles = timesteps.double()[:, None] * self._frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1).float()
