"""``longvid bench``: how fast this machine renders, from prompt to file, and where the time goes."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from longvid.config import DEFAULT_MODEL, finite, whole

PROMPT = "a red ball bounces over green hills"


def register(app: typer.Typer) -> None:
    """Add ``bench`` to ``app``."""
    app.command("bench")(bench)


def bench(
    model: Annotated[str, typer.Option(help="A model folder, a hub id, or the one in the package.")] = DEFAULT_MODEL,
    method: Annotated[str | None, typer.Option("--method", "-m", help="One of `longvid methods`.")] = None,
    student: Annotated[str | None, typer.Option(help="base, or one of `longvid models`.")] = None,
    seconds: Annotated[float, typer.Option("--seconds", "-s", help="Of video a run.")] = 10.0,
    runs: Annotated[int, typer.Option(help="Timed runs; one more before them warms up.")] = 3,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure rendering on this machine: speed, first frame, denoise, decode and encode."""
    finite("seconds", seconds)
    whole("runs", runs, 1)
    import longvid
    from longvid.precision import check_device

    check_device(device)
    pipe = longvid.load(model, method, device=device, student=student)
    figures = {"speed": measure_speed(pipe, seconds, runs=runs, warm_up=1), "stages": measure_stages(pipe, seconds)}
    if as_json:
        print(json.dumps(figures, indent=1))
        return
    speed, stages = figures["speed"], figures["stages"]
    print(f"{pipe.method.name} on {pipe.device}, {speed['frames']} frames a run, median of {runs}:")
    print(
        f"  {speed['frames_per_second']['median']:g} frames a second, {speed['times_real_time']['median']:g}x real time"
    )
    print(f"  first frame after {speed['first_frame_seconds']['median']:.2f} s")
    print("  alone: " + ", ".join(f"{name} {stages[name]:g} s" for name in ("denoise", "decode", "encode")))


def measure_speed(pipe: Any, seconds: float, *, runs: int, warm_up: int) -> dict[str, Any]:
    """Renders of ``seconds`` to files: wall time, multiples of real time, and the time to the first frames."""
    walls, firsts, frames = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        for run in range(warm_up + runs):
            begun = time.perf_counter()
            frames = pipe.render(PROMPT, Path(folder) / f"{run}.mp4", seconds=seconds, seed=run).frames
            wall = time.perf_counter() - begun
            begun = time.perf_counter()
            next(iter(pipe.stream(PROMPT, seconds=seconds, seed=run)))
            if run >= warm_up:
                walls.append(wall)
                firsts.append(time.perf_counter() - begun)
    return {
        "video_seconds": seconds,
        "frames": frames,
        "render_seconds": summary(walls),
        "times_real_time": summary([seconds / wall for wall in walls], 2),
        "frames_per_second": summary([frames / wall for wall in walls], 1),
        "first_frame_seconds": summary(firsts),
    }


def measure_stages(pipe: Any, seconds: float) -> dict[str, float]:
    """Seconds of each stage of one render by itself, one after the other."""
    from longvid.media.writer import open_writer
    from longvid.models.vae_stream import streaming_decoder
    from longvid.pipelines.output import to_uint8

    begun = time.perf_counter()
    blocks = [block.latents for block in pipe.rollout(PROMPT, seconds=seconds, seed=0)]
    denoised = time.perf_counter()
    decoder = streaming_decoder(pipe.vae)
    pieces = [to_uint8(decoder.decode(latents.to(pipe.vae.dtype)))[0] for latents in blocks]
    decoded = time.perf_counter()
    height, width = pieces[0].shape[1:3]
    with tempfile.TemporaryDirectory() as folder:
        writer = open_writer(Path(folder) / "clip.mp4", width=width, height=height, fps=pipe.fps)
        for piece in pieces:
            writer.append(piece)
        writer.finish()
    return {
        "denoise": round(denoised - begun, 3),
        "decode": round(decoded - denoised, 3),
        "encode": round(time.perf_counter() - decoded, 3),
        "decode_frames_per_second": round(sum(len(piece) for piece in pieces) / (decoded - denoised), 1),
    }


def summary(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """Median, 95th percentile (nearest rank) and the values themselves."""
    ordered = sorted(values)
    p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
    return {
        "median": round(statistics.median(ordered), digits),
        "p95": round(p95, digits),
        "runs": [round(value, digits) for value in values],
    }
