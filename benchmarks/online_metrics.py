"""What live metrics cost: processor time of one frame, for all of longvid.metrics and for the viewer's few.

python benchmarks/online_metrics.py --out benchmarks/results/online_metrics_cpu.json

all       StreamMetrics as `longvid eval` and notebooks use it: motion, seams, drift, faults
viewer    LiveMeter as the server uses it: every fourth frame, and every one for flicker and seams
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FPS = 16


def video(frames: int, height: int, width: int) -> np.ndarray:
    """A noisy scene in which a square walks: uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(0)
    scene = rng.integers(60, 180, (height, width, 3))
    shots = np.stack([scene + rng.integers(-3, 4, scene.shape) for _ in range(frames)]).clip(0, 255).astype(np.uint8)
    side = height // 5
    for i, shot in enumerate(shots):
        left = 2 * i % (width - side)
        shot[side : 2 * side, left : left + side] = (220, 60, 40)
    return shots


def cost(update: Callable[[np.ndarray], Any], blocks: list[np.ndarray], warm_up: int) -> dict[str, float]:
    """Milliseconds a frame: median and 95th percentile over blocks."""
    times = []
    for index, block in enumerate(blocks):
        began = time.process_time()
        update(block)
        if index >= warm_up:
            times.append(1000 * (time.process_time() - began) / len(block))
    p95 = float(np.percentile(times, 95))
    return {"median": round(statistics.median(times), 2), "p95": round(p95, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["128x128", "832x480"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--block-frames", type=int, default=12)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    from benchmarks.record import Record
    from longvid.metrics.report import StreamMetrics
    from longvid.serve.meter import LiveMeter

    warm_up = 2
    figures: dict[str, Any] = {}
    for size in options.sizes:
        width, height = map(int, size.split("x"))
        pool = np.array_split(video(8 * options.block_frames, height, width), 8)
        blocks = [pool[index % len(pool)] for index in range(options.blocks + warm_up)]
        whole = StreamMetrics(FPS, temporal_stride=4)
        figures[size] = {
            "all": cost(lambda block, meter=whole: meter.update(block, new_block=True), blocks, warm_up),
            "viewer": cost(LiveMeter(FPS).update, blocks, warm_up),
        }
    print(json.dumps(figures, indent=1))
    if options.out:
        Record(vae=False, warm_up=warm_up, unit="processor milliseconds a frame", blocks=options.blocks).write(
            options.out, figures
        )


if __name__ == "__main__":
    main()
