"""Methods side by side as pictures: frames over time, one row a method, and how far each scene has gone.

    python scripts/method_pictures.py "a red box hops slowly over the sea" --out docs/images/ouroboros.webp \\
        --entry fifo --entry ouroboros --entry guidance:fifo,schedule.memory_guidance=0.03
    python scripts/method_pictures.py "..." --out docs/images/methods.webp --drift docs/images/methods_drift.webp

Entries are those of benchmarks/methods.py, [LABEL:]METHOD[@MODEL][,key=value...]. Drift is the identity drift of
longvid.metrics.identity, one point a five-second segment, the mean over the prompts: read it on scenes that stand
still. Needs Matplotlib for --drift.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.entries import REFERENCES, Entry, Renderer

DEFAULT = ("self-forcing", "streaming-llm", "deep-forcing", "rolling-forcing", "reward-forcing", "fifo", "ouroboros")
LABEL_WIDTH = 130  # pixels


def film(
    renderer: Renderer, entry: Entry, prompt: str, seed: int, times: list[float]
) -> tuple[np.ndarray, list[float]]:
    """(the frames at `times`, in seconds, side by side [H, W, 3]; the drift of every segment after the first)."""
    from longvid.metrics.frames import View
    from longvid.metrics.identity import IdentityMeter

    chunks, fps = renderer.stream(entry, prompt, None, seed, max(times) + 1)
    meter, wanted, drifts = IdentityMeter(fps), {round(at * fps): None for at in times}, list[float]()
    segment = meter.latest
    for chunk in chunks:
        for place, frame in enumerate(chunk.frames, chunk.start_frame):
            meter.update(View(frame))
            if meter.latest is not segment:
                segment = meter.latest
                drifts.append(float(segment))
            if place in wanted:
                wanted[place] = frame
    return np.concatenate([frame for frame in wanted.values() if frame is not None], axis=1), drifts


def labelled(text: str, frames: np.ndarray) -> np.ndarray:
    """`frames` [H, W, 3] with a white label on the left."""
    label = Image.new("RGB", (LABEL_WIDTH, frames.shape[0]), "white")
    ImageDraw.Draw(label).multiline_text((6, frames.shape[0] // 2 - 12), text.replace(",", "\n"), fill="black")
    return np.concatenate([np.asarray(label), frames], axis=1)


def drift_picture(curves: dict[str, list[float]], segment: float, out: Path) -> None:
    """One line a method: grey levels from the first segment's median image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for label, values in curves.items():
        axis.plot([segment * (i + 1.5) for i in range(len(values))], values, marker=".", lw=1.2, label=label)
    highest = max(value for values in curves.values() for value in values)
    axis.set(xlabel="seconds", ylabel="identity drift, grey levels", ylim=(0, 1.1 * highest))
    axis.legend(fontsize=8)
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
    parser.add_argument("--drift", type=Path, help="the curves")
    args = parser.parse_args()
    entries = [Entry.parse(text, args.model) for text in args.entry or DEFAULT]
    if named := [entry.label for entry in entries if entry.method in REFERENCES]:
        parser.error(f"entry={named[0]!r}: must be a method that a model renders")
    renderer, rows = Renderer(args.device, args.dtype), {}
    drifts: dict[str, list[Any]] = {}
    for entry in entries:
        for number, prompt in enumerate(args.prompts):
            frames, curve = film(renderer, entry, prompt, args.seed, args.at)
            rows[number, entry.label] = labelled(entry.label, frames)
            drifts.setdefault(entry.label, []).append(curve)
    Image.fromarray(np.concatenate([rows[key] for key in sorted(rows, key=lambda key: key[0])])).save(
        args.out, quality=88
    )
    if args.drift:
        means = {label: np.mean(curves, axis=0).tolist() for label, curves in drifts.items()}
        drift_picture(means, SEGMENT_SECONDS, args.drift)


if __name__ == "__main__":
    main()
