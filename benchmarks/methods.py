"""Every method on the same prompts and seeds: rendered, scored, compared in pairs, with intervals over prompts.

    python benchmarks/methods.py --seconds 60 --out benchmarks/results/methods_60s.json --markdown docs/results.md
    python benchmarks/methods.py --entry self-forcing --entry long:streaming-llm@models/wan,student=base,cache.window=12

An entry is [LABEL:]METHOD[@MODEL][,student=NAME][,key=value...]; without a student it is the method's own. METHOD
"world" is the world itself (real video of the same scene and seed), "autoencoder" the same through the model's
autoencoder: what no method can beat. Each finished video is a line of OUT with the ending .rows.jsonl; a run that was
stopped goes on from there, and a changed method, model or length is rendered anew. --report-only makes the tables of
the lines that are there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import Record
from benchmarks.scores import METRICS, score_video
from benchmarks.tables import markdown, summarise
from longvid.models.students import ADAPTER, BASE
from longvid.models.students import FOLDER as STUDENTS_FOLDER

# All methods on the same weights, so that only the method differs; then students, each under the method it is for.
COMMON = (
    "self-forcing",
    "streaming-llm",
    "longlive",
    "deep-sink:deep-forcing,cache.policy=deep-sink",
    "deep-forcing",
    "rolling-forcing",
    "reward-forcing",
    "radial:self-forcing,attention.kind=radial",
    "radial-cache:radial",
    "fifo",
    "ouroboros",
)
STUDENTS = (
    "distilled-self-forcing:self-forcing,student=self-forcing",
    "distilled-deep-forcing:deep-forcing,student=self-forcing",
    "distilled-rolling-forcing:rolling-forcing,student=rolling-forcing",
    "distilled-ema-sink:reward-forcing,student=self-forcing",
    "distilled-reward-forcing:reward-forcing,student=reward-forcing",
)
DEFAULT_ENTRIES = (
    *(f"{entry},student=base" if ":" in entry else f"{entry}:{entry},student=base" for entry in COMMON),
    *STUDENTS,
    "world",
    "autoencoder",
)
REFERENCES = ("world", "autoencoder")
TEMPORAL_STRIDE = 4  # video frames a latent frame, of the embedded model's autoencoder and of Wan's


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the table."""

    label: str
    method: str
    model: str
    student: str | None = None
    overrides: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, default_model: str) -> Entry:
        """Read [LABEL:]METHOD[@MODEL][,student=NAME][,key=value...]. Raises ValueError for an empty part."""
        head, *pairs = text.split(",")
        label, colon, rest = head.partition(":")
        method, at, model = (rest if colon else head).partition("@")
        if not method or (at and not model) or (colon and not label) or not all("=" in pair for pair in pairs):
            raise ValueError(f"entry={text!r}: must be [LABEL:]METHOD[@MODEL][,student=NAME][,key=value...]")
        named = [pair.partition("=")[2] for pair in pairs if pair.startswith("student=")]
        return cls(
            label=label if colon else text,
            method=method,
            model=model or default_model,
            student=named[-1] if named else None,
            overrides=tuple(pair for pair in pairs if not pair.startswith("student=")),
        )


class Renderer:
    """Loads each model once a method and streams videos of it."""

    def __init__(self, device: str | None, dtype: str | None) -> None:
        self._device, self._dtype = device, dtype
        self._held: tuple[Entry, Any] | None = None  # one pipeline at a time: models can be large

    def pipe(self, entry: Entry) -> Any:
        import torch

        import longvid
        from longvid.presets import parse_overrides

        if self._held is None or self._held[0] != entry:
            method = None if entry.method in REFERENCES else entry.method
            where = {"device": self._device, "dtype": getattr(torch, self._dtype) if self._dtype else None}
            overrides = parse_overrides(entry.overrides)
            pipe = longvid.load(entry.model, method, student=entry.student, overrides=overrides, **where)
            pipe.set_progress_bar_config(disable=True)
            self._held = entry, pipe
        return self._held[1]

    def facts(self, entry: Entry) -> dict[str, Any]:
        """What the frames of an entry depend on: the resolved method and the weights."""
        from longvid.config import to_mapping

        if entry.method == "world":
            return {"method": "world"}
        if entry.method in REFERENCES:
            method: Any = entry.method
        else:
            resolved = to_mapping(self.pipe(entry).method)
            method = {part: resolved[part] for part in ("pipeline", "schedule", "cache", "attention")}
        facts = {"method": method, "model": entry.model, "weights": fingerprint(entry.model)}
        if entry.method not in REFERENCES and self.pipe(entry).student != BASE:
            facts["student"] = self.pipe(entry).student
            facts["adapter"] = fingerprint(entry.model, facts["student"])
        return facts | ({"dtype": self._dtype} if self._dtype else {})

    def cache_bytes(self, entry: Entry, prompt: str) -> int | None:
        """Bytes of the frame cache; None for what has none."""
        if entry.method in REFERENCES:
            return None
        cache = getattr(self.pipe(entry).rollout(prompt, seconds=1, seed=0), "cache", None)
        return None if cache is None else int(cache.nbytes)

    def stream(self, entry: Entry, prompt: str, scene: Any, seed: int, seconds: float) -> tuple[Iterator[Any], float]:
        """Chunks of frames, and frames a second."""
        from longvid.training.world import FPS

        if entry.method == "world":
            return real_video(scene, seed, seconds), FPS
        pipe = self.pipe(entry)
        if entry.method == "autoencoder":
            return through_autoencoder(pipe, real_video(scene, seed, seconds)), FPS
        return pipe.stream(prompt, seconds=seconds, seed=seed), pipe.fps


def fingerprint(model: str, student: str | None = None) -> str | None:
    """Hash of a local model's components, or of one of its students; None for a hub id. What else lies in its folder
    changes no frame."""
    from longvid.pipelines.loading import model_folder

    folder = model_folder(model)
    if folder is None:
        return None
    if student is not None:
        return hashlib.sha256((folder / STUDENTS_FOLDER / student / ADAPTER).read_bytes()).hexdigest()[:16]
    digest = hashlib.sha256()
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = [folder / name for name in sorted(index) if (folder / name).is_dir()]
    files = [file for part in parts for ending in ("safetensors", "json") for file in part.rglob(f"*.{ending}")]
    for file in sorted(files):
        digest.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as opened:
            while piece := opened.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()[:16]


def real_video(scene: Any, seed: int, seconds: float, latents: int = 3, stride: int = TEMPORAL_STRIDE) -> Iterator[Any]:
    """The world's own video in chunks as long as a block of ``latents`` latent frames: 1 + stride (latents - 1) frames,
    then stride latents each."""
    from longvid.pipelines.output import VideoChunk
    from longvid.training import world

    total, start, index = round(seconds * world.FPS), 0, 0
    while start < total:
        count = min(latents * stride - (stride - 1 if start == 0 else 0), total - start)
        yield VideoChunk(world.render(scene, seed, start=start, frames=count), index, start)
        start, index = start + count, index + 1


def through_autoencoder(pipe: Any, chunks: Iterator[Any]) -> Iterator[Any]:
    """Chunks encoded and decoded again by the pipeline's autoencoder; an incomplete last latent frame is dropped."""
    import torch

    from longvid.models.vae_stream import streaming_decoder, streaming_encoder
    from longvid.pipelines.output import VideoChunk, to_uint8

    encoder, decoder = streaming_encoder(pipe.vae), streaming_decoder(pipe.vae)
    for chunk in chunks:
        whole = len(chunk.frames) - (len(chunk.frames) - (chunk.start_frame == 0)) % TEMPORAL_STRIDE
        if whole <= 0:
            return
        video = torch.from_numpy(chunk.frames[:whole]).permute(3, 0, 1, 2)[None].to(pipe.vae.device, pipe.vae.dtype)
        with torch.no_grad():
            decoded = decoder.decode(encoder.encode(video / 127.5 - 1))
        yield VideoChunk(to_uint8(decoded.float())[0], chunk.index, chunk.start_frame)


class Rows:
    """Finished videos, one JSON line each; what is there is not rendered again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, dict[str, Any]] = {}
        if path.exists():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):  # the line that was being written when the run was stopped
                path.write_bytes(whole)
            for line in whole.splitlines():
                row = json.loads(line)
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


def scored(
    renderer: Renderer, entry: Entry, prompt: str, scene: Any, seed: int, seconds: float, probe: Any
) -> dict[str, Any]:
    """Render and score one video; a model that overflows is a failed video, not a failed run."""
    chunks, fps = renderer.stream(entry, prompt, scene, seed, seconds)
    timed = entry.method not in REFERENCES
    try:
        scores = score_video(chunks, fps=fps, scene=scene, probe=probe, temporal_stride=TEMPORAL_STRIDE, timed=timed)
    except FloatingPointError as error:
        return {"failed": str(error), "scores": {}}
    return {"failed": None, "scores": {name: v if np.isfinite(v) else None for name, v in scores.items()}}


def collect(
    entries: list[Entry], args: argparse.Namespace
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any], dict[str, float] | None]:
    """tables[label][metric] [P, S] with NaN where there is no score, facts by label, and the probe's own accuracy."""
    from longvid.training.describe import held_out_prompts

    probe, own = None, None
    if args.probe is not None:
        from longvid.training.probe import load_probe

        probe, own = load_probe(args.probe)
    rows, renderer = Rows(args.out.with_suffix(".rows.jsonl")), Renderer(args.device, args.dtype)
    prompts = held_out_prompts(args.prompts)
    tables: dict[str, dict[str, np.ndarray]] = {}
    facts: dict[str, Any] = {}
    for entry in entries:
        what = renderer.facts(entry)
        shape = (args.prompts, args.seeds)
        table = {name: np.full(shape, np.nan) for name in METRICS}
        failed: list[str] = []
        for p, (prompt, scene) in enumerate(prompts):
            for seed in range(args.seeds):
                video = what | {"prompt": prompt, "seed": seed, "seconds": args.seconds, "probe": own}
                row = rows.get(video)
                if row is None and not args.report_only:
                    row = {"video": video} | scored(renderer, entry, prompt, scene, seed, args.seconds, probe)
                    rows.add(row)
                    print(f"{entry.label}: prompt {p + 1}/{args.prompts}, seed {seed}", file=sys.stderr, flush=True)
                if row is not None:
                    if row["failed"]:
                        failed.append(f"{prompt!r}, seed {seed}: {row['failed']}")
                    for name in METRICS:
                        value = row["scores"].get(name)
                        table[name][p, seed] = np.nan if value is None else value
        tables[entry.label] = table
        facts[entry.label] = {
            "method": what["method"],
            "model": entry.model if entry.method != "world" else None,
            "weights": what.get("weights"),
            "student": what.get("student"),
            "dtype": args.dtype,
            "failed": failed,
            "cache_bytes": None if args.report_only else renderer.cache_bytes(entry, prompts[0][0]),
        }
    return tables, facts, own


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entry", action="append", metavar="[LABEL:]METHOD[@MODEL][,student=NAME][,key=value...]")
    parser.add_argument("--baseline", default="self-forcing", help="label of the entry that all are compared with")
    parser.add_argument("--model", default="embedded", help="model of entries that name none")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the model; its own when absent")
    parser.add_argument(
        "--probe", type=lambda v: None if v == "none" else Path(v), help="weights of the oracle, or none"
    )
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "methods.json")
    parser.add_argument("--markdown", type=Path)
    parser.set_defaults(probe=Path(__file__).parent / "probe.safetensors")
    args = parser.parse_args(argv)
    entries = [Entry.parse(text, args.model) for text in args.entry or DEFAULT_ENTRIES]
    labels = [entry.label for entry in entries]
    if len(set(labels)) != len(labels):
        parser.error(f"entries: labels repeat ({', '.join(labels)}); give LABEL:METHOD")
    if args.baseline not in labels:
        parser.error(f"baseline={args.baseline!r}: must be among the entries ({', '.join(labels)})")
    record = Record(vae=True, warm_up=1, prompts=args.prompts, seeds=args.seeds, seconds=args.seconds)
    tables, facts, own = collect(entries, args)
    figures = summarise(tables, args.baseline) | {"entries": facts, "probe_held_out": own}
    record.write(args.out, figures)
    text = markdown(figures, record.header(), seconds=args.seconds, prompts=args.prompts, seeds=args.seeds)
    if args.markdown:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
