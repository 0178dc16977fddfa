"""The cache's hot loops: plain twins against first principles, Triton kernels (interpreter) against the twins."""

import importlib.util
import os

import pytest
import torch
from attention_cases import assert_close

from longvid.kernels.attention import block_sparse_attention
from longvid.kernels.backend import BackendError
from longvid.kernels.blocks import BlockCSR
from longvid.kernels.cache_ops import column_mass, column_scores, ema_merge, gather_tokens, rotate_tokens
from longvid.models.rope import RotaryTables

INTERPRETED = pytest.param(
    "triton",
    marks=[
        pytest.mark.interpreter,
        pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    ],
)
both = pytest.mark.parametrize("backend", ["plain", INTERPRETED])
SHAPES = [(1, 1, 1, 8), (2, 37, 3, 24), (1, 70, 2, 64), (2, 33, 1, 128)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def normal(*shape: int, dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tolerance(dtype: torch.dtype) -> float:
    return 2e-6 if dtype == torch.float32 else 8e-3


@both
@shapes
@dtypes
def test_rotation_is_a_complex_product(shape, dtype, backend):
    batch, tokens, heads, dim = shape
    source = normal(*shape, dtype=dtype)
    angle = normal(tokens, dim // 2, seed=1) * 3
    out = rotate_tokens(source, angle.cos(), angle.sin(), backend=backend, strict=True)
    pairs = torch.view_as_complex(source.double().reshape(batch, tokens, heads, dim // 2, 2))
    truth = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle).to(torch.complex128)[:, None])
    assert_close("rotated", truth.flatten(-2), out, tolerance(dtype))
    assert out.dtype == dtype


@both
def test_rotation_reads_any_slots_into_a_strided_buffer_of_another_dtype(backend):
    """What a cache does at read: ring-buffer slots in, a window side by side out."""
    source, angle = normal(2, 40, 3, 16, dtype=torch.bfloat16), normal(25, 8, seed=1)
    index = torch.randperm(40, generator=torch.Generator().manual_seed(2))[:25]
    buffer = torch.zeros(2, 30, 3, 16)
    out = rotate_tokens(
        source, angle.cos()[:, None], angle.sin()[:, None], index=index, out=buffer[:, 5:], backend=backend, strict=True
    )
    truth = rotate_tokens(source[:, index].float(), angle.cos(), angle.sin(), backend="plain")
    assert_close("rotated", truth, out, 1e-6)
    assert not buffer[:, :5].any()


def test_rotation_equals_the_transformers_tables():
    tables = RotaryTables(24, rows=2, columns=3)
    x = normal(1, 4 * 6, 2, 24)
    cos, sin = tables.at([7, 8, 1000, -3])
    assert_close("rotated", tables.rotate(x, [7, 8, 1000, -3]), rotate_tokens(x, cos, sin, backend="plain"), 1e-6)


@both
@shapes
@dtypes
@pytest.mark.parametrize("fusion", ["sum", "max"])
def test_column_scores_equal_the_whole_matrix(shape, dtype, fusion, backend):
    batch, _, heads, dim = shape
    q, k = normal(batch, 19, heads, dim, dtype=dtype, seed=3), normal(*shape, dtype=dtype)
    matrix = torch.einsum("brnd,btnd->brt", q.double(), k.double()) / (dim**0.5 * heads)
    truth = matrix.sum(1) if fusion == "sum" else matrix.amax(1)
    assert_close("scores", truth, column_scores(q, k, fusion=fusion, backend=backend, strict=True), 3e-6)


@both
@shapes
@dtypes
def test_column_mass_equals_the_softmax(shape, dtype, backend):
    batch, _, heads, dim = shape
    q, k = normal(batch, 19, heads, dim, dtype=dtype, seed=3), normal(*shape, dtype=dtype)
    logits = torch.einsum("brnd,btnd->bnrt", q.double(), k.double()) * dim**-0.5
    lse = torch.logsumexp(logits, -1)
    mass = column_mass(q, k, lse.float(), backend=backend, strict=True)
    assert_close("mass", logits.softmax(-1).sum(2), mass, 3e-6)


def test_column_mass_takes_the_attentions_own_log_sum_exp():
    q, k, v = normal(1, 20, 2, 16), normal(1, 50, 2, 16, seed=1), normal(1, 50, 2, 16, seed=2)
    blocks = BlockCSR.dense([0, 20], [0, 50])
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    _, lse = block_sparse_attention(*heads_first, blocks, return_lse=True, backend="gather")
    assert_close("total mass", torch.full((1, 2), 20.0), column_mass(q, k, lse, backend="plain").sum(-1), 1e-6)


@both
@shapes
@dtypes
def test_gathered_tokens_are_the_chosen_ones(shape, dtype, backend):
    batch, tokens, *_ = shape
    k, v = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    generator = torch.Generator().manual_seed(4)
    index = torch.stack([torch.randperm(tokens, generator=generator)[: max(1, tokens // 2)] for _ in range(batch)])
    ours = gather_tokens(k, v, index, backend=backend, strict=True)
    for x, packed in zip((k, v), ours):
        assert torch.equal(packed, torch.stack([x[b, index[b]] for b in range(batch)]))


@both
def test_gathering_from_a_strided_view(backend):
    storage = normal(2, 30, 4, 8)
    view = storage[:, :, 1:3]  # two of four heads
    index = torch.tensor([[3, 1], [29, 0]])
    packed, _ = gather_tokens(view, view, index, backend=backend, strict=True)
    assert torch.equal(packed, torch.stack([view[b, index[b]] for b in range(2)]))


@both
@shapes
@dtypes
def test_merging_keeps_small_steps(shape, dtype, backend):
    """300 merges at alpha 0.999 in a float32 master; the storage's own dtype would lose most of them in bf16."""
    storage = normal(shape[0], shape[1] + 5, *shape[2:], dtype=dtype)
    sink, evicted = storage[:, :-5], normal(*shape, dtype=dtype, seed=1)
    master, truth = sink.float().clone(), sink.double()
    for _ in range(300 if backend == "plain" else 3):
        ema_merge(master, evicted, 0.999, out=sink, backend=backend, strict=True)
        truth = 0.999 * truth + 0.001 * evicted.double()
    assert_close("master", truth, master, 3e-5)
    assert_close("sink", truth, sink, 3e-5 + tolerance(dtype))


def test_errors_name_what_does_not_fit():
    x = normal(1, 6, 2, 8)
    with pytest.raises(ValueError, match="must hold 6 tokens x 4 pairs"):
        rotate_tokens(x, torch.zeros(6, 3), torch.zeros(6, 3))
    with pytest.raises(ValueError, match="the source holds 6; give an index"):
        rotate_tokens(x, torch.zeros(7, 4), torch.zeros(7, 4))
    with pytest.raises(ValueError, match="fusion='mean': must be 'sum' or 'max'"):
        column_scores(x, x, fusion="mean")
    with pytest.raises(ValueError, match="must be float32"):
        ema_merge(x.half(), x, 0.9, out=x)
    with pytest.raises(ValueError, match="must share the batch"):
        gather_tokens(x, x, torch.zeros(2, 1, dtype=torch.long))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter can run them")
def test_without_a_gpu_triton_is_refused_or_replaced_aloud():
    x = normal(1, 6, 2, 8)
    with pytest.raises(BackendError, match="backend='triton' cannot be used"):
        column_scores(x, x, backend="triton", strict=True)
    with pytest.warns(RuntimeWarning, match="using 'plain'"):
        column_scores(x, x, backend="triton")
