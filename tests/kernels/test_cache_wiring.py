"""FrameKVCache on the Triton kernels (interpreter) gives what it gives on their plain twins, and does launch them."""

import importlib.util
from collections import Counter

import pytest
import torch

from longvid.cache import FrameKVCache, frame_cache
from longvid.cache.policies import DeepSinkPolicy, EmaSinkPolicy, ParticipativePolicy, SlidingPolicy
from longvid.kernels import cache_ops, cache_plain
from longvid.models import rope
from longvid.models.rope import RotaryTables, apply_rotary

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]

N = 2  # frames a block
POLICIES = {
    "window-positions": (
        SlidingPolicy(window=6, sink=2, positions="window", frames_per_block=N),
        {"rotate_tokens"},
    ),
    "deep-sink": (DeepSinkPolicy(window=7, sink=3, frames_per_block=N), {"rotate_tokens"}),
    "ema-sink": (EmaSinkPolicy(window=6, sink=2, ema_alpha=0.8, frames_per_block=N), {"rotate_tokens", "ema_merge"}),
    "participative-sum": (
        ParticipativePolicy(window=7, sink=2, budget=5, recent=2, max_reuse=2, frames_per_block=N),
        {"rotate_tokens", "column_scores", "gather_tokens"},
    ),
    "participative-max-unify": (
        ParticipativePolicy(
            window=7, sink=2, budget=6, recent=2, fusion="max", unify=True, hole_free=True, frames_per_block=N
        ),
        {"rotate_tokens", "column_scores", "gather_tokens"},
    ),
    "participative-per-head": (  # choosing is plain PyTorch there
        ParticipativePolicy(
            window=7, sink=2, budget=5, recent=2, max_reuse=2, unify=True, frames_per_block=N, per_head=True
        ),
        {"rotate_tokens"},
    ),
}
# batch, heads, head dim, rows and columns of a frame: odd counts, no power of two anywhere, one token a frame
GEOMETRIES = {"b1-h3-d10-3x5": (1, 3, 10, 3, 5), "b2-h1-d24-1x7": (2, 1, 24, 1, 7), "b3-h2-d6-1x1": (3, 2, 6, 1, 1)}


def play(policy, geometry, dtype) -> list[torch.Tensor]:
    """Keys and values that every call of six blocks reads, layer by layer."""
    batch, heads, dim, rows, columns = geometry
    cache = FrameKVCache(
        policy,
        layers=2,
        batch=batch,
        heads=heads,
        head_dim=dim,
        rotary=RotaryTables(dim, rows, columns),
        dtype=dtype,
    )
    generator, read = torch.Generator().manual_seed(7), []
    for start in range(0, 7 * N, N):
        cache.begin(start, N)
        for kind in ("denoise", "commit"):
            view = cache.view(kind)
            for layer in cache.layers:
                shape = (batch, N * rows * columns, heads, dim)
                q, k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
                query = cache.rotary.apply(q, view.cos, view.sin)
                keys, values = layer.read(view, query, k, v)
                read += [query, keys.clone(), values.clone()]
        cache.commit()
        cache.check_integrity()
    return read


def plain_run(name, backend, x, strict, *arguments):
    return getattr(cache_plain, name)(*arguments)


@pytest.fixture
def launches(monkeypatch):
    """Counts what runs in Triton."""
    from longvid.kernels import cache_triton

    counts: Counter[str] = Counter()

    def counting(name):
        real = getattr(cache_triton, name)

        def counted(*args):
            counts[name] += 1
            return real(*args)

        return counted

    for name in ("rotate_tokens", "column_scores", "gather_tokens", "ema_merge"):
        monkeypatch.setattr(cache_triton, name, counting(name))
    return counts


@pytest.mark.parametrize("layout", ["cpu", "gpu"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("name", POLICIES)
def test_kernels_give_what_the_plain_path_gives(name, geometry, layout, launches, monkeypatch):
    """In the memory layouts of both: a CPU's cache has a head's tokens side by side, a GPU's whole tokens."""
    if layout == "gpu":
        monkeypatch.setattr(frame_cache, "allocate", lambda shape, dtype, device: torch.zeros(shape, dtype=dtype))
    policy, expected = POLICIES[name]
    with_kernels = play(policy, geometry, torch.float32)
    assert {k for k, n in launches.items() if n} == expected

    launches.clear()
    monkeypatch.setattr(cache_ops, "_run", plain_run)
    monkeypatch.setattr(rope, "interpreting", lambda: False)
    plain = play(policy, geometry, torch.float32)
    assert not launches
    for ours, truth in zip(with_kernels, plain, strict=True):
        torch.testing.assert_close(ours, truth, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["deep-sink", "ema-sink"])
def test_in_bf16_no_rounding_is_added(name, launches, monkeypatch):
    """At most two roundings, of the merged sink and of its rotation, whose direction may differ: the interpreter cuts
    float32 off to bf16 where a GPU rounds to nearest."""
    policy, _ = POLICIES[name]
    with_kernels = play(policy, (1, 2, 12, 2, 3), torch.bfloat16)
    assert launches["rotate_tokens"]
    monkeypatch.setattr(cache_ops, "_run", plain_run)
    monkeypatch.setattr(rope, "interpreting", lambda: False)
    for ours, truth in zip(with_kernels, play(policy, (1, 2, 12, 2, 3), torch.bfloat16), strict=True):
        two_steps = 2 * 2**-7 * truth.abs().max().item()
        torch.testing.assert_close(ours.float(), truth.float(), atol=two_steps, rtol=0)


@pytest.mark.parametrize("batch", [1, 3])
def test_tables_of_any_shape_are_understood(batch, launches):
    """A selection hands over one table a sample, [B, L, 1, D/2]; a call hands over [L, 1, D/2]."""
    x, angle = torch.randn(batch, 9, 2, 8), torch.randn(9, 1, 4)
    each = angle.expand(batch, 9, 1, 4)
    shared = apply_rotary(x, angle.cos(), angle.sin())
    assert launches["rotate_tokens"] == 1
    torch.testing.assert_close(apply_rotary(x, each.cos(), each.sin()), shared, atol=1e-6, rtol=0)


def test_a_graph_takes_the_plain_path(launches):
    x, angle = torch.randn(1, 9, 2, 8, requires_grad=True), torch.randn(9, 1, 4)
    apply_rotary(x, angle.cos(), angle.sin()).sum().backward()
    assert not launches
    assert x.grad is not None
