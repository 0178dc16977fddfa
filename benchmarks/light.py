"""Scenes that are to change: does day still follow night, or does a method hold the light where it was?

    OMP_NUM_THREADS=1 python benchmarks/light.py --seeds 4 --dtype bfloat16 --out benchmarks/results/light_60s.json

Drift is told of scenes that stand still (benchmarks/methods.py), and a method could have little of it because it lets
nothing change. Captions "through day and night" ask for a change that goes on: a day of the embedded world lasts 16
seconds. Every entry of benchmarks/entries.py renders the same of them that training never showed, and its light, the
frames' mean luma, is held against real video's of the same scene and seed.

Entries, finished videos and packed lines are benchmarks/methods.py's. "world" must be among the entries.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.claims import Claim, judge
from benchmarks.entries import DEFAULT_ENTRIES, Entry, Renderer, chosen_entries, chosen_prompts
from benchmarks.methods import Rows, batches
from benchmarks.record import Record
from benchmarks.scores import Metric
from benchmarks.tables import claim_table, compared, section_table
from longvid.metrics.bootstrap import RESAMPLES
from longvid.metrics.frames import luma
from longvid.metrics.oracle import LIT
from longvid.metrics.report import to_plain

SCORING = 1
"""To be raised when a video's line changes its meaning."""

METRICS = {
    "swing": Metric(title="light's swing (real video: 1)", good=1),
    "turns": Metric(title="dawns and dusks a minute", good=0),  # too many are as wrong as too few
}

CLAIMS: tuple[Claim, ...] = (
    Claim(
        text="A sink of the first block freezes what moves: here, the light.",
        paper="Deep Forcing (2512.05081), on StreamingLLM-style sinks",
        metric="swing",
        entry="streaming-llm",
        than="self-forcing",
        direction=-1,
    ),
    Claim(
        text="A deep, re-aligned sink of half the window freezes it less than a first-block sink.",
        paper="Deep Forcing (2512.05081)",
        metric="swing",
        entry="deep-sink",
        than="streaming-llm",
        direction=1,
    ),
    Claim(
        text="An EMA sink freezes it less than the same sink without a moving average.",
        paper="Reward Forcing (2512.04678)",
        metric="swing",
        entry="reward-forcing",
        than="static-sink",
        direction=1,
    ),
)


class LightMeter:
    """Mean luma of each whole second of one video, 0-255; a second that ends early is left out."""

    def __init__(self, fps: float) -> None:
        self._span, self._sums = round(fps), list[float]()

    def update(self, frames: np.ndarray) -> None:
        """Read uint8 frames [T, H, W, 3]."""
        self._sums += luma(frames).mean(axis=(1, 2)).tolist()

    def result(self) -> list[float]:
        whole = len(self._sums) // self._span
        return [round(float(v), 2) for v in np.reshape(self._sums[: whole * self._span], (whole, self._span)).mean(1)]


def swing(light: Sequence[float], real: Sequence[float]) -> float:
    """How far light comes and goes: its standard deviation over real video's of the same scene; 0 where it is held."""
    return float(np.std(light) / np.std(real))


def turns(light: Sequence[float], real: Sequence[float]) -> float:
    """Dawns and dusks a minute of ``light``, a value a second: passages between the lower and the upper third of the
    range that real video of the same scene has."""
    low, high = np.quantile(np.array([min(real), max(real)]), (1 / 3, 2 / 3))
    sides = [value >= high for value in light if value >= high or value <= low]
    return sum(a != b for a, b in pairwise(sides)) * 60 / len(light)


SCORES = {"swing": swing, "turns": turns}
HOURS = ("day", "night")


def first_hour(light: Sequence[float], real: Sequence[float]) -> str:
    """Whether a video begins in the upper half of real video's range or in the lower one."""
    return HOURS[light[0] < (min(real) + max(real)) / 2]


def by_first_hour(videos: Sequence[Sequence[Any]], real: Sequence[Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Mean swing of the videos that begin by day and of those that begin by night, and how many they are."""
    found: dict[str, list[float]] = {hour: [] for hour in HOURS}
    for a, b in zip(videos, real, strict=True):
        for light, r in zip(a, b, strict=True):
            if light and r:
                found[first_hour(light, r)].append(swing(light, r))
    return {hour: {"swing": float(np.mean(of)) if of else None, "videos": len(of)} for hour, of in found.items()}


def rendered(
    renderer: Renderer, entry: Entry, jobs: Sequence[tuple[str, Any, int]], seconds: float
) -> list[dict[str, Any]]:
    """A line a job (prompt, scene, seed): its light, or why there is none."""
    fps = renderer.fps(entry)
    meters = [LightMeter(fps) for _ in jobs]
    try:
        for chunks in renderer.videos(entry, jobs, seconds, [(0, round(seconds * fps))]):
            for meter, chunk in zip(meters, chunks, strict=True):
                meter.update(chunk.frames)
    except FloatingPointError as error:
        if len(jobs) == 1:
            return [{"failed": str(error), "light": []}]
        return [line for job in jobs for line in rendered(renderer, entry, [job], seconds)]
    return [{"failed": None, "light": meter.result()} for meter in meters]


def collect(entries: Sequence[Entry], args: argparse.Namespace) -> tuple[dict[str, list[list[Any]]], dict[str, Any]]:
    """lights[label][prompt][seed], None where a video is not there or failed, and facts by label."""
    renderer = Renderer(args.device, args.dtype)
    packed = args.out.with_suffix(".rows.xz")
    rows = Rows(args.rows or args.out.with_suffix(".rows.jsonl"), packed)
    prompts = chosen_prompts(args.prompts, skip=args.skip_prompts, backgrounds=(LIT,))
    lights: dict[str, list[list[Any]]] = {}
    facts: dict[str, Any] = {}
    used: list[dict[str, Any]] = []
    for entry in entries:
        what = renderer.facts(entry)
        wanted = {
            (p, seed): what | {"prompt": prompt, "seed": seed, "seconds": args.seconds, "scoring": SCORING}
            for p, (prompt, _) in enumerate(prompts)
            for seed in range(args.seeds)
        }
        missing = [] if args.report_only else [place for place, video in wanted.items() if rows.get(video) is None]
        for batch in batches(missing, args.batch):
            lines = rendered(renderer, entry, [(*prompts[p], seed) for p, seed in batch], args.seconds)
            for place, line in zip(batch, lines, strict=True):
                rows.add({"video": wanted[place], "products": renderer.products(entry)} | line)
            print(f"{entry.label}: prompt {batch[-1][0] + 1}/{args.prompts}", file=sys.stderr, flush=True)
        used += wanted.values()
        found = {place: row for place, video in wanted.items() if (row := rows.get(video)) is not None}
        lights[entry.label] = [
            [found[p, s]["light"] or None if (p, s) in found else None for s in range(args.seeds)]
            for p in range(len(prompts))
        ]
        facts[entry.label] = {
            "method": what["method"],
            "weights": what.get("weights"),
            "student": what.get("student"),
            "dtype": args.dtype,
            "products": " and ".join(sorted({row["products"] for row in found.values()})) or None,
            "videos": len(found),
            "failed": [
                f"{wanted[place]['prompt']!r}: {row['failed']}" for place, row in found.items() if row["failed"]
            ],
        }
    rows.pack(packed, used)
    return lights, facts


def summarise(
    lights: Mapping[str, Sequence[Sequence[Any]]], baseline: str, *, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Means with intervals over prompts, paired differences from ``baseline``, claims; the first prompt's curves."""
    real = lights["world"]
    tables = {
        label: {
            name: np.array(
                [
                    [score(light, r) if light and r else np.nan for light, r in zip(a, b, strict=True)]
                    for a, b in zip(videos, real, strict=True)
                ]
            )
            for name, score in SCORES.items()
        }
        for label, videos in lights.items()
    }
    means, differences = compared(tables, baseline, SCORES, resamples)
    return {
        "baseline": baseline,
        "means": to_plain(means),
        "differences": to_plain(differences),
        "claims": to_plain([judge(claim, tables, resamples=resamples) for claim in CLAIMS]),
        "first_hours": {label: by_first_hour(videos, real) for label, videos in lights.items()},
        "curves": {label: videos[0][0] for label, videos in lights.items() if videos[0][0]},
    }


def hours_table(figures: Mapping[str, Any]) -> str:
    """Swing by the hour that a video begins with."""
    lines = ["| | begun by day: swing | videos | begun by night: swing | videos |", "|---|" + 4 * "---|"]
    for entry, hours in figures["first_hours"].items():
        told = [f"{h['swing']:.2f} | {h['videos']}" if h["videos"] else "- | 0" for h in (hours[k] for k in HOURS)]
        lines.append(f"| `{entry}` | " + " | ".join(told) + " |")
    return "\n".join(lines)


def light_how(record: Mapping[str, Any]) -> str:
    """What was rendered and where, and what the marks mean."""
    figures, machine = record["figures"], record["machine"]
    dtype = next(iter(figures["entries"].values()))["dtype"] or "the model's own dtype"
    return (
        f"{record['prompts']} held-out prompts of day and night x {record['seeds']} seeds x {record['seconds']:g} s, "
        f"{dtype}, on {machine['gpu'] or machine['processor']}, {machine['threads']} thread, torch "
        f"{record['versions']['torch']}; commit {record['commit']}. Means with 95 % bootstrap intervals over prompts. "
        f"**Bold**: clearly more than `{figures['baseline']}` in the paired comparison; _italic_: clearly less; \\*: "
        "clearly different where neither way is better."
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entry", action="append", metavar="[LABEL:]METHOD[@MODEL][,student=NAME][,key=value...]")
    parser.add_argument("--baseline", default="self-forcing", help="label of the entry that all are compared with")
    parser.add_argument("--model", default="embedded", help="model of entries that name none")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument(
        "--skip-prompts", type=int, default=0, help="leave out the first ones (to try settings on others)"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch", type=int, default=12, help="videos rendered together")
    parser.add_argument("--device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the model; its own when absent")
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "light_60s.json")
    parser.add_argument("--rows", type=Path, help="finished videos; beside OUT when not given")
    args = parser.parse_args(argv)
    entries = chosen_entries(parser, args.entry or DEFAULT_ENTRIES, args.model, args.baseline)
    if "world" not in {entry.label for entry in entries}:
        parser.error("entries: 'world' must be among them, which light is measured against")
    which = {"prompts": args.prompts, "skipped": args.skip_prompts}
    record = Record(vae=True, warm_up=0, seeds=args.seeds, seconds=args.seconds, **which)
    lights, facts = collect(entries, args)
    figures = summarise(lights, args.baseline) | {"entries": facts}
    record.write(args.out, figures)
    print(
        section_table(figures, METRICS, METRICS),
        claim_table(figures, METRICS),
        light_how(record.header() | {"figures": figures}),
        sep="\n\n",
    )


if __name__ == "__main__":
    main()
