"""All kernels on a GPU at Wan 1.3B shapes, against dense attention, flex_attention and the plain twins.

    python benchmarks/kernels_gpu.py --out benchmarks/results/kernels_gpu.json       (scripts/gpu_check.sh runs it)

Attention: 12 heads of 128, bf16. Square radial masks at 480p (1,560 tokens a latent frame), and the autoregressive
step: a three-frame block against cached frames. Dense is torch's scaled_dot_product_attention (FlashAttention there).
"of_bound" compares the speed-up with 1/density, what skipping alone could give over the dense kernel. Cache kernels:
gigabytes a second moved, against their plain twins.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import Record
from longvid.kernels.attention import block_sparse_attention
from longvid.kernels.attention.flex import flex_reason
from longvid.kernels.blocks import BlockCSR
from longvid.kernels.cache_ops import column_mass, column_scores, ema_merge, gather_tokens, rotate_tokens
from longvid.kernels.radial import RadialSpec, radial_blocks, rollout_blocks
from longvid.models.rope import RotaryTables


def times(run: Callable[[], Any], device: torch.device, rounds: int, warm_up: int) -> dict[str, float]:
    """Median and 95th percentile in milliseconds, by events on a GPU."""
    measured = []
    for turn in range(warm_up + rounds):
        if device.type == "cuda":
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            run()
            ended.record()
            torch.cuda.synchronize()
            took = began.elapsed_time(ended)
        else:
            clock = time.perf_counter()
            run()
            took = (time.perf_counter() - clock) * 1e3
        if turn >= warm_up:
            measured.append(took)
    measured.sort()
    return {"median_ms": statistics.median(measured), "p95_ms": measured[int(0.95 * (len(measured) - 1))]}


def attention(name: str, blocks: BlockCSR, options: Any, *, backward: bool) -> dict[str, Any]:
    """Dense, flex and Triton on the same tensors, laid out as the transformer does: [B, L, N, D] seen [B, N, L, D].
    Where flex cannot run, "left_out" says why."""
    device, dtype = options.device, options.dtype
    generator = torch.Generator(device).manual_seed(0)

    def normal(length: int) -> Tensor:
        x = torch.randn(1, length, options.heads, options.head_dim, device=device, dtype=dtype, generator=generator)
        return x.transpose(1, 2).requires_grad_(backward)

    q, k, v = normal(blocks.q_len), normal(blocks.kv_len), normal(blocks.kv_len)
    weights = torch.randn(q.shape, device=device, generator=generator).to(dtype)

    def step(attend: Callable[[], Tensor]) -> Callable[[], Any]:
        if not backward:
            return attend
        return lambda: torch.autograd.grad(attend(), (q, k, v), weights)

    runs = {"dense": step(lambda: scaled_dot_product_attention(q, k, v))}
    runs["triton"] = step(lambda: block_sparse_attention(q, k, v, blocks, backend="triton", strict=True))
    runs["flex"] = step(lambda: block_sparse_attention(q, k, v, blocks, backend="flex", strict=True))
    row: dict[str, Any] = {
        "name": name,
        "queries": blocks.q_len,
        "keys": blocks.kv_len,
        "density": round(blocks.density, 4),
        "backward": backward,
    }
    with torch.set_grad_enabled(backward):
        for label, run in runs.items():
            if label != "flex":
                row[label] = times(run, device, options.rounds, options.warm_up)
                continue
            reason = "compared on a GPU only" if device.type == "cpu" else None
            reason = reason or flex_reason(q, blocks, needs_grad=backward, needs_lse=False)
            try:  # not ours: whatever its compiler says must not cost the other figures
                row[label] = {"left_out": reason} if reason else times(run, device, options.rounds, options.warm_up)
            except Exception as error:
                row[label] = {"left_out": f"{type(error).__name__}: {str(error)[:300]}"}
    dense = row["dense"]["median_ms"]
    measured = [label for label in runs if "median_ms" in row[label]]
    for label in measured[1:]:
        row[label]["speed_up"] = round(dense / row[label]["median_ms"], 3)
        row[label]["of_bound"] = round(dense / row[label]["median_ms"] * blocks.density, 3)
    shown = "  ".join(f"{label} {row[label]['median_ms']:.3f} ms" for label in measured)
    print(f"{name:28s} density {blocks.density:.3f} {'fwd+bwd' if backward else 'fwd':8s} {shown}", flush=True)
    return row


def cache_kernels(options: Any) -> list[dict[str, Any]]:
    """Each cache kernel against its twin, on a window of `--cache-frames` frames."""
    device, dtype, heads, dim = options.device, options.dtype, options.heads, options.head_dim
    rows, columns = options.grid
    tokens = rows * columns
    length = options.cache_frames * tokens
    generator = torch.Generator(device).manual_seed(0)
    k, v = (torch.randn(1, length, heads, dim, device=device, generator=generator).to(dtype) for _ in range(2))
    queries = k[:, : min(4, options.cache_frames) * tokens]
    cos, sin = RotaryTables(dim, rows, columns, device).at(range(options.cache_frames))
    index = torch.randperm(length, device=device, generator=generator)
    half = index[None, : length // 2].contiguous()
    out = torch.empty_like(k)
    sink, evicted = k[:, : 3 * tokens].contiguous(), v[:, : 3 * tokens].contiguous()
    master = sink.float()
    _, lse = block_sparse_attention(
        *(x.transpose(1, 2) for x in (queries, k, v)),
        BlockCSR.dense([0, queries.shape[1]], [0, length]),
        return_lse=True,
        backend="gather" if device.type == "cpu" else "auto",
    )
    size = k.element_size()
    kv_bytes = k.numel() * size
    cases: dict[str, tuple[Callable[[str], Any], float]] = {
        "rotate_tokens": (lambda b: rotate_tokens(k, cos, sin, index=index, out=out, backend=b), 2 * kv_bytes),
        "column_scores/sum": (lambda b: column_scores(queries, k, backend=b), kv_bytes),
        "column_scores/max": (lambda b: column_scores(queries, k, fusion="max", backend=b), kv_bytes),
        "column_mass": (lambda b: column_mass(queries, k, lse, backend=b), kv_bytes),
        "gather_tokens": (lambda b: gather_tokens(k, v, half, backend=b), 2 * kv_bytes),
        "ema_merge": (
            lambda b: ema_merge(master, evicted, 0.999, out=sink, backend=b),
            master.numel() * (8 + 2 * size),
        ),
    }
    table = []
    for name, (run, moved) in cases.items():
        row: dict[str, Any] = {"name": name, "tokens": length}
        for backend in ("plain", "triton"):
            if backend == "plain" and name in ("column_scores/max", "column_mass") and length > 16384:
                continue  # the twin stores the whole query x key matrix
            row[backend] = times(lambda run=run, backend=backend: run(backend), device, options.rounds, options.warm_up)
            row[backend]["gigabytes_a_second"] = round(moved / row[backend]["median_ms"] / 1e6, 1)
        print(name, {b: round(row[b]["median_ms"], 3) for b in ("plain", "triton") if b in row}, flush=True)
        table.append(row)
    return table


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--grid", type=int, nargs=2, default=[30, 52], help="token rows and columns of a latent frame")
    parser.add_argument("--frames", type=int, nargs="*", default=[21, 42], help="latent frames of the square masks")
    parser.add_argument("--history", type=int, nargs="*", default=[18, 81], help="cached frames of the rollout step")
    parser.add_argument("--cache-frames", type=int, default=21)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--decays", type=float, nargs="*", default=[1.0, 0.2])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    options.dtype = getattr(torch, options.dtype)
    return options


def main(options: argparse.Namespace) -> dict[str, Any]:
    record = Record(vae=False, warm_up=options.warm_up, dtype=str(options.dtype), rounds=options.rounds)
    tokens = options.grid[0] * options.grid[1]
    rows = []
    for decay in options.decays:
        spec = RadialSpec.wan(decay=decay, block=options.block)
        for frames in options.frames:
            blocks = radial_blocks(frames, tokens, spec)
            name = f"radial {frames} frames, decay {decay}"
            rows += [attention(name, blocks, options, backward=b) for b in (False, True)]
        for history in options.history:
            now = list(range(history, history + 3))
            blocks = rollout_blocks(now, range(history + 3), tokens, spec, dense_chunk=True)
            rows.append(attention(f"rollout 3 on {history}, decay {decay}", blocks, options, backward=False))
    figures = {"attention": rows, "cache": cache_kernels(options)}
    if options.out:
        record.write(options.out, figures)
    return figures


if __name__ == "__main__":
    main(parse())
