"""Seconds a block of every cached method, against a naive twin that concatenates, clones and rotates again each call.

    python benchmarks/rollout.py --out benchmarks/results/rollout_cpu.json
    python benchmarks/rollout.py --size tiny --methods deep-forcing --rounds 5
    python scripts/rollout_tables.py               # put the recorded rows into docs/rollout_speed.md

Sizes: "tiny" is the goldens' model (dim 96, 2 layers, 24 tokens a frame, 20 text tokens), "mid" has dim 512, 8 layers,
240 tokens a frame, and Wan's text of 512 tokens of width 4,096. Weights are random: only time is looked at. Each method
starts from a full window of given latents; a round is one steady-state block of each contestant, in turn, so that a
busy machine slows all alike. Three contestants make the same latents (the largest difference is recorded):

    ours         FrameKVCache; text keys once a prompt; timesteps embedded a frame
    naive cache  `longvid.cache.naive`: un-roped keys are concatenated and cloned, and all of them rotated in complex
                 float64, in every layer of every call. Calls are made as ours are.
    naive        the naive cache, and calls as a port makes them to diffusers' stock forward: the prompt goes through
                 the text MLP and each layer's text projections in every call, each token brings its own timestep.

None of the twin's costs is invented: the published implementations rotate in complex float64 in each layer of each
call, compute the text MLP in every call, and roll their caches by clone; diffusers' forward takes noise levels that
differ within a call as one timestep a token. What the twin does not have: it makes no call that we do not make (the
references' dead commit calls), rotates queries with our rotation, and attends through the same
scaled_dot_product_attention.

Beside the time: model calls, bytes that the cache writes and tensors that it allocates a block, and how often text
keys, text projections and position tables are computed in steady state (they must not be).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
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
from longvid.models.denoiser import Denoiser, TextContext
from longvid.pipelines.noise import SeededNoise
from longvid.pipelines.rollout import Rollout
from longvid.pipelines.schedules.blocks import BlockGrid
from longvid.pipelines.schedules.chunk import ChunkSchedule
from longvid.pipelines.schedules.rolling import RollingSchedule
from longvid.pipelines.schedules.sigmas import step_sigmas

SIZES = {
    "tiny": {"dim": 96, "heads": 3, "layers": 2, "latent": (8, 12), "channels": 16, "text": (20, 32), "freq": 64},
    "mid": {"dim": 512, "heads": 8, "layers": 8, "latent": (24, 40), "channels": 16, "text": (512, 4096), "freq": 256},
}
CONTESTANTS = ("ours", "naive cache", "naive")
METHODS = ("self-forcing", "streaming-llm", "deep-forcing", "reward-forcing", "rolling-forcing")


def make_denoiser(size: dict[str, Any], device: str, dtype: torch.dtype) -> Denoiser:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=size["heads"],
        attention_head_dim=size["dim"] // size["heads"],
        in_channels=size["channels"],
        out_channels=size["channels"],
        text_dim=size["text"][1],
        freq_dim=size["freq"],
        ffn_dim=2 * size["dim"],
        num_layers=size["layers"],
    )
    return Denoiser(model.eval().to(device, dtype))


class NaiveDenoiser(Denoiser):
    """Calls as a port to diffusers' stock forward makes them: text from its embeddings, one timestep a token."""

    def _run(
        self, latents: torch.Tensor, timesteps: torch.Tensor, text: Any, call: Any, guidance_scale: float
    ) -> torch.Tensor:
        text = text[0][1] if not isinstance(text, TextContext) else text
        per_token = timesteps.to(self.device, torch.float32).expand(latents.shape[0], latents.shape[2])
        per_token = per_token.repeat_interleave(call.tokens_per_frame, dim=1)
        self._rope.call = call
        try:
            velocity = self.transformer(
                latents.to(self.dtype), per_token, text.embeds.to(self.dtype), return_dict=False
            )
        finally:
            self._rope.call = None
        return velocity[0].float()


def start(denoiser: Denoiser, method: MethodConfig, size: dict[str, Any], contestant: str) -> Rollout:
    """An endless rollout whose window is full of given latents."""
    if contestant == "naive":
        denoiser = NaiveDenoiser(denoiser.transformer)
    torch.manual_seed(1)
    n = method.schedule.frames_per_block
    policy = policy_from_config(method.cache, n)
    sigmas = step_sigmas(method.schedule.steps, method.schedule.shift)
    height, width = size["latent"]
    given = torch.randn(1, size["channels"], -(-policy.capacity // n) * n + n, height, width)
    text = denoiser.encode_text(torch.randn(1, *size["text"]))
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
    if contestant != "ours":
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


@contextlib.contextmanager
def within_cache(rollout: Rollout, around: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[None]:
    """Enter `around()` for whatever the cache does: plans, views, commits, and every layer's `read`."""
    cache, restore = rollout.cache, []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with around():
                return original(*args, **kwargs)

        setattr(owner, name, watched)
        restore.append((owner, name))

    for name in ("begin", "view", "commit"):
        watch(cache, name)
    for layer in cache.layers:
        watch(layer, "read")
    try:
        yield
    finally:
        for owner, name in restore:
            delattr(owner, name)


def count_work(rollout: Rollout) -> dict[str, int]:
    """What the cache does in one block, under a counting mode."""
    work = Work()
    with within_cache(rollout, lambda: work):
        block = next(rollout)
    return {
        "model_calls": int(block.stats["model_calls"]),
        "frames_processed": int(block.stats["frames_processed"]),
        "cache_bytes_written": work.bytes,
        "cache_tensors_allocated": work.allocations,
    }


def cache_seconds(rollout: Rollout, blocks: int) -> float:
    """Median process time of a block that is the cache's own work: what is left of it without the model."""
    spent, depth = 0.0, 0

    @contextlib.contextmanager
    def clock() -> Iterator[None]:
        nonlocal spent, depth
        began, depth = time.process_time(), depth + 1
        try:
            yield
        finally:
            depth -= 1
            if depth == 0:  # a method of the cache that calls another counts once
                spent += time.process_time() - began

    each = []
    with within_cache(rollout, clock):
        for _ in range(blocks):
            spent = 0.0
            next(rollout)
            each.append(spent)
    return statistics.median(each)


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
    rollouts = {contestant: start(denoiser, method, size, contestant) for contestant in CONTESTANTS}
    wall: dict[str, list[float]] = {key: [] for key in rollouts}
    process: dict[str, list[float]] = {key: [] for key in rollouts}
    cuda = denoiser.device.type == "cuda"
    difference = 0.0
    for turn in range(warm_up + rounds):
        made = {}
        for key, rollout in rollouts.items():
            if cuda:
                torch.cuda.synchronize()
            began, began_process = time.perf_counter(), time.process_time()
            made[key] = next(rollout).latents
            if cuda:
                torch.cuda.synchronize()
            if turn >= warm_up:
                wall[key].append(time.perf_counter() - began)
                process[key].append(time.process_time() - began_process)
        if turn == 0:  # later blocks start from each contestant's own history
            difference = max(float((made["ours"] - latents).abs().max()) for latents in made.values())
    figures: dict[str, Any] = {
        key: {
            "median_s": statistics.median(wall[key]),
            "p95_s": float(np.percentile(wall[key], 95)),
            "median_process_s": statistics.median(process[key]),
            "p95_process_s": float(np.percentile(process[key], 95)),
            **count_work(rollouts[key]),
            "median_cache_process_s": None if cuda else cache_seconds(rollouts[key], rounds),
        }
        for key in rollouts
    }
    share, recomputed = attention_share(rollouts["ours"], cuda), count_recomputation(denoiser, rollouts["ours"], 1)
    figures["ours"] |= recomputed
    figures["ours"]["storage_bytes"] = rollouts["ours"].cache.nbytes
    clock = "median_s" if cuda else "median_process_s"
    for key in CONTESTANTS[1:]:
        figures[f"speedup over {key}"] = figures[key][clock] / figures["ours"][clock]
    if not cuda:
        own, theirs = (figures[key]["median_cache_process_s"] for key in ("ours", "naive cache"))
        figures["speedup of the cache alone"] = theirs / own
    figures["largest_difference_of_the_first_block"] = difference
    figures["attention_share"] = share
    return figures


def attention_share(rollout: Rollout, cuda: bool) -> float | None:
    """Share of a block's process time in scaled_dot_product_attention, self and text: arithmetic that every contestant
    shares. None on a GPU, where calls do not wait for what they start."""
    if cuda:
        return None
    original, spent = torch.nn.functional.scaled_dot_product_attention, 0.0

    def timed(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal spent
        began = time.process_time()
        out = original(*args, **kwargs)
        spent += time.process_time() - began
        return out

    torch.nn.functional.scaled_dot_product_attention = timed
    try:
        began = time.process_time()
        next(rollout)
        return spent / (time.process_time() - began)
    finally:
        torch.nn.functional.scaled_dot_product_attention = original


def record(options: argparse.Namespace) -> Record:
    return Record(
        vae=False,
        warm_up=options.warm_up,
        rounds=options.rounds,
        dtype=options.dtype,
        device=options.device,
        sizes=SIZES,
        speedup="naive / ours, median process time on a CPU, median wall time on a GPU",
    )


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
            ours = row["ours"]
            print(
                f"{name:5} {method:16} {ours['median_s'] * 1e3:9.1f} ms a block "
                f"({ours['median_process_s'] * 1e3:.1f} process), naive cache x{row['speedup over naive cache']:.2f}, "
                f"naive x{row['speedup over naive']:.2f}, cache alone x{row.get('speedup of the cache alone', 0):.1f}; "
                f"attention {row['attention_share'] or 0:.0%}; differs by "
                f"{row['largest_difference_of_the_first_block']:.1e}; {ours['model_calls']} calls, cache writes "
                f"{ours['cache_bytes_written'] / 1e6:.1f} MB ({row['naive']['cache_bytes_written'] / 1e6:.1f}), "
                f"allocates {ours['cache_tensors_allocated']} ({row['naive']['cache_tensors_allocated']})",
                flush=True,
            )
            if options.out:  # after each method: what was measured stays if the rest is cut off
                record(options).write(options.out, figures)


if __name__ == "__main__":
    main()
