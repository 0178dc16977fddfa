"""Methods side by side as pictures: frames over time, how far each scene has gone, and what each method remembers.

    python scripts/method_pictures.py "a red box hops slowly over the sea" --out docs/images/ouroboros.webp \\
        --entry fifo --entry ouroboros --entry guidance:fifo,schedule.memory_guidance=0.03
    python scripts/method_pictures.py "..." "..." --shown 1 --out docs/images/methods.webp \\
        --drift docs/images/methods_drift.webp --cache docs/images/methods_cache.webp

Entries are those of benchmarks/methods.py, [LABEL:]METHOD[@MODEL][,key=value...]. Drift is the identity drift of
longvid.metrics.identity, one point a five-second segment, the mean over the prompts: read it on scenes that stand
still. With --record it is the scene drift of all videos of a table of benchmarks/methods.py instead. The cache is that
of the first seconds of the first prompt, a column a block. Needs Matplotlib for both.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.entries import REFERENCES, Entry, Renderer

DEFAULT = (
    "self-forcing",
    "streaming-llm",
    "longlive",
    "deep-forcing",
    "rolling-forcing",
    "reward-forcing",
    "radial",
    "longvid",
    "fifo",
    "ouroboros",
)
CURVES = ("self-forcing", "streaming-llm", "deep-forcing", "rolling-forcing", "reward-forcing", "longvid", "world")
LABEL_WIDTH = 130  # pixels


def film(
    renderer: Renderer, entry: Entry, prompts: list[str], seed: int, times: list[float]
) -> list[tuple[np.ndarray, list[float]]]:
    """A prompt: (frames at `times`, in seconds, side by side [H, W, 3]; the drift of every segment after the first)."""
    from longvid.metrics.frames import View
    from longvid.metrics.identity import IdentityMeter

    fps, seconds = renderer.fps(entry), max(times) + 1
    meters = [IdentityMeter(fps) for _ in prompts]
    wanted: list[dict[int, Any]] = [{round(at * fps): None for at in times} for _ in prompts]
    drifts: list[list[float]] = [[] for _ in prompts]
    jobs = [(prompt, None, seed) for prompt in prompts]
    for chunks in renderer.videos(entry, jobs, seconds, [(0, round(seconds * fps))]):
        for meter, kept, curve, chunk in zip(meters, wanted, drifts, chunks, strict=True):
            for place, frame in enumerate(chunk.frames, chunk.start_frame):
                before = meter.latest
                meter.update(View(frame))
                if meter.latest is not before:
                    curve.append(float(meter.latest))
                if place in kept:
                    kept[place] = frame
    strips = [np.concatenate([frame for frame in kept.values() if frame is not None], axis=1) for kept in wanted]
    return list(zip(strips, drifts, strict=True))


def remembered(renderer: Renderer, entry: Entry, prompt: str, seed: int, seconds: float) -> list[list[tuple[int, str]]]:
    """A block: (latent frame, role) of what its successor can look back at; [] for a method without a cache."""
    rollout = renderer.pipe(entry).rollout(prompt, seconds=seconds, seed=seed)
    cache = getattr(rollout, "cache", None)
    if cache is None:
        return []
    return [[(frame, cache.role(frame)) for frame in cache.resident] for _ in rollout]


def labelled(text: str, frames: np.ndarray) -> np.ndarray:
    """`frames` [H, W, 3] with a white label on the left."""
    label = Image.new("RGB", (LABEL_WIDTH, frames.shape[0]), "white")
    ImageDraw.Draw(label).multiline_text((6, frames.shape[0] // 2 - 12), text.replace(",", "\n"), fill="black")
    return np.concatenate([np.asarray(label), frames], axis=1)


def drift_picture(curves: dict[str, list[float]], segment: float, out: Path, title: str) -> None:
    """One line a method: grey levels from the first segment's median image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for label, values in curves.items():
        axis.plot([segment * (i + 1.5) for i in range(len(values))], values, marker=".", lw=1.2, label=label)
    highest = max(value for values in curves.values() for value in values)
    axis.set(xlabel="seconds", ylabel=title, ylim=(0, 1.1 * highest))
    axis.legend(fontsize=8)
    save(figure, out)


def cache_picture(caches: dict[str, list[list[tuple[int, str]]]], out: Path) -> None:
    """A panel a method: blocks from left to right, the latent frames that are held from bottom to top, by role."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from longvid.notebook import ROLE_COLOURS

    columns = min(4, len(caches))
    rows = -(-len(caches) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis in axes[len(caches) :]:
        axis.set_visible(False)
    for axis, (label, blocks) in zip(axes, caches.items(), strict=False):
        for role, colour in ROLE_COLOURS.items():
            marks = [(place, frame) for place, held in enumerate(blocks) for frame, r in held if r == role]
            if marks:
                axis.scatter(*zip(*marks, strict=True), s=4, marker="s", color=colour, linewidths=0)
        axis.set_title(label, fontsize=9)
        axis.set(xlabel="block", ylabel="latent frame")
        axis.label_outer()
    patches = [axes[0].scatter([], [], marker="s", color=colour, label=role) for role, colour in ROLE_COLOURS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8, frameon=False)
    save(figure, out)


def save(figure: Any, out: Path) -> None:
    """Write a Matplotlib figure in the format of the file's ending, as Pillow has it."""
    held = io.BytesIO()
    figure.savefig(held, dpi=110, format="png")
    Image.open(held).convert("RGB").save(out, quality=90)


def main() -> None:
    from longvid.metrics.series import SEGMENT_SECONDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="+", metavar="PROMPT")
    parser.add_argument("--entry", action="append", metavar="[LABEL:]METHOD[@MODEL][,key=value...]")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--at", type=float, nargs="+", default=[0, 5, 15, 30, 45, 59], metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--out", type=Path, required=True, help="the strip of frames")
    parser.add_argument("--shown", type=int, help="prompts in the strip, the first ones; all when not given")
    parser.add_argument("--drift", type=Path, help="the curves")
    parser.add_argument("--record", type=Path, help="take the curves from this record of benchmarks/methods.py")
    parser.add_argument("--curves", nargs="+", default=CURVES, metavar="LABEL", help="entries of the record to draw")
    parser.add_argument("--cache", type=Path, help="what each method remembers")
    parser.add_argument("--cache-seconds", type=float, default=20)
    args = parser.parse_args()
    entries = [Entry.parse(text, args.model) for text in args.entry or DEFAULT]
    if named := [entry.label for entry in entries if entry.method in REFERENCES]:
        parser.error(f"entry={named[0]!r}: must be a method that a model renders")
    renderer, rows = Renderer(args.device, args.dtype), {}
    drifts: dict[str, list[Any]] = {}
    caches: dict[str, Any] = {}
    for entry in entries:
        filmed = film(renderer, entry, args.prompts, args.seed, args.at)
        for number, (frames, curve) in enumerate(filmed):
            if args.shown is None or number < args.shown:
                rows[number, entry.label] = labelled(entry.label, frames)
            drifts.setdefault(entry.label, []).append(curve)
        if args.cache:
            held = remembered(renderer, entry, args.prompts[0], args.seed, args.cache_seconds)
            caches |= {entry.label: held} if held else {}
    Image.fromarray(np.concatenate([rows[key] for key in sorted(rows, key=lambda key: key[0])])).save(
        args.out, quality=88
    )
    if args.drift:
        means = {label: np.mean(curves, axis=0).tolist() for label, curves in drifts.items()}
        title = "identity drift, grey levels"
        if args.record:
            entries_of = json.loads(args.record.read_text(encoding="utf-8"))["figures"]["entries"]
            means, title = {label: entries_of[label]["drifts"] for label in args.curves}, "scene drift, grey levels"
        drift_picture(means, SEGMENT_SECONDS, args.drift, title)
    if args.cache:
        cache_picture(caches, args.cache)


if __name__ == "__main__":
    main()
