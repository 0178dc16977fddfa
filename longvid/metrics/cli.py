"""``longvid eval``: measure video files, as a table, as JSON and as a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longvid.errors import InputError, OutputError

if TYPE_CHECKING:
    from longvid.metrics.learned import FrameEncoder
    from longvid.metrics.oracle_file import OracleReport
    from longvid.metrics.quality import FrameScorer
    from longvid.metrics.report import VideoReport


def register(app: typer.Typer) -> None:
    """Add the ``eval`` command to ``app``."""
    app.command("eval")(evaluate_videos)


def evaluate_videos(
    videos: Annotated[
        list[Path], typer.Argument(metavar="VIDEO...", help="Video files to measure.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead of a table.")] = False,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw all videos into FIRST.metrics.png beside the first.")
    ] = False,
    plot_to: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw there instead (implies --plot).")] = None,
    frames_per_block: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Latent frames a generated block, in place of what a render noted: measures seams.",
            show_default=False,
        ),
    ] = None,
    first_block: Annotated[
        int | None, typer.Option(min=1, help="Latent frames of the first block, if others.", show_default=False)
    ] = None,
    temporal_stride: Annotated[
        int | None,
        typer.Option(min=1, help="Video frames a latent frame; 4 (as Wan's) if not given.", show_default=False),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="VIDEO", help="Compare frame by frame with this video.", show_default=False)
    ] = None,
    weights: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Local CLIP or DINO folder: adds learned consistency. May be repeated."),
    ] = None,
    imaging: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Local MUSIQ weights: adds imaging quality (needs pyiqa).", show_default=False
        ),
    ] = None,
    aesthetic: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Local LAION head: adds aesthetic quality, on the CLIP folder of --weights.",
            show_default=False,
        ),
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Probe of the embedded world: adds the oracle's scores.", show_default=False),
    ] = None,
    world: Annotated[
        str | None,
        typer.Option(
            metavar="PROMPT",
            help="The caption to judge by.  [default: what the video was rendered from]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure drift, motion, flicker, seams and faults of videos, without any downloaded weights.

    Where a video's blocks and hard cuts are is read from the .frames_md5 that its render left beside it.
    """
    from longvid.metrics.learned import load_encoder
    from longvid.metrics.report import to_plain

    if frames_per_block is None:
        for name, value in (("first_block", first_block), ("temporal_stride", temporal_stride)):
            if value is not None:
                raise InputError(f"{name}={value}: needs --frames-per-block, the length of the other blocks")
    target = plot_to or (videos[0].with_suffix(".metrics.png") if plot else None)
    _check(videos, reference, target)
    # Before hours of measuring, so that a typo costs none.
    encoders = [load_encoder(folder) for folder in weights or ()]
    scorers = _scorers(imaging, aesthetic, encoders)
    judges = _judges(videos, world, probe)
    reports = {video: _measure(video, frames_per_block, first_block, temporal_stride, not as_json) for video in videos}
    extra: dict[Path, dict[str, Any]] = {video: {} for video in reports}
    for video, found in extra.items():
        if reference is not None:
            found["fidelity"] = _fidelity(video, reference)
        if encoders:
            found["learned"] = [_learned(video, encoder) for encoder in encoders]
        if scorers:
            found["quality"] = [_quality(video, scorer) for scorer in scorers]
        if video in judges:
            found["oracle"] = judges[video]()
    if target is not None:
        from longvid.metrics.plots import plot_reports

        plot_reports({str(video): report for video, report in reports.items()}, target)
        typer.echo(f"plot: {target}", err=True)
    if as_json:
        rows = [{"video": str(v), **r.to_dict(), **to_plain(extra[v])} for v, r in reports.items()]
        typer.echo(json.dumps({"videos": rows}, indent=1, allow_nan=False))
    else:
        _print_table(reports, extra)


def _check(videos: list[Path], reference: Path | None, plot: Path | None) -> None:
    """Raise InputError for what would fail only after videos were measured."""
    from longvid.metrics.extras import require
    from longvid.metrics.reader import VideoReader

    seen: dict[Path, Path] = {}
    for video in videos:
        first = seen.setdefault(video.resolve(), video)
        if first is not video:
            raise InputError(f"video={str(video)!r}: the same file as {str(first)!r}; give each once")
    for video in [*videos, *([] if reference is None else [reference])]:
        VideoReader(video)
    if plot is not None:
        require("matplotlib", "a plot")
        if plot.is_dir() or not plot.parent.is_dir():
            raise OutputError(
                f"plot={str(plot)!r}: must be a file in a folder that exists; "
                + ("this is a folder, name a .png in it" if plot.is_dir() else f"make {str(plot.parent)!r} first")
            )


def _measure(
    video: Path, frames_per_block: int | None, first_block: int | None, temporal_stride: int | None, show: bool
) -> VideoReport:
    from rich.console import Console

    from longvid.metrics.report import evaluate_file

    blocks: dict[str, Any] = {}
    if frames_per_block is not None:
        stride = temporal_stride or 4
        step, first = frames_per_block * stride, 1 + ((first_block or frames_per_block) - 1) * stride
        blocks = {
            "boundaries": lambda frame: frame >= first and (frame - first) % step == 0,
            "temporal_stride": stride,
        }
    with Console(stderr=True, quiet=not show).status(f"{video}") as status:
        return evaluate_file(
            video, on_frame=lambda n: status.update(f"{video}: {n} frames") if n % 16 == 0 else None, **blocks
        )


def _fidelity(video: Path, reference: Path) -> Any:
    from longvid.metrics.fidelity import compare
    from longvid.metrics.reader import VideoReader

    return compare(VideoReader(video), VideoReader(reference))


def _learned(video: Path, encoder: FrameEncoder) -> Any:
    from longvid.metrics.learned import learned_consistency
    from longvid.metrics.reader import VideoReader

    reader = VideoReader(video)
    return learned_consistency(reader, reader.fps, encoder)


def _scorers(imaging: Path | None, aesthetic: Path | None, encoders: list[FrameEncoder]) -> list[FrameScorer]:
    from longvid.metrics.quality import load_aesthetic, load_imaging

    scorers = [] if imaging is None else [load_imaging(imaging)]
    if aesthetic is not None:
        clips = [encoder for encoder in encoders if encoder.name.startswith("clip:")]
        if len(clips) != 1:
            raise InputError(
                f"aesthetic={str(aesthetic)!r}: needs one CLIP folder (--weights), got {len(clips)}; "
                "LAION's sa_0_4_vit_l_14_linear.pth takes the features of ViT-L/14"
            )
        scorers.append(load_aesthetic(aesthetic, clips[0]))
    return scorers


def _quality(video: Path, scorer: FrameScorer) -> Any:
    from longvid.metrics.quality import learned_quality
    from longvid.metrics.reader import VideoReader

    reader = VideoReader(video)
    return learned_quality(reader, reader.fps, scorer)


def _judges(videos: list[Path], prompt: str | None, probe: Path | None) -> dict[Path, Callable[[], OracleReport]]:
    """What asks the oracle about each video; captions and probe are checked here, before anything is measured."""
    if probe is None:
        if prompt is not None:
            raise InputError(f"world={prompt!r}: needs --probe, the file that reads the frames")
        return {}
    from longvid.metrics.oracle_file import check_size, judge_file, rendered_prompt
    from longvid.training.describe import scene_of
    from longvid.training.probe import load_probe

    scenes = {video: scene_of(rendered_prompt(video) if prompt is None else prompt) for video in videos}
    for video in videos:
        check_size(video)
    net, own = load_probe(probe)
    return {video: partial(judge_file, video, scene, net, own) for video, scene in scenes.items()}


def _print_table(reports: dict[Path, VideoReport], extra: dict[Path, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = [dict(headline(report)) for report in reports.values()]
    for column, found in zip(columns, extra.values(), strict=True):
        column.update(_extra_rows(found))
    table = Table("metric", *(str(video) for video in reports), title="Video metrics", title_justify="left")
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "-") for column in columns))
    console = Console()
    console.print(table)
    for video, report in reports.items():
        if report.truncated:
            console.print(f"{video}: ends in damaged data; measured are the {report.frames} frames before it")
        reasons: dict[str, list[str]] = {}
        for name, reason in report.skipped.items():
            reasons.setdefault(reason, []).append(name.removeprefix("drift."))
        for reason, names in reasons.items():
            console.print(f"{video}: not measured: {', '.join(names)} ({reason})", highlight=False)


def headline(report: VideoReport) -> list[tuple[str, str]]:
    """The report's table: (metric, value with unit), identity drift beside the motion it must be read with."""
    rows = [("length", f"{report.seconds:.1f} s, {report.frames} frames, {report.width}x{report.height}")]
    if report.identity is not None:
        i = report.identity
        note = "" if i.counts else f"  (frozen {i.frozen:.0%} of the time: does not count)"
        rows.append(("identity drift, mean / worst / last", f"{i.mean:.2f} / {i.worst:.2f} / {i.last:.2f}{note}"))
    if report.motion is not None:
        m = report.motion
        rows.append(("motion, top 5 % / mean (px/frame)", f"{m.top5:.2f} / {m.mean:.2f}"))
        rows.append(
            ("dynamic degree, moving pairs", f"{_told(m.dynamic_degree, '.0%')}, {_told(m.moving_pairs, '.0%')}")
        )
        rows.append(("smoothness", f"{m.smoothness:.4f}"))
    if report.flicker is not None:
        rows.append(
            ("flicker score (VBench) / luma flutter", f"{report.flicker.score:.4f} / {report.flicker.luminance:.2f}")
        )
    for name in ("brightness", "contrast", "saturation", "sharpness", "motion"):
        if name in report.drift:
            d, s = report.drift[name], report.drift[name].slope
            first, last, worst = (_told(value, ".3g") for value in (d.first, d.last, d.worst))
            rows.append((f"{name}, first -> last (worst)", f"{first} -> {last} ({worst} at {d.worst_at:.0f} s)"))
            rows.append((f"{name}, slope a minute", f"{s.per_minute:+.3g} [{s.low:+.3g}, {s.high:+.3g}]"))
    if report.hue is not None:
        h = report.hue
        rows.append(
            ("hue: similarity, turn, colour distance", f"{h.similarity:.1f} %, {h.degrees:.1f} deg, {h.delta_e:.1f}")
        )
    for name, seam in report.seams.items():
        rows.append((f"seam: {name} at blocks / elsewhere", f"{seam.ratio:.2f} [{seam.low:.2f}, {seam.high:.2f}]"))
    if report.consistency is not None:
        pairs = zip(report.consistency.lags, report.consistency.similarity, strict=True)
        after = ", ".join(f"{lag:g} s {value:.2f}" for lag, value in pairs if lag >= 1)
        rows.append(("similarity after", after or "-"))
    if report.loop_back is not None:
        loop = report.loop_back
        rows.append(("falls back to the start", f"{loop.events} ({loop.share:.0%} of the time)"))
    f = report.faults
    rows.append(("frozen / black / blank / burnt", f"{f.frozen:.0%} / {f.black:.0%} / {f.blank:.0%} / {f.burnt:.0%}"))
    rows.append(("cuts / flashes", f"{f.cuts} / {f.flashes}"))
    return rows


def _extra_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if "fidelity" in found:
        f = found["fidelity"]
        diverged = "never" if f.diverged_at is None else f"frame {f.diverged_at}"
        rows.append(("to reference: identical frames, PSNR", f"{f.identical} of {f.frames}, {f.psnr:.1f} dB"))
        rows.append(("to reference: under 30 dB from", diverged))
    if "oracle" in found:
        from longvid.metrics.oracle_file import oracle_rows

        rows += oracle_rows(found["oracle"])
    for learned in found.get("learned", ()):
        rows.append(
            (f"consistency, {learned.encoder}", f"{learned.score:.4f} (last 5 s to first {learned.last_to_first:.4f})")
        )
    for quality in found.get("quality", ()):
        name = f"quality, {quality.scorer}"
        rows.append((f"{name}: mean", f"{quality.mean:.4f}"))
        first, last = _told(quality.first, ".4f"), _told(quality.last, ".4f")
        rows.append((f"{name}: first -> last 5 s, spread", f"{first} -> {last}, {quality.spread:.4f}"))
    return rows


def _told(value: float, form: str) -> str:
    """``value``, or a dash for NaN: what a video is too short for."""
    return "-" if math.isnan(value) else format(value, form)
