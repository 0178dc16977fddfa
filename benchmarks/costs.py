"""What a video costs with each entry of benchmarks/methods.py: in turns, one video at a time, decoding included."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.entries import REFERENCES, Entry, Renderer

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
    """By label: milliseconds a video frame (median and p95 over blocks, all rounds), frames a second, cache_bytes.

    One round a prompt, every entry once a round, so that a machine that slows down slows all of them. The first
    ``warm_up`` seconds of each video are not timed. References cost nothing that a user pays, and are left out.
    """
    spent: dict[str, list[float]] = {entry.label: [] for entry in entries if entry.method not in REFERENCES}
    cache: dict[str, int | None] = {}
    for prompt, _ in prompts:
        for entry in entries:
            if entry.method in REFERENCES:
                continue
            pipe = renderer.pipe(entry)
            for chunk, seconds in clocked(pipe.stream(prompt, seconds=warm_up + timed, seed=0)):
                if chunk.start_frame >= warm_up * pipe.fps:
                    spent[entry.label].append(1000 * seconds / len(chunk.frames))
            cache.setdefault(entry.label, renderer.cache_bytes(entry, prompt))
    return {
        label: {
            "ms_a_frame": float(np.median(times)),
            "p95_ms_a_frame": float(np.quantile(times, 0.95)),
            "frames_a_second": float(1000 / np.median(times)),
            "cache_bytes": cache[label],
        }
        for label, times in spent.items()
    }


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
