"""End to end: prompt to file. Speed against real time, time to the first frame, where the time goes, memory by length.

    python benchmarks/render.py                      # everything, on the embedded model
    python benchmarks/render.py --seconds 20 --runs 5 --no-memory --method rolling-forcing

A run is one render of --seconds: denoising, decoding, H.264 encoding, fsync of every block. Memory is the peak of a
process of its own for each length.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import ROOT, Record

from longvid.bench_cli import PROMPT, measure_speed, measure_stages, summary


def import_seconds(runs: int) -> dict[str, Any]:
    """Seconds of `import longvid` in a new process, the interpreter's own start left out."""
    code = "import time; t = time.perf_counter(); import longvid; print(time.perf_counter() - t)"
    return summary([float(_python("-c", code)) for _ in range(runs)])


def load(arguments: argparse.Namespace) -> Any:
    import longvid

    return longvid.load(arguments.model, arguments.method, device=arguments.device)


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
    figures["speed"] = measure_speed(pipe, arguments.seconds, runs=arguments.runs, warm_up=arguments.warm_up)
    figures["stages"] = measure_stages(pipe, arguments.seconds)
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
