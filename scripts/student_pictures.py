"""Pictures of the shipped students for docs/training.md: their training curves, and frames beside the base's.

    python scripts/student_pictures.py --out docs/images

Needs Matplotlib (extra ``eval``). Curves come from the logs beside the adapters.
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

PANELS = (
    ("critic_loss", "critic: flow-matching error"),
    ("dmd_gradient", "student: mean |g|"),
    ("reward", "reward of its clips"),
)
SHOWN = (
    ("deep-forcing", "base"),
    ("deep-forcing", "self-forcing"),
    ("rolling-forcing", "rolling-forcing"),
    ("reward-forcing", "reward-forcing"),
)
SECONDS = (0, 5, 15, 30, 45, 59)


def curves(students: list[Any], out: Path) -> None:
    """Every student's log in the same panels, smoothed over ten rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from longvid.training.distill.student import LOG

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(PANELS))
    for student in students:
        rows = [json.loads(line) for line in (student.folder / LOG).read_text(encoding="utf-8").splitlines()]
        for axis, (key, _) in zip(axes, PANELS, strict=True):
            points = [(row["step"], row[key]) for row in rows if key in row]
            window = min(10, len(points))
            if points:
                smooth = np.convolve([value for _, value in points], np.ones(window) / window, "valid")
                axis.plot([step for step, _ in points[window - 1 :]], smooth, lw=1.2, label=student.name)
    for axis, (_, title) in zip(axes, PANELS, strict=True):
        axis.set(xlabel="step (critic updates)", title=title)
        axis.legend(fontsize=7)
    held = io.BytesIO()
    figure.savefig(held, dpi=90, format="png")
    Image.open(held).convert("RGB").save(out / "student_training.webp", quality=90)


def sheet(prompts: list[str], out: Path) -> None:
    """A row a (prompt, method and student), a column a time."""
    from longvid import load

    rows = []
    pipes = {pair: load("embedded", pair[0], student=pair[1]) for pair in SHOWN}
    for prompt in prompts:
        for (method, student), pipe in pipes.items():
            pipe.set_progress_bar_config(disable=True)
            wanted = {round(s * pipe.fps): None for s in SECONDS}
            for chunk in pipe.stream(prompt, seconds=max(SECONDS) + 0.5, seed=0):
                for at in wanted:
                    if chunk.start_frame <= at < chunk.start_frame + len(chunk.frames):
                        wanted[at] = chunk.frames[at - chunk.start_frame]
            frames = np.concatenate(list(wanted.values()), axis=1)
            label = Image.new("RGB", (150, frames.shape[0]), "white")
            ImageDraw.Draw(label).text((4, 50), f"{method}\nstudent: {student}", fill="black")
            rows.append(np.concatenate([np.asarray(label), frames], axis=1))
    Image.fromarray(np.concatenate(rows, axis=0)).save(out / "students.webp", quality=85)


def main() -> None:
    from longvid.models.students import find_student, student_names
    from longvid.training.describe import held_out_prompts

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[3, 4], help="which of the held-out prompts")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--curves-only", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    curves([find_student("embedded", name) for name in student_names("embedded")], args.out)
    if not args.curves_only:
        held_out = held_out_prompts(max(args.prompts) + 1)
        sheet([held_out[index][0] for index in args.prompts], args.out)


if __name__ == "__main__":
    main()
