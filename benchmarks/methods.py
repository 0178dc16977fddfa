"""Every method on the same prompts and seeds: rendered, scored, compared in pairs, with intervals over prompts.

    python benchmarks/methods.py --seconds 60 --dtype bfloat16 --out benchmarks/results/methods_60s.json
    python benchmarks/methods.py --entry self-forcing --entry long:streaming-llm@models/wan,student=base,cache.window=12

An entry is [LABEL:]METHOD[@MODEL][,student=NAME][,key=value...]; without a student it is the method's own. METHOD
"world" is the world itself (real video of the same scene and seed), "autoencoder" the same through the model's
autoencoder: what no method can beat. Of a video over two minutes the first five seconds and the last minute are scored.
Each finished video is a line of OUT with the ending .rows.jsonl; a run that was stopped goes on from there, and a
changed method, model or length is rendered anew. The report packs the lines it rests on into OUT with the ending
.rows.xz, which lies beside the record in the repository: another machine goes on from it, and nobody needs to render
again what was rendered. Delete it to score anew. --report-only makes the tables of the lines that are there;
scripts/results_tables.py puts them into docs/results.md. --update replaces in OUT only what is told of the entries
named; the baseline must be among them, for the pairs. What a video costs is benchmarks/costs.py's.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.entries import (
    DEFAULT_ENTRIES,
    TEMPORAL_STRIDE,
    Entry,
    Parts,
    Renderer,
    chosen_entries,
    chosen_prompts,
    completed,
)
from benchmarks.record import Record, write
from benchmarks.scores import METRICS, SCORING, VideoScore
from benchmarks.tables import markdown, summarise, with_speed_error
from benchmarks.update import updated
from longvid.metrics.oracle import STATIC
from longvid.metrics.series import SEGMENT_SECONDS

LONG_SECONDS, END_SECONDS = 120.0, 60.0


def scored_parts(seconds: float, fps: float) -> Parts:
    """What is scored of a video: all, or of one over LONG_SECONDS its first segment and its last END_SECONDS."""
    total = round(seconds * fps)
    if seconds <= LONG_SECONDS:
        return [(0, total)]
    return [(0, round(SEGMENT_SECONDS * fps)), (total - round(END_SECONDS * fps), total)]


class Rows:
    """Finished videos, one JSON line each; what is there is not rendered again.

    path: lines of this machine, appended to. packed: lines of a record, compressed, which the newer ones go before.
    """

    def __init__(self, path: Path, packed: Path | None = None) -> None:
        self._path = path
        self._rows: dict[str, dict[str, Any]] = {}
        if packed is not None and packed.exists():
            self._take(lzma.decompress(packed.read_bytes()))
        self._packed = [row["video"] for row in self._rows.values()]
        if path.exists():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):  # the line that was being written when the run was stopped
                path.write_bytes(whole)
            self._take(whole)

    def _take(self, lines: bytes) -> None:
        for line in lines.splitlines():
            row = json.loads(line)
            row["video"] = completed(row["video"])
            self._rows[self._key(row["video"])] = row

    @staticmethod
    def _key(video: dict[str, Any]) -> str:
        return json.dumps(video, sort_keys=True)

    def get(self, video: dict[str, Any]) -> dict[str, Any] | None:
        return self._rows.get(self._key(video))

    def add(self, row: dict[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as out:
            out.write(json.dumps(row) + "\n")
        self._rows[self._key(row["video"])] = row

    def pack(self, path: Path, videos: Iterable[dict[str, Any]], *, keep: bool = False) -> None:
        """Write the lines of those videos that are there, in their order; ``keep``: behind those packed before."""
        wanted = {self._key(video): video for video in (*(self._packed if keep else ()), *videos)}
        found = (self.get(video) for video in wanted.values())
        text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in found if row is not None)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(text.encode()))


def scored(
    renderer: Renderer, entry: Entry, jobs: Sequence[tuple[str, Any, int]], seconds: float, probe: Any
) -> list[dict[str, Any]]:
    """Render jobs (prompt, scene, seed) together and score each; a model that overflows is a failed video, not a failed
    run, and takes none of its batch with it."""
    fps = renderer.fps(entry)
    found = [VideoScore(fps, scene=scene, probe=probe, temporal_stride=TEMPORAL_STRIDE) for _, scene, _ in jobs]
    try:
        for chunks in renderer.videos(entry, jobs, seconds, scored_parts(seconds, fps)):
            for score, chunk in zip(found, chunks, strict=True):
                score.update(chunk)
    except FloatingPointError as error:
        if len(jobs) == 1:
            return [{"failed": str(error), "scores": {}, "drifts": []}]
        return [row for job in jobs for row in scored(renderer, entry, [job], seconds, probe)]
    return [
        {
            "failed": None,
            "scores": {name: v if np.isfinite(v) else None for name, v in score.result().items()},
            "drifts": [v if np.isfinite(v) else None for v in score.drifts()],
        }
        for score in found
    ]


def batches(missing: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """``missing`` in runs of at most ``size``."""
    for start in range(0, len(missing), size):
        yield missing[start : start + size]


def collect(
    entries: list[Entry], args: argparse.Namespace, renderer: Renderer
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any], dict[str, float] | None]:
    """tables[label][metric] [P, S] with NaN where there is no score, facts by label, and the probe's own accuracy."""
    probe, own = None, None
    if args.probe is not None:
        from longvid.training.probe import load_probe

        probe, own = load_probe(args.probe)
    packed = args.out.with_suffix(".rows.xz")
    rows = Rows(args.rows or args.out.with_suffix(".rows.jsonl"), packed)
    used: list[dict[str, Any]] = []
    prompts = chosen_prompts(args.prompts, skip=args.skip_prompts, backgrounds=STATIC if args.still else None)
    tables: dict[str, dict[str, np.ndarray]] = {}
    facts: dict[str, Any] = {}
    for entry in entries:
        what = renderer.facts(entry)
        wanted = {
            (p, seed): what
            | {"prompt": prompt, "seed": seed, "seconds": args.seconds, "probe": own, "scoring": SCORING}
            for p, (prompt, _) in enumerate(prompts)
            for seed in range(args.seeds)
        }
        missing = [] if args.report_only else [place for place, video in wanted.items() if rows.get(video) is None]
        for batch in batches(missing, args.batch):
            jobs = [(*prompts[p], seed) for p, seed in batch]
            for place, row in zip(batch, scored(renderer, entry, jobs, args.seconds, probe), strict=True):
                rows.add({"video": wanted[place], "products": renderer.products(entry)} | row)
            p, seed = batch[-1]
            print(f"{entry.label}: prompt {p + 1}/{args.prompts}, seed {seed}", file=sys.stderr, flush=True)
        table = {name: np.full((args.prompts, args.seeds), np.nan) for name in METRICS}
        failed: list[str] = []
        drifts: list[list[float | None]] = []
        products: set[str] = set()
        rendered = 0
        used += wanted.values()
        for place, video in wanted.items():
            row = rows.get(video)
            if row is None:
                continue
            rendered += 1
            # Told by the machine that rendered, not by the one that reports.
            products.add(row.get("products", "native"))
            if row["failed"]:
                failed.append(f"{video['prompt']!r}, seed {video['seed']}: {row['failed']}")
            if row["drifts"]:
                drifts.append(row["drifts"])
            for name in METRICS:
                value = row["scores"].get(name)
                table[name][place] = np.nan if value is None else value
        tables[entry.label] = table
        facts[entry.label] = {
            "method": what["method"],
            "model": entry.model if entry.method != "world" else None,
            "weights": what.get("weights"),
            "student": what.get("student"),
            "dtype": args.dtype,
            "products": " and ".join(sorted(products)) or None,
            "videos": rendered,
            "failed": failed,
            "drifts": np.nanmean(np.array(drifts, dtype=float), axis=0).tolist() if drifts else [],
        }
    rows.pack(packed, used, keep=args.update)
    return with_speed_error(tables), facts, own


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entry", action="append", metavar="[LABEL:]METHOD[@MODEL][,student=NAME][,key=value...]")
    parser.add_argument("--baseline", default="self-forcing", help="label of the entry that all are compared with")
    parser.add_argument("--model", default="embedded", help="model of entries that name none")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument(
        "--skip-prompts", type=int, default=0, help="leave out the first ones (to try settings on others)"
    )
    parser.add_argument(
        "--still", action="store_true", help="only scenes that stand still, where identity drift is told"
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16, help="videos rendered together")
    parser.add_argument("--device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the model; its own when absent")
    parser.add_argument(
        "--probe", type=lambda v: None if v == "none" else Path(v), help="weights of the oracle, or none"
    )
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--update", action="store_true", help="keep what OUT says of entries that are not named here")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "methods.json")
    parser.add_argument("--rows", type=Path, help="finished videos; beside OUT when not given")
    parser.add_argument("--markdown", type=Path)
    parser.set_defaults(probe=Path(__file__).parent / "probe.safetensors")
    args = parser.parse_args(argv)
    entries = chosen_entries(parser, args.entry or DEFAULT_ENTRIES, args.model, args.baseline)
    which = {"prompts": args.prompts, "skipped": args.skip_prompts, "still": args.still}
    record = Record(vae=True, warm_up=1, seeds=args.seeds, seconds=args.seconds, **which)
    renderer = Renderer(args.device, args.dtype)
    tables, facts, own = collect(entries, args, renderer)
    figures = summarise(tables, args.baseline) | {"entries": facts, "probe_held_out": own}
    whole = {**record.header(), "figures": figures}
    if args.update:
        try:
            whole = updated(json.loads(args.out.read_text(encoding="utf-8")), whole, figures)
        except (OSError, ValueError) as error:
            parser.error(f"update: {error}")
    write(args.out, whole)
    text = markdown(whole)
    if args.markdown:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
