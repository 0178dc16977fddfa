"""What a video costs with each entry of benchmarks/methods.py: in turns, one video at a time, decoding included.

    OMP_NUM_THREADS=1 python benchmarks/costs.py --out benchmarks/results/methods_costs.json

Needs an idle machine, and gives every entry anew: figures of two machines are not compared.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.entries import DEFAULT_ENTRIES, REFERENCES, Entry, Renderer, chosen_entries, chosen_prompts
from benchmarks.products import is_rounded
from benchmarks.record import Record

WARM_UP_SECONDS = 10.0  # of video: until windows are full
TIMED_SECONDS = 10.0


def measure_costs(
    renderer: Renderer,
    entries: Sequence[Entry],
    prompts: Sequence[tuple[str, Any]],
    *,
    warm_up: float = WARM_UP_SECONDS,
    timed: float = TIMED_SECONDS,
) -> dict[str, dict[str, float | int | None]]:
    """By label: milliseconds a video frame (median and p95 over blocks, all rounds), seconds a block, frames a second,
    cache_bytes, and the density of attention.

    One round a prompt, every entry once a round, so that a machine that slows down slows all of them. The first
    ``warm_up`` seconds of each video are not timed. References cost nothing that a user pays, and are left out.
    """
    spent: dict[str, list[float]] = {entry.label: [] for entry in entries if entry.method not in REFERENCES}
    blocks: dict[str, list[float]] = {label: [] for label in spent}
    cache: dict[str, int | None] = {}
    density: dict[str, float] = {}
    for prompt, _ in prompts:
        for entry in entries:
            if entry.method in REFERENCES:
                continue
            pipe = renderer.pipe(entry)
            for chunk, seconds in clocked(pipe.stream(prompt, seconds=warm_up + timed, seed=0)):
                if chunk.start_frame >= warm_up * pipe.fps:
                    spent[entry.label].append(1000 * seconds / len(chunk.frames))
                    blocks[entry.label].append(seconds)
            if entry.label not in cache:  # not while the clock runs
                cache[entry.label] = renderer.cache_bytes(entry, prompt)
                density[entry.label] = attention_density(pipe, prompt, warm_up)
    return {
        label: {
            "ms_a_frame": float(np.median(times)),
            "p95_ms_a_frame": float(np.quantile(times, 0.95)),
            "seconds_a_block": float(np.median(blocks[label])),
            "frames_a_second": float(1000 / np.median(times)),
            "cache_bytes": cache[label],
            "density": density[label],
        }
        for label, times in spent.items()
    }


def attention_density(pipe: Any, prompt: str, seconds: float) -> float:
    """Share of its query-key pairs that block-sparse attention reads, over the last half of ``seconds`` of video; 1 for
    dense attention."""
    with recorded_densities() as seen:
        for _ in pipe.rollout(prompt, seconds=seconds, seed=0):
            pass
    return float(np.mean(seen[len(seen) // 2 :])) if seen else 1.0


@contextmanager
def recorded_densities() -> Iterator[list[float]]:
    """Densities of the block-sparse calls made meanwhile."""
    from longvid.models import attend

    seen: list[float] = []
    call = attend.block_sparse_attention

    def recorded(query: Any, key: Any, value: Any, blocks: Any, **options: Any) -> Any:
        seen.append(blocks.density)
        return call(query, key, value, blocks, **options)

    with mock.patch.object(attend, "block_sparse_attention", recorded):
        yield seen


def clocked(chunks: Iterable[Any]) -> Iterator[tuple[Any, float]]:
    """Each chunk with the seconds that it took to come, the consumer's own time left out."""
    source = iter(chunks)
    while True:
        began = time.perf_counter()
        try:
            chunk = next(source)
        except StopIteration:
            return
        yield chunk, time.perf_counter() - began


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entry", action="append", metavar="[LABEL:]METHOD[@MODEL][,student=NAME][,key=value...]")
    parser.add_argument("--baseline", default="self-forcing", help="label of the entry that times are divided by")
    parser.add_argument("--model", default="embedded", help="model of entries that name none")
    parser.add_argument("--rounds", type=int, default=3, help="videos an entry is timed on")
    parser.add_argument("--warm-up", type=float, default=WARM_UP_SECONDS, help="seconds of video that are not timed")
    parser.add_argument("--seconds", type=float, default=TIMED_SECONDS, help="seconds of video that are")
    parser.add_argument("--device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the model; its own when absent")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "methods_costs.json")
    args = parser.parse_args(argv)
    entries = chosen_entries(parser, args.entry or DEFAULT_ENTRIES, args.model, args.baseline)
    if args.dtype and is_rounded(getattr(torch, args.dtype), args.device):
        parser.error(f"dtype={args.dtype!r}: this processor has no instructions for it; time float32")
    renderer = Renderer(args.device, args.dtype)
    prompts = chosen_prompts(args.rounds)
    record = Record(vae=True, warm_up=f"{args.warm_up:g} s of each video", rounds=args.rounds, seconds=args.seconds)
    costs = measure_costs(renderer, entries, prompts, warm_up=args.warm_up, timed=args.seconds)
    dtype = args.dtype or str(renderer.pipe(entries[0]).dtype).removeprefix("torch.")
    record.write(args.out, {"baseline": args.baseline, "dtype": dtype, "costs": costs})


if __name__ == "__main__":
    main()
