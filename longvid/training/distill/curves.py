"""A distillation's log as a picture."""

from __future__ import annotations

import json
from pathlib import Path

from longvid.metrics.extras import require

_PANELS = (
    ("critic_loss", "critic: flow-matching error"),
    ("dmd_gradient", "generator: mean |g|"),
    ("generator_gradient_norm", "generator: gradient norm"),
    ("reward", "reward"),
)


def plot_training(log: Path, out: Path) -> Path:
    """Draw the log's curves over the steps to the PNG file `out` and return it.

    The generator's loss is not among them: by construction it is about the mean of g^2 / 2 and says nothing more.

    Raises MissingExtraError without Matplotlib, FileNotFoundError without a log.
    """
    require("matplotlib", "a plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    panels = [(key, title) for key, title in _PANELS if any(key in row for row in rows)]
    figure = Figure(figsize=(4 * max(len(panels), 1), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (key, title) in zip(figure.subplots(1, max(len(panels), 1), squeeze=False)[0], panels, strict=False):
        points = [(row["step"], row[key]) for row in rows if key in row]
        axis.plot(*zip(*points, strict=True), lw=1)
        axis.set(xlabel="step (critic updates)", title=title)
    figure.savefig(out, dpi=90, format="png")
    return out
