"""How good is the embedded model? 24 held-out prompts x 2 seeds, judged by a probe trained on rendered frames.

    python benchmarks/embedded.py --method deep-forcing --seconds 60 --out benchmarks/results/embedded.json

Reported for the first and the last five seconds: colour, shape and background right, exactly one subject in sight,
motion against the world's own (the probe's positions, same estimator on both); over the whole minute: drift of the
identity that no caption fixes, as the distance between a segment's median image and the first segment's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import Record
from longvid.metrics.oracle import STATIC

SEGMENT = 5  # seconds


def motion(place: dict[str, np.ndarray]) -> float:
    """Mean displacement of the subject in pixels a frame, over frames that show exactly one subject."""
    step = np.hypot(np.diff(place["x"]), np.diff(place["y"])) * 128
    seen = (place["count"][1:] == 1) & (place["count"][:-1] == 1)
    return float(step[seen].mean()) if seen.any() else 0.0


def judge(frames: np.ndarray, scene, probe) -> dict[str, float]:
    """Scores of one segment [T, H, W, 3]."""
    from longvid.training.probe import score_frames

    seen = score_frames(frames, probe)
    scores = {name: float((seen[name] == getattr(scene, name)).mean()) for name in ("colour", "shape", "background")}
    return scores | {"one_subject": float((seen["count"] == 1).mean()), "motion": motion(seen)}


def render_segments(pipe, prompt: str, seconds: int, seed: int, **options) -> tuple[list[np.ndarray], float, int]:
    """Five-second segments of a stream [T, H, W, 3]; segments in the middle are kept as their median image alone."""
    count, fps = seconds // SEGMENT, 16
    segments: list[np.ndarray] = []
    buffer: list[np.ndarray] = []
    began, total = time.perf_counter(), 0
    for chunk in pipe.stream(prompt, seconds=seconds, seed=seed, **options):
        buffer.append(chunk.frames)
        total += len(chunk.frames)
        joined = sum(len(b) for b in buffer)
        if joined >= SEGMENT * fps and len(segments) < count:
            frames = np.concatenate(buffer)
            segments.append(frames[: SEGMENT * fps])
            buffer = [frames[SEGMENT * fps :]]
            if len(segments) > 1:
                segments[-2] = segments[-2] if len(segments) == 2 else np.median(segments[-2], 0, keepdims=True)
    if len(segments) < count:
        segments.append(np.concatenate(buffer))
    return segments, time.perf_counter() - began, total


def main() -> None:
    from longvid import load
    from longvid.training import world
    from longvid.training.describe import held_out_prompts
    from longvid.training.probe import load_probe

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--method", default="deep-forcing")
    parser.add_argument("--student", help="base, or one of `longvid models`; the method's own when not given")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--static-only", action="store_true", help="only captions on which identity drift is measured")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=JSON", help="passed to stream()")
    parser.add_argument("--probe", type=Path, default=Path(__file__).parent / "probe.safetensors")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    options = {k: json.loads(v) for k, v in (pair.split("=", 1) for pair in args.option)}
    probe, own = load_probe(args.probe)
    pipe = load(args.model, method=args.method, student=args.student)
    pipe.set_progress_bar_config(disable=True)
    record = Record(vae=True, warm_up=0)
    first, last, truth, drift = (defaultdict(list) for _ in range(4))
    seconds_taken = []
    prompts = [(p, s) for p, s in held_out_prompts(args.prompts) if s.background in STATIC or not args.static_only]
    for prompt, scene in prompts:
        for seed in range(args.seeds):
            segments, taken, frames = render_segments(pipe, prompt, args.seconds, seed, **options)
            seconds_taken.append(taken / frames)
            for name, value in judge(segments[0], scene, probe).items():
                first[name].append(value)
            for name, value in judge(segments[-1], scene, probe).items():
                last[name].append(value)
            rendered = world.render(scene, seed, frames=SEGMENT * 16)
            truth["motion"].append(judge(rendered, scene, probe)["motion"])
            if scene.background in STATIC:
                medians = [np.median(s, 0).astype(np.float32) for s in segments]
                drift["model"].append([float(np.abs(m - medians[0]).mean()) for m in medians])
                other = [np.median(world.render(scene, s, frames=SEGMENT * 16), 0) for s in (seed, seed + 1000)]
                drift["other_seed"].append(float(np.abs(other[0].astype(np.float32) - other[1]).mean()))
    figures = {
        "method": args.method,
        "student": pipe.student,
        "seconds": args.seconds,
        "videos": len(prompts) * args.seeds,
        "options": options,
        "probe_held_out": own,
        "first": {k: float(np.mean(v)) for k, v in first.items()},
        "last": {k: float(np.mean(v)) for k, v in last.items()},
        "world_motion": float(np.mean(truth["motion"])),
        "identity_drift": np.mean(drift["model"], 0).tolist() if drift["model"] else [],
        "identity_drift_other_seed": float(np.mean(drift["other_seed"])) if drift["other_seed"] else None,
        "frames_per_second_median": float(1 / np.median(seconds_taken)),
    }
    figures["motion_ratio"] = figures["first"]["motion"] / figures["world_motion"]
    print(json.dumps(figures, indent=1))
    if args.out:
        record.write(args.out, figures)


if __name__ == "__main__":
    main()
