"""Methods side by side as pictures: frames over time, how far scenes have gone, their light, what a method remembers.

    python scripts/method_pictures.py "a pink star swings in the evening" \\
        --out docs/images/methods.webp --cache docs/images/methods_cache.webp --drift docs/images/methods_drift.webp
    python scripts/method_pictures.py --drift docs/images/methods_drift.webp --light docs/images/methods_light.webp
    python scripts/method_pictures.py "a red box hops slowly over the sea" --out docs/images/ouroboros.webp \\
        --entry fifo --entry ouroboros --entry guidance:fifo,student=base,schedule.memory_guidance=0.03

Entries have the names of benchmarks/entries.py: a label of its DEFAULT_ENTRIES, or under a label of its own
[LABEL:]METHOD[@MODEL][,key=value...]. Without --entry they are all of the default ones that no student was asked for:
every method on the base. Drift is the scene drift of all videos of a
record of benchmarks/methods.py, one point a five-second segment, and light that of the first prompt of a record of
benchmarks/light.py; nothing is rendered for them. The cache is that of the first seconds of the first prompt, a column
a block. All but the frames need Matplotlib (extra ``eval``).
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.entries import DEFAULT_ENTRIES, REFERENCES, Entry, Renderer
from longvid.models.students import BASE

TIMES = (0.0, 15.0, 30.0, 59.0)  # seconds
RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
RECORD, LIGHT = RESULTS / "methods_60s.json", RESULTS / "light_60s.json"
LABEL_WIDTH, HEADING_HEIGHT, TEXT_SIZE = 172, 20, 13  # pixels
COLUMNS = 4  # of the panels with curves and caches


def default_entries(model: str = "embedded") -> list[Entry]:
    """The entries of the table that are no reference, and on the base or on the student that is the method's own."""
    entries = [Entry.parse(text, model) for text in DEFAULT_ENTRIES]
    return [entry for entry in entries if entry.method not in REFERENCES and entry.student in (None, BASE)]


def find_entry(text: str, model: str) -> Entry:
    """The default entry with this label, else what ``text`` says. Raises ValueError for a reference, for a malformed
    entry, and for another entry under a default entry's label."""
    known = {entry.label: entry for entry in (Entry.parse(default, model) for default in DEFAULT_ENTRIES)}
    entry = known.get(text) or Entry.parse(text, model)
    if entry.method in REFERENCES:
        raise ValueError(f"entry={text!r}: must be a method that a model renders")
    if known.get(entry.label, entry) != entry:
        raise ValueError(f"entry={text!r}: {entry.label!r} is the label of another entry of the table; give a new one")
    return entry


def row_label(label: str, student: str | None) -> str:
    """An entry's label, with the student that it renders with on a second line."""
    return label if student in (None, BASE) else f"{label}\nstudent: {student}"


def film(
    renderer: Renderer, entry: Entry, prompts: Sequence[str], seed: int, times: Sequence[float]
) -> list[np.ndarray]:
    """A prompt: the frames at ``times``, in seconds, side by side, uint8 [H, W * len(times), 3]."""
    fps = renderer.fps(entry)
    places = [round(at * fps) for at in times]
    kept: list[dict[int, np.ndarray]] = [{} for _ in prompts]
    parts = [(place, place + 1) for place in sorted(set(places))]
    jobs = [(prompt, None, seed) for prompt in prompts]
    for chunks in renderer.videos(entry, jobs, max(times) + 1, parts):
        for frames, chunk in zip(kept, chunks, strict=True):
            frames |= dict(enumerate(chunk.frames, chunk.start_frame))
    return [np.concatenate([frames[place] for place in places], axis=1) for frames in kept]


def strip_picture(rows: Mapping[str, Sequence[np.ndarray]], prompts: Sequence[str], times: Sequence[float]) -> Any:
    """The strips of every label in ``rows``, one a prompt, under the prompt and a heading of seconds: an RGB image.

    A prompt takes two headings and one row a label.
    """
    height, width = next(iter(rows.values()))[0].shape[:2]
    block = 2 * HEADING_HEIGHT + len(rows) * height
    picture = Image.new("RGB", (LABEL_WIDTH + width, len(prompts) * block), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT_SIZE)
    for number, prompt in enumerate(prompts):
        top = number * block
        draw.text((6, top + 3), f"“{prompt}”", fill="black", font=font)
        for place, at in enumerate(times):
            middle = LABEL_WIDTH + (place + 0.5) * width / len(times)
            draw.text((middle, top + HEADING_HEIGHT + 3), f"{at:g} s", fill="black", font=font, anchor="ma")
        for row, (label, strips) in enumerate(rows.items()):
            start = top + 2 * HEADING_HEIGHT + row * height
            text = label.replace(",", "\n")
            draw.multiline_text((6, start + height // 2), text, fill="black", font=font, anchor="lm")
            picture.paste(Image.fromarray(strips[number]), (LABEL_WIDTH, start))
    return picture


def remembered(renderer: Renderer, entry: Entry, prompt: str, seed: int, seconds: float) -> list[list[tuple[int, str]]]:
    """A block: (latent frame, role) of what its successor can look back at; [] for a method without a cache."""
    rollout = renderer.pipe(entry).rollout(prompt, seconds=seconds, seed=seed)
    cache = getattr(rollout, "cache", None)
    if cache is None:
        return []
    return [[(frame, cache.role(frame)) for frame in cache.resident] for _ in rollout]


def recorded_drifts(figures: Mapping[str, Any]) -> dict[str, list[float]]:
    """Scene drift by segment of the default entries that a record's ``figures`` hold, and of "world", by label.

    A label says so where an entry has fewer videos than the others.
    """
    entries = figures["entries"]
    most = max(fact["videos"] for fact in entries.values())
    curves = {}
    for label in (*(entry.label for entry in default_entries()), "world"):
        if fact := entries.get(label):
            few = "" if fact["videos"] == most else f"\n{fact['videos']} of {most} videos"
            curves[row_label(label, fact["student"]) + few] = fact["drifts"]
    return curves


def panels(count: int, across: str, up: str) -> tuple[Any, np.ndarray]:
    """A Matplotlib figure and the ``count`` axes of a grid with shared scales, named at its left and lower ends."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(2.3 * columns, 2.0 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    for place, axis in enumerate(axes[:count]):  # the lowest of a column has the scale, the last row or not
        lowest, leftmost = place + columns >= count, place % columns == 0
        axis.tick_params(labelbottom=lowest, labelleft=leftmost)
        axis.set(xlabel=across if lowest else "", ylabel=up if leftmost else "")
    return figure, axes[:count]


def drift_picture(curves: Mapping[str, Sequence[float]], segment: float) -> Any:
    """A panel a label of ``curves`` but "world": its curve, those of the others in grey, and real video, dashed.

    Values are in grey levels, the first one of the second segment; ``segment`` is in seconds. Gives an RGB image.
    """
    methods = {label: values for label, values in curves.items() if label != "world"}
    figure, axes = panels(len(methods), "seconds", "grey levels")

    def draw(axis: Any, values: Sequence[float], **style: Any) -> Any:
        return axis.plot([segment * (i + 1.5) for i in range(len(values))], values, **style)[0]

    for axis, (label, values) in zip(axes, methods.items(), strict=True):
        for others in methods.values():
            other = draw(axis, others, color="0.85", lw=0.8)
        real = draw(axis, curves["world"], color="black", lw=1, ls="--")
        own = draw(axis, values, color="tab:red", lw=2)
        axis.set_title(label, fontsize=9)
        axis.set_ylim(0, None)
    names = ["scene drift of the method", "the other methods", "real video of the same scenes"]
    figure.legend([own, other, real], names, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return image(figure)


def light_picture(curves: Mapping[str, Sequence[float]]) -> Any:
    """A panel a label of ``curves`` but "world": its light, grey levels a second, and real video's, dashed."""
    methods = {label: values for label, values in curves.items() if label != "world"}
    figure, axes = panels(len(methods), "seconds", "mean luma")
    for axis, (label, values) in zip(axes, methods.items(), strict=True):
        real = axis.plot(curves["world"], color="black", lw=1, ls="--")[0]
        own = axis.plot(values, color="tab:red", lw=2)[0]
        axis.set_title(label, fontsize=9)
    names = ["light of the method", "real video of the caption"]
    figure.legend([own, real], names, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return image(figure)


def recorded_light(figures: Mapping[str, Any]) -> dict[str, list[float]]:
    """Light of the default entries that a record's ``figures`` hold, and of "world", by label."""
    labels = (*(entry.label for entry in default_entries()), "world")
    return {
        row_label(label, figures["entries"][label]["student"]): figures["curves"][label]
        for label in labels
        if label in figures["curves"]
    }


def cache_picture(caches: Mapping[str, list[list[tuple[int, str]]]]) -> Any:
    """A panel a method: blocks from left to right, the latent frames that are held from bottom to top, by role."""
    from longvid.notebook import ROLE_COLOURS

    figure, axes = panels(len(caches), "block", "latent frame")
    for axis, (label, blocks) in zip(axes, caches.items(), strict=True):
        for role, colour in ROLE_COLOURS.items():
            marks = [(place, frame) for place, held in enumerate(blocks) for frame, r in held if r == role]
            if marks:
                axis.scatter(*zip(*marks, strict=True), s=4, marker="s", color=colour, linewidths=0)
        axis.set_title(label, fontsize=9)
    patches = [axes[0].scatter([], [], marker="s", color=colour, label=role) for role, colour in ROLE_COLOURS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8, frameon=False)
    return image(figure)


def image(figure: Any) -> Any:
    """A Matplotlib figure as an RGB image: Pillow then writes it in the format of the file's ending."""
    held = io.BytesIO()
    figure.savefig(held, dpi=110, format="png")
    return Image.open(held).convert("RGB")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT")
    parser.add_argument("--entry", action="append", metavar="LABEL | [LABEL:]METHOD[@MODEL][,key=value...]")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--at", type=float, nargs="+", default=TIMES, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--out", type=Path, help="the strips of frames")
    parser.add_argument("--drift", type=Path, help="the curves of a record")
    parser.add_argument("--record", type=Path, default=RECORD, help="of benchmarks/methods.py, for the curves")
    parser.add_argument("--light", type=Path, help="light over time, of a record")
    parser.add_argument("--light-record", type=Path, default=LIGHT, help="of benchmarks/light.py")
    parser.add_argument("--cache", type=Path, help="what each method remembers")
    parser.add_argument("--cache-seconds", type=float, default=20)
    args = parser.parse_args(arguments)
    if not (args.out or args.drift or args.cache or args.light):
        parser.error("nothing to draw: give --out, --cache, --drift or --light")
    if bool(args.prompts) != bool(args.out or args.cache):
        parser.error(f"prompts={args.prompts}: --out and --cache need a PROMPT, and --drift and --light take none")
    if args.prompts:
        try:
            entries = [find_entry(text, args.model) for text in args.entry or ()] or default_entries(args.model)
        except ValueError as error:
            parser.error(str(error))
        renderer = Renderer(args.device, args.dtype)
        strips: dict[str, list[np.ndarray]] = {}
        caches: dict[str, list[list[tuple[int, str]]]] = {}
        for entry in entries:
            label = row_label(entry.label, renderer.pipe(entry).student)
            if args.out:
                strips[label] = film(renderer, entry, args.prompts, args.seed, args.at)
            if args.cache and (held := remembered(renderer, entry, args.prompts[0], args.seed, args.cache_seconds)):
                caches[label] = held
        if args.out:
            strip_picture(strips, args.prompts, args.at).save(args.out, quality=88)
        if args.cache and not caches:
            parser.error(f"cache={str(args.cache)!r}: no entry has a cache; name one that has")
        if args.cache:
            cache_picture(caches).save(args.cache, quality=90)
    if args.drift:
        from longvid.metrics.series import SEGMENT_SECONDS

        record = json.loads(args.record.read_text(encoding="utf-8"))
        drift_picture(recorded_drifts(record["figures"]), SEGMENT_SECONDS).save(args.drift, quality=90)
    if args.light:
        record = json.loads(args.light_record.read_text(encoding="utf-8"))
        light_picture(recorded_light(record["figures"])).save(args.light, quality=90)


if __name__ == "__main__":
    main()
