"""Reports as pictures: one figure, one line a video, written to PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from longvid.errors import OutputError
from longvid.metrics.extras import require
from longvid.metrics.report import VideoReport

# Identity drift stands first with motion at its side: neither says anything without the other.
_CURVES = (
    ("motion", "motion: top-5 % flow (px/frame)"),
    ("brightness", "brightness (0-255)"),
    ("contrast", "contrast (RMS, 0-255)"),
    ("saturation", "saturation (0-1)"),
    ("sharpness", "sharpness (Laplacian variance)"),
    ("difference", "frame difference (0-255)"),
)


def plot_reports(reports: Mapping[str, VideoReport], path: str | Path) -> Path:
    """Draw the reports, by label, to the PNG file ``path`` and return it.

    Panels: identity drift by segment, then motion and looks over time, then similarity against time lag. Raises
    MissingExtraError without Matplotlib, ValueError without a report, OutputError where the file cannot be written.
    """
    if not reports:
        raise ValueError("reports: got none, a plot needs at least 1")
    require("matplotlib", "a plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(15, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4).ravel()
    for label, report in reports.items():
        if report.identity is not None:
            n, length = len(report.identity.segments), report.identity.segment_seconds
            axes[0].plot((np.arange(n) + 1.5) * length, report.identity.segments, marker=".", label=label)
        for axis, (name, _) in zip(axes[1:7], _CURVES, strict=True):
            if name in report.curves:
                axis.plot(report.curves[name].seconds, report.curves[name].values, lw=1, label=label)
        if report.consistency is not None:
            axes[7].plot(report.consistency.lags, report.consistency.similarity, marker=".", label=label)
    _dress(axes[0], "identity drift (median image, 0-255)", "time (s)")
    for axis, (_, title) in zip(axes[1:7], _CURVES, strict=True):
        _dress(axis, title, "time (s)")
    _dress(axes[7], "similarity to a frame this much earlier", "lag (s)")
    lags = sorted({float(lag) for line in axes[7].lines for lag in line.get_xdata()})
    if lags:
        axes[7].set_xscale("log")
        axes[7].set_xticks(lags, [f"{lag:g}" for lag in lags])
        axes[7].minorticks_off()  # a log axis labels its minor ticks, too, where it spans less than a decade
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside upper center", ncols=min(len(reports), 5))
    target = Path(path)
    try:
        figure.savefig(target, dpi=110, format="png")
    except OSError as error:
        raise OutputError(f"plot={str(path)!r}: cannot be written ({error.strerror})") from error
    return target


def _dress(axis: Any, title: str, xlabel: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(xlabel, fontsize=9)
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8)
    axis.margins(y=0.1)
