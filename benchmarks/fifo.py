"""FIFO's cost a latent frame: windows in one batch against one by one, lookahead on and off, each addition.

    python benchmarks/fifo.py --out benchmarks/results/fifo_cpu.json
    python benchmarks/fifo.py --dim 512 --layers 8 --rows 12 --columns 20 --window 13 --partitions 2
    python benchmarks/fifo.py --model embedded

A latent frame (4 video frames) leaves with every pass, so its cost is that of a pass in a full queue; the first clip
and the warm-up, paid once, are reported beside it. Without --model the transformer has random weights. Rounds are
interleaved: every variant makes one pass in turn, so that a busy machine slows all of them alike.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import Record
from longvid.models.taps import last_third
from longvid.models.window_denoiser import WindowDenoiser
from longvid.pipelines.diagonal import DiagonalRoll, RollPrompt
from longvid.pipelines.fifo_settings import Additions
from longvid.pipelines.guidance import SelfRecurrentGuidance
from longvid.pipelines.noise import noise_for
from longvid.pipelines.schedules.fifo import FifoSchedule
from longvid.pipelines.solvers import FlowSolver
from longvid.pipelines.subject import SubjectAttention
from longvid.pipelines.tail import CoherentTail

VARIANTS: dict[str, dict[str, Any]] = {
    "lookahead, one batch": {},
    "lookahead, one by one": {"window_batch": 1},
    "no lookahead, one batch": {"lookahead": False},
    "no lookahead, one by one": {"lookahead": False, "window_batch": 1},
    "+ coherent tail": {"additions": Additions(tail=CoherentTail())},
    "+ subject attention (boost)": {"additions": Additions(subject=SubjectAttention(mode="boost"))},
    "+ subject attention (bridge)": {"additions": Additions(subject=SubjectAttention(mode="bridge", recent=2))},
    "+ guidance every pass": {"additions": Additions(guidance=SelfRecurrentGuidance(strength=0.03, every=1))},
}


def random_transformer(options: Any) -> Any:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    heads = max(1, options.dim // options.head_dim)
    return WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=options.head_dim,
        in_channels=16,
        out_channels=16,
        text_dim=64,
        freq_dim=128,
        ffn_dim=4 * options.dim,
        num_layers=options.layers,
    ).eval()


def make_roll(denoiser: WindowDenoiser, text: Any, options: Any, variant: dict[str, Any]) -> DiagonalRoll:
    schedule = FifoSchedule(
        window_frames=options.window,
        num_partitions=options.partitions,
        lookahead=variant.get("lookahead", True),
        shift=3.0,
    )
    shape = (1, denoiser.channels, 2 * options.rows, 2 * options.columns)
    roll = DiagonalRoll(
        denoiser,
        schedule,
        FlowSolver(schedule=schedule),
        shape,
        noise=lambda frame, purpose: noise_for(0, frame, purpose, shape),
        guidance_scale=options.guidance_scale,
        additions=variant.get("additions"),
        window_batch=variant.get("window_batch", 0),
    )
    roll.add_prompt(RollPrompt(text, ((0, 1),), ("subject",)), 0)
    return roll


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder or 'embedded'; random weights when absent")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=4, help="tokens a column of a latent frame")
    parser.add_argument("--columns", type=int, default=4, help="tokens a row of a latent frame")
    parser.add_argument("--window", type=int, default=15, help="f, latent frames of a model call")
    parser.add_argument("--partitions", type=int, default=2, help="n")
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), help="variants; all when absent")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    if options.model:
        import longvid

        pipe = longvid.load(options.model, method="fifo", device=options.device, dtype=getattr(torch, options.dtype))
        transformer, facts = pipe.transformer, pipe.config
        scale = 2 * (getattr(pipe.vae.config, "scale_factor_spatial", None) or 8)
        options.rows, options.columns = facts.height // scale, facts.width // scale
        pairs = pipe.encode_prompt(["a red ball bounces over green hills"], [""])
    else:
        transformer = random_transformer(options).to(options.device, getattr(torch, options.dtype))
        pairs = (torch.randn(1, 16, 64), torch.zeros(1, 16, 64))
    config = transformer.config
    denoiser = WindowDenoiser(transformer, last_third(config.num_layers))
    text = denoiser.encode_text(*pairs)

    rolls, once = {}, {}
    for name in options.only or VARIANTS:
        roll = make_roll(denoiser, text, options, VARIANTS[name])
        began = time.perf_counter()
        roll.start(lambda _frame: 0)
        for _ in range(roll.schedule.warmup_passes + roll.schedule.context_slots + 1):
            roll.advance(lambda _frame: 0)
        synchronise(denoiser.device)
        rolls[name], once[name] = roll, time.perf_counter() - began
    wall: dict[str, list[float]] = {name: [] for name in rolls}
    calls: dict[str, float] = {}
    for turn in range(options.warm_up + options.rounds):
        for name, roll in rolls.items():
            before = roll.calls
            began = time.perf_counter()
            roll.advance(lambda _frame: 0)
            synchronise(denoiser.device)
            if turn >= options.warm_up:
                wall[name].append(time.perf_counter() - began)
                calls[name] = roll.calls - before
    rows = []
    for name, times in wall.items():
        schedule = rolls[name].schedule
        rows.append(
            {
                "variant": name,
                "median_seconds_a_latent_frame": round(statistics.median(times), 5),
                "p95_seconds_a_latent_frame": round(float(np.percentile(times, 95)), 5),
                "windows_a_pass": len(schedule.steady_windows),
                "model_calls_a_pass": calls[name],
                "first_clip_and_warm_up_seconds": round(once[name], 3),
            }
        )
        print(f"{name:32s} {rows[-1]['median_seconds_a_latent_frame']:.4f} s a latent frame", rows[-1], flush=True)
    if options.out:
        Record(vae=False, warm_up=options.warm_up).write(
            options.out,
            {
                "model": options.model or "random weights",
                "dim": config.num_attention_heads * config.attention_head_dim,
                "layers": config.num_layers,
                "tokens_a_latent_frame": options.rows * options.columns,
                "window_frames": options.window,
                "partitions": options.partitions,
                "levels": options.window * options.partitions,
                "guidance_scale": options.guidance_scale,
                "dtype": options.dtype,
                "rounds": options.rounds,
                "unit": "seconds a latent frame (4 video frames), one pass",
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
