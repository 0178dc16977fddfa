"""A training's log as a picture."""

from __future__ import annotations

import json
from pathlib import Path

from longvid.metrics.extras import require

#: Titles and the log's keys below them. Digits at a key's end do not count: "forcing9" is "forcing" on nine frames.
_PANELS = (
    ("critic: flow-matching error", ("critic_loss",)),
    ("generator: mean |g|", ("dmd_gradient",)),
    ("generator: gradient norm", ("generator_gradient_norm",)),
    ("reward", ("reward",)),
    ("flow-matching error", ("forcing", "diffusion", "rolling")),
    ("loss", ("loss",)),
    ("held-out PSNR, dB", ("psnr_db",)),
)


def plot_training(log: Path, out: Path) -> Path:
    """Draw the curves of a base's, an autoencoder's or a student's log over the steps to a PNG file, and return it.

    A student's generator loss is not among them: by construction it is about the mean of g^2 / 2 and says nothing more.

    Raises MissingExtraError without Matplotlib, FileNotFoundError without a log.
    """
    require("matplotlib", "a plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    keys = sorted({key for row in rows for key in row})
    found = [(title, [key for key in keys if key.rstrip("0123456789") in names]) for title, names in _PANELS]
    panels = [(title, drawn) for title, drawn in found if drawn]
    figure = Figure(figsize=(4 * max(len(panels), 1), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, drawn) in zip(figure.subplots(1, max(len(panels), 1), squeeze=False)[0], panels, strict=False):
        for key in drawn:
            points = [(row["step"], row[key]) for row in rows if key in row]
            axis.plot(*zip(*points, strict=True), lw=1, label=key)
        axis.set(xlabel="step", title=title)
        if len(drawn) > 1:
            axis.legend()
    figure.savefig(out, dpi=90, format="png")
    return out
