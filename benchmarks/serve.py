"""What serving costs: time to first frame, sustained frames a second, latency added to bare stream(), and memory.

    python benchmarks/serve.py --out benchmarks/results/serve_cpu.json
    python benchmarks/serve.py --method rolling-forcing --blocks 10 --repeats 1
    python benchmarks/serve.py --page            writes the tables of docs/serving.md from the recorded figures

The page's tables also have what the live metrics cost, from benchmarks/online_metrics.py.

Viewers run in processes of their own and acknowledge every frame at once, at 120 frames a second, so that on a CPU
nothing but the model holds generation back. A "slow" viewer never acknowledges. Times are of a wall clock; served and
bare alternate within one run, so that whoever else uses the machine slows both alike: read the ratio, or the processor
time that the server's own process takes for a block, and not the milliseconds. Decoding is included everywhere,
encoding to JPEG and the live metrics in the served rows only: they are part of what serving adds.

    bare      pipe.stream() in a loop
    served    the same model behind the websocket; `added_ms` is what a block takes longer, in the median
    sessions  1, 2 and 4 viewers at once: each one's frames a second, model memory, resident memory of the server
    slow      one viewer that never acknowledges beside one that does: what is held for it, and what the other gets
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pages

ROOT = pages.ROOT
PAGE = ROOT / "docs" / "serving.md"
RESULTS = ROOT / "benchmarks" / "results"
PROMPT = "a red ball bounces over green hills"


def watch(url: str, method: str, blocks: int, seed: int, acknowledge: bool, answers: Any, over: Any) -> None:
    """One viewer, to its last block or, when it never acknowledges, until `over`.

    Puts {"first", "at": arrival of each block's last frame, "bytes"} into `answers`.
    """
    from websockets.sync.client import connect

    from longvid.serve.protocol import unpack_frame

    with connect(url.replace("http", "ws", 1) + "ws", max_size=None) as socket:
        socket.recv()
        started = time.perf_counter()
        start = {"type": "start", "prompt": PROMPT, "seconds": None, "seed": seed, "method": method, "fps": 120}
        socket.send(json.dumps(start))
        first, at, size, block, last = None, [], 0, 0, started
        while block < blocks:
            try:
                data = socket.recv(None if acknowledge else 1.0)
            except TimeoutError:
                if over.is_set():
                    break  # stalled to the end, as it should be
                socket.send('{"type":"ping"}')
                continue
            now = time.perf_counter()
            if isinstance(data, str):
                if json.loads(data)["type"] == "error":
                    raise RuntimeError(data)
                continue
            header, _ = unpack_frame(data)
            first = now - started if first is None else first
            size += len(data)
            if header.block != block:
                block = header.block
                at.append(last)
            last = now
            if acknowledge:
                socket.send(json.dumps({"type": "ack", "last_id": header.id}))
        answers.put({"seed": seed, "first": first, "at": at, "bytes": size, "frames": header.id + 1})


def viewers(url: str, method: str, blocks: int, count: int, slow: int = 0) -> tuple[list[Any], Any, Any]:
    """Start `count` viewers and `slow` that never acknowledge; their processes, the queue of their answers, and the
    event that ends the slow ones."""
    context = multiprocessing.get_context("spawn")
    answers, over = context.Queue(), context.Event()
    processes = [
        context.Process(target=watch, args=(url, method, blocks, seed, seed < count, answers, over), daemon=True)
        for seed in range(count + slow)
    ]
    for process in processes:
        process.start()
    return processes, answers, over


def intervals(at: list[float]) -> list[float]:
    """Seconds between blocks, without the first two: the cache is filling."""
    return [b - a for a, b in pairwise(at[2:])]


def shares(viewers: list[dict[str, Any]], frames: int) -> list[float]:
    """Each viewer's frames a second while all of them were watching: between the last one's second block and the first
    one's last. perf_counter is one clock for all processes of a machine."""
    begin, end = max(viewer["at"][1] for viewer in viewers), min(viewer["at"][-1] for viewer in viewers)
    if end <= begin:
        raise SystemExit("--blocks: too few for viewers to overlap; take more")
    return [sum(begin < t <= end for t in viewer["at"]) * frames / (end - begin) for viewer in viewers]


def spread(values: list[float], scale: float = 1.0, digits: int = 2) -> dict[str, float]:
    """Median and 95th percentile."""
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return {"median": round(scale * statistics.median(ordered), digits), "p95": round(scale * p95, digits)}


def bare(pipe: Any, blocks: int) -> dict[str, Any]:
    started, used = time.perf_counter(), time.process_time()
    at, first = [], 0.0
    for _ in pipe.stream(PROMPT, seed=0):
        first = first or time.process_time() - used
        at.append(time.perf_counter())
        if len(at) == blocks:
            break
    times = intervals(at)
    used = (time.process_time() - used) / blocks
    return {"first": at[0] - started, "times": times, "cpu": used, "first_cpu": first}


def served(studio: Any, method: str, blocks: int, count: int, slow: int = 0) -> dict[str, Any]:
    import psutil

    from longvid.serve.limits import Limits
    from longvid.serve.server import LocalServer

    limits = Limits(max_sessions=count + slow + 1, stall_timeout=3600.0)
    process = psutil.Process()
    with LocalServer(studio, limits) as server:
        url, engine = server.url, server.engine
        before, used, made = process.memory_info().rss, time.process_time(), engine.telemetry.blocks
        started, answers, over = viewers(url, method, blocks, count, slow)
        while not engine.telemetry.frames:
            time.sleep(0.002)
        first = time.process_time() - used
        peak_model = peak_rss = peak_ring = peak_held = 0
        while any(p.is_alive() for p in started[:count]):
            sessions = engine.sessions
            peak_model = max(peak_model, sum(session.memory_bytes for session in sessions))
            peak_ring = max(peak_ring, sum(session.ring.bytes for session in sessions))
            held = [session.ring.unacked + session.unsent for session in sessions]
            peak_held = max([peak_held, *held])
            peak_rss = max(peak_rss, process.memory_info().rss)
            time.sleep(0.05)
        used = (time.process_time() - used) / (engine.telemetry.blocks - made)
        over.set()
        results = [answers.get(timeout=60) for _ in started]
        for p in started:
            p.join(30)
    return {
        "results": sorted(results, key=lambda result: result["seed"])[:count],
        "model_megabytes": round(peak_model / 1e6, 1),
        "ring_megabytes": round(peak_ring / 1e6, 2),
        "grown_megabytes": round((peak_rss - before) / 1e6, 1),
        "most_frames_held": peak_held,
        "cpu_ms_a_block": round(1000 * used, 1),
        "cpu_ms_to_first_frame": round(1000 * first, 1),
    }


# ---------------------------------------------------------------- the page


def page() -> str:
    """docs/serving.md with its tables written anew. Raises SystemExit when it lacks one's markers."""
    cost = json.loads((RESULTS / "serve_cpu.json").read_text())
    live = json.loads((RESULTS / "online_metrics_cpu.json").read_text())
    made = {"serve": cost_table(cost), "sessions": session_table(cost), "metrics": live_table(live)}
    name = str(PAGE.relative_to(ROOT))
    return pages.rendered({key: (name, lambda text=text: text.strip()) for key, text in made.items()})[PAGE]


def where(record: dict[str, Any], name: str) -> str:
    machine = record["machine"]
    return (
        f"{machine['processor']}, {machine['threads']} thread, load {machine['load_average'][0]:.1f}, "
        f"commit {record['commit']}: [{name}](../benchmarks/results/{name})\n"
    )


def cost_table(record: dict[str, Any]) -> str:
    """Processor time only: wall times, which a shared machine's other users decide, are in the JSON with its load."""
    figures = record["figures"]
    frames = int(figures["unit"].split()[2])
    plain, served = figures["bare"]["cpu_ms_a_block"]["median"], figures["served"]["cpu_ms_a_block"]["median"]
    rows = [
        f"| {title} | {row['cpu_ms_to_first_frame']['median']:.0f} | {row['cpu_ms_a_block']['median']:.0f} "
        f"| {1000 * frames / row['cpu_ms_a_block']['median']:.0f} |"
        for title, row in (("bare `pipe.stream()`", figures["bare"]), ("served, one viewer", figures["served"]))
    ]
    return "\n".join(
        [
            "| | to the first frame (ms) | a block (ms) | frames a second that one core allows |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Processor time of the process that runs the model. Serving (encoding, measuring, sending) adds "
            f"{served - plain:.0f} ms to a {figures['unit']}, {served / plain - 1:.0%}; a frame takes "
            f"{figures['served']['kilobytes_a_frame']} kB. {where(record, 'serve_cpu.json')}",
        ]
    )


def session_table(record: dict[str, Any]) -> str:
    def row(title: str, shares: str, run: dict[str, Any]) -> str:
        held = f"{run['model_megabytes']} | {run['ring_megabytes']} | {run['most_frames_held']}"
        return f"| {title} | {shares} | {run['cpu_ms_a_block']:.0f} | {held} |"

    figures = record["figures"]
    rows = [
        row(count, ", ".join(f"{fps / sum(run['fps_each']):.0%}" for fps in run["fps_each"]), run)
        for count, run in figures["sessions"].items()
    ]
    return "\n".join(
        [
            "| sessions | each one's share of the frames | processor time of a block (ms) | model memory (MB) "
            "| frames kept for replay (MB) | most frames sent and not acknowledged |",
            "|---|---|---|---|---|---|",
            *rows,
            row("1, and one that never acknowledges", "all to the other", figures["slow"]),
            "",
        ]
    )


def live_table(record: dict[str, Any]) -> str:
    figures = record["figures"]
    rows = [
        f"| {size} | " + " | ".join(f"{row['median']} / {row['p95']}" for row in kinds.values()) + " |"
        for size, kinds in figures.items()
    ]
    titles = " | ".join(f"{kind} (ms)" for kind in next(iter(figures.values())))
    return "\n".join(
        [
            f"| frames | {titles} |",
            "|---" * (1 + len(next(iter(figures.values())))) + "|",
            *rows,
            "",
            f"Processor time of one frame, median / 95th percentile. {where(record, 'online_metrics_cpu.json')}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--method", default="deep-forcing")
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", action="store_true", help="write the tables of docs/serving.md and measure nothing")
    options = parser.parse_args()
    if options.page:
        PAGE.write_text(page(), encoding="utf-8")
        return

    import longvid
    from benchmarks.record import Record
    from longvid.serve.studio import PipelineStudio

    pipe = longvid.load(options.model, options.method)
    pipe.set_progress_bar_config(disable=True)
    studio = PipelineStudio(pipe, model=options.model)
    for _ in range(2):
        studio.warm_up()
    frames = studio.check(PROMPT, None, 0, options.method, None).block_frames
    loops, runs = [], []
    for _ in range(options.repeats):  # in turn, so that a busy machine slows both alike
        loops.append(bare(pipe, options.blocks))
        runs.append(served(studio, options.method, options.blocks, 1))
    alone = [run["results"][0] for run in runs]
    plain = [seconds for loop in loops for seconds in loop["times"]]
    behind = [seconds for viewer in alone for seconds in intervals(viewer["at"])]
    figures: dict[str, Any] = {
        "unit": f"block of {frames} frames, {studio.width}x{studio.height}",
        "bare": {
            "block_ms": spread(plain, 1000),
            "fps": round(frames / statistics.median(plain), 1),
            "first_frame_ms": spread([loop["first"] for loop in loops], 1000),
            "cpu_ms_a_block": spread([loop["cpu"] for loop in loops], 1000, 1),
            "cpu_ms_to_first_frame": spread([loop["first_cpu"] for loop in loops], 1000, 1),
        },
        "served": {
            "block_ms": spread(behind, 1000),
            "fps": round(frames / statistics.median(behind), 1),
            "first_frame_ms": spread([viewer["first"] for viewer in alone], 1000),
            "cpu_ms_a_block": spread([run["cpu_ms_a_block"] for run in runs], 1, 1),
            "cpu_ms_to_first_frame": spread([run["cpu_ms_to_first_frame"] for run in runs], 1, 1),
            "added_ms": round(1000 * (statistics.median(behind) - statistics.median(plain)), 2),
            "times_bare": round(statistics.median(behind) / statistics.median(plain), 3),
            "kilobytes_a_frame": round(alone[0]["bytes"] / alone[0]["frames"] / 1000, 2),
        },
        "sessions": {},
    }
    for count in options.sessions:
        run = served(studio, options.method, options.blocks, count)
        each = shares(run.pop("results"), frames)
        figures["sessions"][count] = {
            "fps_each": [round(fps, 1) for fps in each],
            "fps_all": round(sum(each), 1),
            **run,
        }
    run = served(studio, options.method, options.blocks, 1, slow=1)
    fps = frames / statistics.median(intervals(run.pop("results")[0]["at"]))
    figures["slow"] = {"fps_of_the_other": round(fps, 1), **run}
    print(json.dumps(figures, indent=1))
    if options.out:
        facts = {"model": options.model, "method": options.method, "blocks": options.blocks, "repeats": options.repeats}
        Record(vae=True, warm_up=2, **facts).write(options.out, figures)


if __name__ == "__main__":
    main()
