"""Seconds a block of every cached method, against a cache that concatenates, clones and rotates again on each call.

    python benchmarks/rollout.py --out benchmarks/results/rollout_cpu.json
    python benchmarks/rollout.py --size tiny --methods deep-forcing --rounds 5

Sizes: "tiny" is the goldens' model (dim 96, 2 layers, 24 tokens a frame), "mid" has dim 512, 8 layers and 240 tokens a
frame. Weights are random: only time is looked at. Each method starts from a full window of given latents; a round is
one steady-state block of either cache, in turn, so that a busy machine slows both alike. Beside the time: model calls,
bytes that the cache writes and tensors that it allocates a block, and how often text keys, text projections and
position tables are computed in steady state (they must not be).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import Record
from longvid.cache.naive import NaiveCache
from longvid.cache.policies import policy_from_config
from longvid.config import MethodConfig
from longvid.models.denoiser import Denoiser
from longvid.pipelines.noise import SeededNoise
from longvid.pipelines.rollout import Rollout
from longvid.pipelines.schedules.blocks import BlockGrid
from longvid.pipelines.schedules.chunk import ChunkSchedule
from longvid.pipelines.schedules.rolling import RollingSchedule
from longvid.pipelines.schedules.sigmas import step_sigmas

SIZES = {
    "tiny": {"dim": 96, "heads": 3, "layers": 2, "latent": (8, 12), "channels": 16},
    "mid": {"dim": 512, "heads": 8, "layers": 8, "latent": (24, 40), "channels": 16},
}
METHODS = ("self-forcing", "streaming-llm", "deep-forcing", "reward-forcing", "rolling-forcing")


def make_denoiser(size: dict[str, Any], device: str, dtype: torch.dtype) -> Denoiser:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=size["heads"],
        attention_head_dim=size["dim"] // size["heads"],
        in_channels=size["channels"],
        out_channels=size["channels"],
        text_dim=64,
        freq_dim=64,
        ffn_dim=2 * size["dim"],
        num_layers=size["layers"],
    )
    return Denoiser(model.eval().to(device, dtype))


def start(denoiser: Denoiser, method: MethodConfig, size: dict[str, Any], naive: bool) -> Rollout:
    """An endless rollout whose window is full of given latents."""
    n = method.schedule.frames_per_block
    policy = policy_from_config(method.cache, n)
    sigmas = step_sigmas(method.schedule.steps, method.schedule.shift)
    height, width = size["latent"]
    given = torch.randn(1, size["channels"], -(-policy.capacity // n) * n + n, height, width)
    text = denoiser.encode_text(torch.randn(1, 20, 64))
    schedule = RollingSchedule if method.schedule.kind == "rolling" else ChunkSchedule
    rollout = Rollout(
        denoiser,
        schedule(len(sigmas)),
        policy,
        text,
        grid=BlockGrid(n),
        sigmas=sigmas,
        noise=SeededNoise(0),
        height=height,
        width=width,
        frames=None,
        initial=given,
    )
    if naive:
        rollout.cache = NaiveCache(  # type: ignore[assignment]
            policy, layers=denoiser.layers, batch=1, rotary=denoiser.rotary(height, width)
        )
    while next(rollout).given:
        pass
    return rollout


class Work(TorchDispatchMode):
    """Bytes that copying operators write and tensors that operators allocate, while the cache is at work."""

    COPIES = ("copy_", "cat", "clone", "gather", "index", "mul", "add", "sub", "fill_")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.allocations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if isinstance(out, torch.Tensor) and not func.is_view:
            if name in self.COPIES:
                self.bytes += out.numel() * out.element_size()
            self.allocations += not name.endswith("_")
        return out


def count_work(rollout: Rollout) -> dict[str, int]:
    """What the cache does in one block: `begin` and every layer's `read` under a counting mode."""
    work, cache = Work(), rollout.cache
    restore = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            with work:
                return original(*args, **kwargs)

        setattr(owner, name, counted)
        restore.append((owner, name))

    watch(cache, "begin")
    watch(cache, "view")
    watch(cache, "commit")
    for layer in cache.layers:
        watch(layer, "read")
    block = next(rollout)
    for owner, name in restore:
        delattr(owner, name)
    return {
        "model_calls": int(block.stats["model_calls"]),
        "frames_processed": int(block.stats["frames_processed"]),
        "cache_bytes_written": work.bytes,
        "cache_tensors_allocated": work.allocations,
    }


def count_recomputation(denoiser: Denoiser, rollout: Rollout, blocks: int) -> dict[str, int]:
    """Text MLP rows, text key rows and storage growth over some steady-state blocks: all should be 0."""
    seen = {"text_mlp_rows": 0, "text_key_rows": 0}
    model = denoiser.transformer

    def hook(name: str) -> Any:
        def count(module: Any, args: Any, output: torch.Tensor) -> None:
            seen[name] += output.shape[:-1].numel()

        return count

    handles = [
        model.condition_embedder.text_embedder.linear_1.register_forward_hook(hook("text_mlp_rows")),
        *[block.attn2.to_k.register_forward_hook(hook("text_key_rows")) for block in model.blocks],
    ]
    before = rollout.cache.nbytes
    for _ in range(blocks):
        next(rollout)
    for handle in handles:
        handle.remove()
    return seen | {"storage_growth_bytes": rollout.cache.nbytes - before}


def measure(denoiser: Denoiser, name: str, size: dict[str, Any], rounds: int, warm_up: int) -> dict[str, Any]:
    method = MethodConfig.load(name)
    rollouts = {"cached": start(denoiser, method, size, False), "naive": start(denoiser, method, size, True)}
    wall: dict[str, list[float]] = {key: [] for key in rollouts}
    process: dict[str, list[float]] = {key: [] for key in rollouts}
    cuda = denoiser.device.type == "cuda"
    for turn in range(warm_up + rounds):
        for key, rollout in rollouts.items():
            if cuda:
                torch.cuda.synchronize()
            began, began_process = time.perf_counter(), time.process_time()
            next(rollout)
            if cuda:
                torch.cuda.synchronize()
            if turn >= warm_up:
                wall[key].append(time.perf_counter() - began)
                process[key].append(time.process_time() - began_process)
    figures: dict[str, Any] = {
        key: {
            "median_s": statistics.median(wall[key]),
            "p95_s": float(np.percentile(wall[key], 95)),
            "median_process_s": statistics.median(process[key]),
            **count_work(rollouts[key]),
        }
        for key in rollouts
    }
    figures["cached"] |= count_recomputation(denoiser, rollouts["cached"], 2)
    figures["cached"]["storage_bytes"] = rollouts["cached"].cache.nbytes
    clock = "median_s" if cuda else "median_process_s"
    figures["speedup"] = figures["naive"][clock] / figures["cached"][clock]
    return figures


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES, "all"], default="all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in SIZES if options.size == "all" else [options.size]:
        denoiser = make_denoiser(SIZES[name], options.device, getattr(torch, options.dtype))
        figures[name] = {}
        for method in options.methods:
            row = figures[name][method] = measure(denoiser, method, SIZES[name], options.rounds, options.warm_up)
            cached, naive = row["cached"], row["naive"]
            print(
                f"{name:5} {method:16} {cached['median_s'] * 1e3:9.1f} ms a block "
                f"({cached['median_process_s'] * 1e3:.1f} process), naive {naive['median_s'] * 1e3:9.1f} "
                f"({naive['median_process_s'] * 1e3:.1f}): {row['speedup']:.2f}x; {cached['model_calls']} calls, cache "
                f"writes {cached['cache_bytes_written'] / 1e6:.1f} MB ({naive['cache_bytes_written'] / 1e6:.1f}), "
                f"allocates {cached['cache_tensors_allocated']} ({naive['cache_tensors_allocated']})",
                flush=True,
            )
    if options.out:
        facts = Record(
            vae=False,
            warm_up=options.warm_up,
            rounds=options.rounds,
            dtype=options.dtype,
            device=options.device,
            sizes=SIZES,
            speedup="naive / cached, median process time on a CPU, median wall time on a GPU",
        )
        facts.write(options.out, figures)


if __name__ == "__main__":
    main()
