"""Awkward shapes that every implementation of block-sparse attention is held to, and the comparison itself."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from longvid.kernels.attention.naive import naive_block_sparse_attention
from longvid.kernels.blocks import BlockCSR, even_starts, uniform_starts


@dataclass
class AttentionCase:
    """One awkward shape. `density` of random blocks; some rows are emptied on request."""

    name: str
    queries: int
    keys: int
    q_block: int
    kv_block: int
    head_dim: int
    batch: int = 1
    heads: int = 2
    mask_heads: int = 1
    density: float = 0.4
    empty_rows: bool = False
    even_frames: int = 0  # blocks aligned to this many frames instead of uniform ones
    transposed: bool = False  # [B, L, N, D] storage seen as [B, N, L, D]: what a transformer hands over
    scale: float | None = None
    dtype: torch.dtype = torch.float32
    tolerance: float = 3e-6
    lse_tolerance: float = 3e-6
    tensors: tuple[Tensor, ...] = field(default=(), repr=False)

    def blocks(self) -> BlockCSR:
        rng = np.random.default_rng(len(self.name))
        if self.even_frames:
            q_starts = even_starts(self.even_frames, self.queries // self.even_frames, self.q_block)
            kv_starts = even_starts(self.even_frames, self.keys // self.even_frames, self.kv_block)
        else:
            q_starts, kv_starts = uniform_starts(self.queries, self.q_block), uniform_starts(self.keys, self.kv_block)
        mask = rng.random((self.mask_heads, len(q_starts) - 1, len(kv_starts) - 1)) < self.density
        if self.empty_rows:
            mask[:, ::2] = False
            mask[:, :, 0] = False
        else:
            mask[:, :, 0] = True
        return BlockCSR.from_dense(mask, q_starts, kv_starts)

    def draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q, k, v, and the gradients of out and lse."""
        generator = torch.Generator().manual_seed(len(self.name))

        def normal(length: int) -> Tensor:
            shape = (self.batch, length, self.heads, self.head_dim)
            x = torch.randn(shape, generator=generator).to(self.dtype).transpose(1, 2)
            return x if self.transposed else x.contiguous()

        lse = torch.randn(self.batch, self.heads, self.queries, generator=generator)
        return normal(self.queries), normal(self.keys), normal(self.keys), normal(self.queries), lse


CASES = [
    AttentionCase("one-block", 16, 16, 16, 16, 16, heads=1),
    AttentionCase("ragged-both", 70, 130, 16, 32, 24),
    AttentionCase("single-query", 1, 45, 16, 16, 32),
    AttentionCase("empty-rows-and-columns", 96, 80, 16, 16, 32, empty_rows=True),
    AttentionCase("per-head-masks", 64, 64, 16, 16, 16, batch=2, heads=3, mask_heads=3),
    AttentionCase("even-blocks-of-30", 180, 300, 32, 32, 64, even_frames=3),
    AttentionCase("wan-block-128", 300, 400, 128, 128, 128, heads=1),
    AttentionCase("block-64-transposed", 200, 200, 64, 64, 64, transposed=True),
    AttentionCase("block-wider-than-tile", 200, 320, 200, 160, 32),
    AttentionCase("own-scale", 64, 64, 32, 32, 32, scale=0.5),
    AttentionCase("head-dim-96", 64, 96, 32, 32, 96),
    AttentionCase("fp16", 96, 96, 32, 32, 64, dtype=torch.float16, tolerance=3e-3),
    AttentionCase("bf16", 96, 96, 32, 32, 64, dtype=torch.bfloat16, tolerance=3e-2),
]


def assert_close(name: str, truth: Tensor, ours: Tensor, tolerance: float) -> None:
    """Difference at most `tolerance` of the largest true value (at least 1); infinities in the same places."""
    assert ours.shape == truth.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(truth.shape)}"
    assert torch.equal(ours.isinf(), truth.isinf()), f"{name}: infinities differ"
    assert not ours.isnan().any(), f"{name}: NaN"
    ours, truth = (x.detach().double().masked_fill(x.isinf(), 0) for x in (ours, truth))
    error = (ours - truth).abs().max().item() / max(1.0, truth.abs().max().item())
    assert error <= tolerance, f"{name}: relative error {error:.2e} over {tolerance:.0e}"


def check_attention(case: AttentionCase, attend) -> None:
    """`attend(q, k, v, blocks, scale) -> (out, lse)` against the float64 truth, with all three gradients."""
    blocks = case.blocks()
    q, k, v, d_out, d_lse = case.draw()
    scale = case.head_dim**-0.5 if case.scale is None else case.scale
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out, lse = attend(*leaves, blocks, scale)
    assert out.dtype == case.dtype
    assert lse.dtype == torch.float32
    true_leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
    true_out, true_lse = naive_block_sparse_attention(*true_leaves, blocks, scale)
    assert_close("out", true_out, out, case.tolerance)
    assert_close("lse", true_lse, lse, case.lse_tolerance)
    finite = true_lse.isfinite()
    gradients = torch.autograd.grad([out, lse], leaves, [d_out, d_lse.masked_fill(~finite, 0)])
    true_gradients = torch.autograd.grad(
        [true_out, true_lse.masked_fill(~finite, 0)], true_leaves, [d_out.double(), d_lse.double()]
    )
    for name, truth, ours in zip(("dq", "dk", "dv"), true_gradients, gradients):
        assert ours.dtype == case.dtype
        assert_close(name, truth, ours, case.tolerance * 2)
