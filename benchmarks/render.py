"""End to end: prompt to file. Speed against real time, time to the first frame, where the time goes, memory by length.

    python benchmarks/render.py                      # everything, on the embedded model
    python benchmarks/render.py --seconds 20 --runs 5 --no-memory --method rolling-forcing

A run is one render of --seconds: denoising, decoding, H.264 encoding, fsync of every block. Memory is the peak of a
process of its own for each length.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import ROOT, Record

PROMPT = "a red ball bounces over green hills"


def summary(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """Median, 95th percentile (nearest rank) and the values themselves."""
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)]
    return {
        "median": round(statistics.median(ordered), digits),
        "p95": round(p95, digits),
        "runs": [round(value, digits) for value in values],
    }


def import_seconds(runs: int) -> dict[str, Any]:
    """Seconds of `import longvid` in a new process, the interpreter's own start left out."""
    code = "import time; t = time.perf_counter(); import longvid; print(time.perf_counter() - t)"
    return summary([float(_python("-c", code)) for _ in range(runs)])


def load(arguments: argparse.Namespace) -> Any:
    import longvid

    pipe = longvid.load(arguments.model, arguments.method, device=arguments.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def speed(pipe: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Renders to a file: seconds, multiples of real time, and the first frame."""
    walls, firsts = [], []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(arguments.warm_up + arguments.runs):
            begun = time.perf_counter()
            done = pipe.render(PROMPT, Path(folder) / f"{run}.mp4", seconds=arguments.seconds, seed=run)
            if run >= arguments.warm_up:
                walls.append(time.perf_counter() - begun)
                firsts.append(_first_frame(pipe, run))
    return {
        "video_seconds": arguments.seconds,
        "frames": done.frames,
        "render_seconds": summary(walls),
        "times_real_time": summary([arguments.seconds / wall for wall in walls], 2),
        "frames_per_second": summary([done.frames / wall for wall in walls], 1),
        "first_frame_seconds": summary(firsts),
    }


def _first_frame(pipe: Any, seed: int) -> float:
    """Seconds from the call to the first decoded frames."""
    begun = time.perf_counter()
    next(iter(pipe.stream(PROMPT, seconds=10, seed=seed)))
    return time.perf_counter() - begun


def stages(pipe: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one render of each stage by itself, one after the other."""
    from longvid.media.writer import open_writer
    from longvid.models.vae_stream import streaming_decoder
    from longvid.pipelines.base import to_uint8

    begun = time.perf_counter()
    blocks = [block.latents for block in pipe.rollout(PROMPT, seconds=arguments.seconds, seed=0)]
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
    written = time.perf_counter()
    return {
        "denoise_seconds": round(denoised - begun, 3),
        "decode_seconds": round(decoded - denoised, 3),
        "encode_and_write_seconds": round(written - decoded, 3),
        "decode_frames_per_second": round(sum(len(piece) for piece in pieces) / (decoded - denoised), 1),
    }


def same_frames(pipe: Any) -> bool:
    """Whether a stream and a render of the same seed give the same frames."""
    from longvid.media.journal import frame_md5s, read_sidecar

    streamed = [md5 for chunk in pipe.stream(PROMPT, seconds=4, seed=7) for md5 in frame_md5s(chunk.frames)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        pipe.render(PROMPT, path, seconds=4, seed=7)
        found = read_sidecar(path)
    return found is not None and found[1] == streamed


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak resident megabytes of a process that renders, for each length."""
    peaks = {}
    for seconds in arguments.memory_seconds:
        options = ["--model", arguments.model, "--seconds", str(seconds), "--peak-only"]
        options += ["--method", arguments.method] if arguments.method else []
        options += ["--device", arguments.device] if arguments.device else []
        peaks[f"{seconds:g}"] = float(_python(str(Path(__file__).resolve()), *options).splitlines()[-1])
    values = list(peaks.values())
    return {"peak_megabytes_by_video_seconds": peaks, "last_over_first": round(values[-1] / values[0], 4)}


def peak_only(arguments: argparse.Namespace) -> None:
    """Render once and print this process's peak resident megabytes."""
    pipe = load(arguments)
    with tempfile.TemporaryDirectory() as folder:
        pipe.render(PROMPT, Path(folder) / "clip.mp4", seconds=arguments.seconds, seed=0)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))


def _python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--method", default=None)
    parser.add_argument("--device", default=None)
    parser.add_argument("--seconds", type=float, default=20.0, help="of video a run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1, help="untimed runs before")
    parser.add_argument("--memory-seconds", type=float, nargs="+", default=[60.0, 600.0])
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--peak-only", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "render.json")
    arguments = parser.parse_args()
    if arguments.peak_only:
        peak_only(arguments)
        return
    figures: dict[str, Any] = {"import_seconds": import_seconds(arguments.runs)}
    begun = time.perf_counter()
    pipe = load(arguments)
    figures["load_seconds"] = round(time.perf_counter() - begun, 3)
    method = pipe.method
    figures["speed"] = speed(pipe, arguments)
    figures["stages"] = stages(pipe, arguments)
    figures["stream_equals_render"] = same_frames(pipe)
    if not arguments.no_memory:
        figures["memory"] = memory(arguments)
    record = Record(
        vae=True,
        warm_up=arguments.warm_up,
        encoder=True,
        model=arguments.model,
        method=method.name,
        steps=len(method.schedule.steps),
        guidance_scale=method.schedule.guidance_scale,
        dtype=str(pipe.transformer.dtype).removeprefix("torch."),
        size=[pipe.config.height, pipe.config.width],
    )
    record.write(arguments.out, figures)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
