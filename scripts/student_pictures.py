"""Pictures of the shipped students for docs/training.md: their training curves, and frames beside the base's.

    python scripts/student_pictures.py --out docs/images

Needs Matplotlib (extra ``eval``). Curves come from the logs beside the adapters.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.entries import Renderer
from scripts.method_pictures import TIMES, film, find_entry, strip_picture

PANELS = (
    ("critic_loss", "critic: flow-matching error"),
    ("dmd_gradient", "student: mean |g|"),
    ("reward", "reward of its clips"),
)
SHOWN = ("deep-forcing", "distilled-deep-forcing", "distilled-rolling-forcing", "distilled-reward-forcing")
"""Labels of benchmarks/entries.py."""


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


def sheet(prompts: list[str], out: Path, times: Sequence[float] = TIMES) -> None:
    """A row a (prompt, entry of SHOWN), a column a time in seconds."""
    renderer, rows = Renderer(None, None), {}
    for name in SHOWN:
        entry = find_entry(name, "embedded")
        label = f"{entry.method}\nstudent: {renderer.pipe(entry).student}"
        rows[label] = film(renderer, entry, prompts, 0, times)
    strip_picture(rows, prompts, times).save(out / "students.webp", quality=85)


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
