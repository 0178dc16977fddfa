"""Block-sparse attention against dense attention: time ratio by length and density, and the radial mask's cost.

    python benchmarks/attention.py --out benchmarks/results/attention_cpu.json
    python benchmarks/attention.py --lengths 4096 --densities 0.25 --backends gather flex

Dense is torch's scaled_dot_product_attention without a mask. Every round times all implementations in turn, so that a
busy machine slows all of them alike. The ratio is that of the median processor times, which on one thread is the time
an idle machine would take; wall times are recorded too. Masks are random 128 x 128 blocks with the
diagonal always kept. Inputs: batch 1, two heads, standard normal.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import Record
from longvid.kernels.attention import block_sparse_attention
from longvid.kernels.blocks import BlockCSR, uniform_starts
from longvid.kernels.radial import RadialSpec, radial_blocks, rollout_blocks

BLOCK, HEADS = 128, 2


def random_blocks(length: int, density: float, seed: int = 0) -> BlockCSR:
    """Random kept blocks, the diagonal among them, exactly `density` of all up to rounding."""
    count = -(-length // BLOCK)
    chance = np.random.default_rng(seed).random((count, count))
    np.fill_diagonal(chance, -1.0)
    kept = max(count, round(density * count**2))
    starts = uniform_starts(length, BLOCK)
    return BlockCSR.from_dense(chance <= np.sort(chance, axis=None)[kept - 1], starts, starts)


def timed(runs: dict[str, Callable[[], Any]], rounds: int, warm_up: int) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of wall time and median process time, milliseconds, rounds interleaved."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    process: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + rounds):
        for name, run in runs.items():
            began, began_process = time.perf_counter(), time.process_time()
            run()
            if turn >= warm_up:
                wall[name].append((time.perf_counter() - began) * 1e3)
                process[name].append((time.process_time() - began_process) * 1e3)
    return {
        name: {
            "median_ms": statistics.median(wall[name]),
            "p95_ms": float(np.percentile(wall[name], 95)),
            "median_process_ms": statistics.median(process[name]),
        }
        for name in runs
    }


def ratios(times: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    dense = times["dense"]
    for name, row in times.items():
        if name != "dense":
            row["ratio"] = row["median_process_ms"] / dense["median_process_ms"]
            row["wall_ratio"] = row["median_ms"] / dense["median_ms"]
    return {name: {key: round(value, 4) for key, value in row.items()} for name, row in times.items()}


def measure(
    q_len: int, kv_len: int, blocks: BlockCSR, dim: int, backends: list[str], options: Any, *, backward: bool
) -> dict[str, Any]:
    """One row: dense and every backend on the same tensors."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, HEADS, q_len, dim), (1, HEADS, kv_len, dim), (1, HEADS, kv_len, dim))
    q, k, v = (torch.randn(s, generator=generator, requires_grad=backward) for s in shapes)
    weights = torch.randn(q.shape, generator=generator)

    def step(attend: Callable[[], Any]) -> Callable[[], Any]:
        if not backward:
            return attend
        return lambda: torch.autograd.grad(attend(), (q, k, v), weights)

    runs = {"dense": step(lambda: scaled_dot_product_attention(q, k, v))}
    for name in backends:
        runs[name] = step(lambda name=name: block_sparse_attention(q, k, v, blocks, backend=name, strict=True))
    with torch.set_grad_enabled(backward):
        times = ratios(timed(runs, options.rounds, options.warm_up))
    row = {
        "queries": q_len,
        "keys": kv_len,
        "head_dim": dim,
        "density": round(blocks.density, 4),
        "backward": backward,
        "times": times,
    }
    shown = [
        f"{name} {t['median_process_ms']:.1f} ms" + (f" x{t['ratio']:.3f}" if "ratio" in t else "")
        for name, t in times.items()
    ]
    kind = "fwd+bwd" if backward else "fwd"
    print(f"{q_len:6d} x {kv_len:<6d} D{dim:<4d} density {blocks.density:.3f} {kind:8s}", *shown, sep="  ", flush=True)
    return row


def mask_cost() -> list[dict[str, Any]]:
    """Build time and size of radial block lists; the dense token mask would take length^2 bytes."""
    rows = []
    for frames, height, width in ((21, 480, 832), (41, 768, 1280), (321, 480, 832), (641, 480, 832)):
        tokens = height // 16 * (width // 16)  # 8 x 8 pixels a latent, 2 x 2 latents a token
        radial_blocks.cache_clear()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        blocks = radial_blocks(frames, tokens, RadialSpec.wan())
        took = time.process_time() - began
        row = {
            "frames": frames,
            "tokens_per_frame": tokens,
            "length": frames * tokens,
            "density": round(blocks.density, 5),
            "build_process_seconds": round(took, 4),
            "list_megabytes": round(blocks.nbytes / 1e6, 3),
            "added_peak_megabytes": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3, 1),
            "dense_mask_megabytes": round((frames * tokens) ** 2 / 1e6),
        }
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--densities", type=float, nargs="*", default=[0.1, 0.25, 0.5])
    parser.add_argument("--dims", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--backends", nargs="*", default=["gather"], help="gather, flex (compiles 20 s a shape)")
    parser.add_argument("--backward-lengths", type=int, nargs="*", default=[4096], help="also time forward + backward")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    record = Record(vae=False, warm_up=options.warm_up)

    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "dtype": "float32", "rounds": options.rounds}
    figures["radial_mask"] = mask_cost()  # first: peak memory is a high-water mark
    rows = []
    for length in options.lengths:
        for dim in options.dims:
            for density in options.densities:
                blocks = random_blocks(length, density)
                rows.append(measure(length, length, blocks, dim, options.backends, options, backward=False))
                if length in options.backward_lengths and "gather" in options.backends:
                    rows.append(measure(length, length, blocks, dim, ["gather"], options, backward=True))
    figures["random_blocks"] = rows
    chunk, history = [60, 61, 62], [0, *range(42, 63)]  # three frames of 390 tokens against a sink and 21 more
    radial = rollout_blocks(chunk, history, 390, RadialSpec.wan(block=64))
    figures["radial_rollout"] = measure(
        radial.q_len, radial.kv_len, radial, 128, [b for b in options.backends if b != "flex"], options, backward=False
    )
    if options.out:
        record.write(options.out, figures)


if __name__ == "__main__":
    main()
