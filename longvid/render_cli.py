"""``longvid render``: prompts in, video files out."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from longvid.config import DEFAULT_METHOD, DEFAULT_MODEL, MethodConfig
from longvid.errors import InputError, Interrupted
from longvid.media.writer import warn_if_unused
from longvid.models.folder import ModelFolder, read_model_folder
from longvid.models.students import BASE, pick_student, student_names
from longvid.plan import DEFAULT_FPS, DEFAULT_SIZE, plan_lines
from longvid.presets import load_method, parse_overrides, read_yaml
from longvid.progress import RenderDisplay, clock
from longvid.prompts import parse_prompt
from longvid.render_config import RenderConfig

_LENGTH, _LOOK, _METHOD, _FILES = "Length", "Picture", "Method", "Files"
#: Latent frames of a given video that the new one goes on from: what the Self-Forcing family was trained on.
_GIVEN_LATENTS = 21


def register(app: typer.Typer) -> None:
    """Add ``render`` to ``app``."""
    app.command("render")(render)


def render(
    prompt: Annotated[
        str | None,
        typer.Argument(help='Text, or a schedule: "a man walks[5s] | night falls[10s#]".', show_default=False),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            "-s",
            help="Length of the video.  [default: the prompt's own, or 10]",
            rich_help_panel=_LENGTH,
            show_default=False,
        ),
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option("--frames", help="Length in frames, 4k+1.", rich_help_panel=_LENGTH, show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the noise.  [default: 0]", show_default=False)] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            help=f"One of `longvid methods`.  [default: {DEFAULT_METHOD}]",
            rich_help_panel=_METHOD,
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"A folder, a hub id, or the one in the package.  [default: {DEFAULT_MODEL}]",
            rich_help_panel=_METHOD,
            show_default=False,
        ),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="base, or one of `longvid models`.  [default: the method's own]",
            rich_help_panel=_METHOD,
            show_default=False,
        ),
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="dense or radial.", rich_help_panel=_METHOD, show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML with any of these keys.", rich_help_panel=_METHOD, show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="key=value, such as cache.window=18; may be repeated.",
            rich_help_panel=_METHOD,
            show_default=False,
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None,
        typer.Option(help="What to steer away from, under guidance.", rich_help_panel=_LOOK, show_default=False),
    ] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.", rich_help_panel=_LOOK, show_default=False)] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.", rich_help_panel=_LOOK, show_default=False)] = None,
    image: Annotated[
        str | None, typer.Option(help="A picture to begin with.", rich_help_panel=_LOOK, show_default=False)
    ] = None,
    video: Annotated[
        str | None,
        typer.Option(help="A video whose last frames to go on from.", rich_help_panel=_LOOK, show_default=False),
    ] = None,
    crf: Annotated[
        float | None,
        typer.Option(help="Quality of MP4, 0 best to 51.  [default: 18]", rich_help_panel=_LOOK, show_default=False),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            help="A .mp4, .gif, .webp or .png, or a folder; named after the prompt if not given.",
            rich_help_panel=_FILES,
            show_default=False,
        ),
    ] = None,
    prompts_file: Annotated[
        str | None, typer.Option(help="A text file, one prompt a line.", rich_help_panel=_FILES, show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an unfinished render.", rich_help_panel=_FILES)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there.", rich_help_panel=_FILES)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print configuration, memory and plan; load no weights.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps.", show_default=False)] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.", show_default=False)] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Make a video from a prompt, straight to disk."""
    options = {
        "prompt": prompt, "prompts_file": prompts_file, "negative_prompt": negative_prompt, "model": model,
        "method": method, "student": student, "seconds": seconds, "num_frames": num_frames, "seed": seed,
        "height": height, "width": width, "image": image, "video": video, "out": out, "crf": crf, "device": device,
        "dtype": dtype, "attention": None if attention is None else {"kind": attention},
    }  # fmt: skip
    layer = {key: value for key, value in options.items() if value is not None}
    job = RenderConfig.build({} if config is None else read_yaml(config), layer, parse_overrides(settings or []))
    job, folder = _with_student(job, read_model_folder(job.model))
    chosen = job.resolved(folder.index if folder else None)
    job.check_outputs(resume=resume, overwrite=overwrite)
    if not dry_run:
        from longvid.precision import check_device

        check_device(job.device)
    temporal = folder.temporal if folder else 4
    given = _given(job, chosen.schedule.frames_per_block, temporal)
    latents = _given_latents(given, temporal)
    notes = Console(stderr=True, highlight=False, soft_wrap=True)
    with _notes(notes, quiet or not dry_run):  # a render tells them itself
        requests = [_request(job, folder, text, seed, latents) for text, seed, _ in job.jobs()]  # before weights load
        for _, _, file in job.jobs():
            warn_if_unused(file, job.crf)
    if dry_run:
        _print_plan(job, chosen, folder, requests[0])
        return
    _render_all(job, given, notes, resume=resume, overwrite=overwrite, quiet=quiet)


def _with_student(job: RenderConfig, folder: ModelFolder | None) -> tuple[RenderConfig, ModelFolder | None]:
    """The job with its student named, and the folder with the student's sampling defaults in place of the base's."""
    student = pick_student(job.model, load_method(job.method), job.student)
    if folder is None or not student_names(job.model):
        return job, folder
    if student is not None:
        folder = dataclasses.replace(folder, index=dict(folder.index) | student.sampling)
    return dataclasses.replace(job, student=BASE if student is None else student.name), folder


def _request(job: RenderConfig, folder: ModelFolder | None, prompt: str, seed: int, given_frames: int) -> Any:
    """What the pipeline will resolve to, from JSON files alone. given_frames: latent frames of the image or video."""
    from longvid.pipelines.request import ModelFacts, resolve

    defaults = dict(folder.index) if folder else {}
    facts = ModelFacts(
        spatial=folder.spatial if folder else 16,
        temporal=folder.temporal if folder else 4,
        fps=float(defaults.get("fps") or DEFAULT_FPS),
        height=defaults.get("height") or DEFAULT_SIZE[0],
        width=defaults.get("width") or DEFAULT_SIZE[1],
        defaults=defaults,
    )
    return resolve(
        job.method,
        facts,
        prompt,
        negative_prompt=job.negative_prompt,
        seconds=job.seconds_of(prompt),
        num_frames=job.num_frames,
        seed=seed,
        height=job.height,
        width=job.width,
        given_frames=given_frames,
        overrides=job.overrides,
    )


def _print_plan(job: RenderConfig, method: MethodConfig, folder: ModelFolder | None, request: Any) -> None:
    """The resolved configuration as YAML that ``--config`` takes back, and the plan as comments."""
    from omegaconf import OmegaConf

    out = Console(soft_wrap=True, highlight=False)
    out.print(OmegaConf.to_yaml(OmegaConf.create(job.to_plain(method))).rstrip(), markup=False)
    prompt, _, name = job.jobs()[0]
    more = len(job.jobs()) - 1
    out.print(f"# out: {name}" + (f", and {more} more" if more else ""), markup=False)
    for line in plan_lines(request, folder, parse_prompt(prompt), _dtype_name(job)):
        out.print(f"# {line}", markup=False)


def _dtype_name(job: RenderConfig) -> str:
    if job.dtype is not None:
        return job.dtype
    import torch

    on_gpu = torch.cuda.is_available() if job.device is None else job.device != "cpu"
    return "bfloat16" if on_gpu else "float32"


def _render_all(
    job: RenderConfig, given: dict[str, Any], notes: Console, *, resume: bool, overwrite: bool, quiet: bool
) -> None:
    import torch

    import longvid

    results = Console(highlight=False, soft_wrap=True)
    with _notes(notes, quiet):
        pipe = longvid.load(
            job.model,
            job.method,
            student=job.student,
            device=job.device,
            dtype=None if job.dtype is None else getattr(torch, job.dtype),
            overrides=job.overrides,
        )
        jobs = job.jobs()
        for index, (prompt, seed, out) in enumerate(jobs):
            title = f"{index + 1}/{len(jobs)}" if len(jobs) > 1 else ""
            with RenderDisplay(notes, title, quiet=quiet) as display:
                try:
                    done = pipe.render(
                        prompt,
                        out,
                        seconds=job.seconds_of(prompt),
                        num_frames=job.num_frames,
                        seed=seed,
                        height=job.height,
                        width=job.width,
                        negative_prompt=job.negative_prompt or None,
                        crf=job.crf,
                        resume=resume,
                        overwrite=overwrite,
                        progress=display.update,
                        **given,
                    )
                except KeyboardInterrupt:
                    raise Interrupted(_interrupted(out, display)) from None
            if done.wall == 0.0:
                results.print(f"{out} was already finished", markup=False)
                continue
            made = done.frames / done.wall / (done.frames / done.seconds)
            speed = "" if done.resumed_blocks else f" ({made:.1f}x real time)"
            results.print(
                f"wrote {out}: {done.seconds:g} s, {done.frames} frames, in {clock(done.wall)}{speed}", markup=False
            )


def _interrupted(out: str, display: RenderDisplay) -> str:
    if not Path(out).exists() and not out.lower().endswith(".png"):
        return f"interrupted before the first block of {out}"
    last = display.last
    done = f"{last.frames / last.video_fps:.1f} s" if last else "what was rendered"
    return f"interrupted: {out} plays ({done}); the same command with --resume goes on"


def _given(job: RenderConfig, block: int, temporal: int) -> dict[str, Any]:
    """Opened --image or --video. block: latent frames a block. temporal: video frames a latent frame."""
    if job.image is not None:
        from PIL import Image, UnidentifiedImageError

        try:
            return {"image": Image.open(job.image).convert("RGB")}
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"image={job.image!r}: is no picture ({error})") from None
    if job.video is not None:
        from longvid.media.tail import last_frames

        return {"video": last_frames(job.video, block=block, most=_GIVEN_LATENTS, temporal=temporal)}
    return {}


def _given_latents(given: dict[str, Any], temporal: int) -> int:
    """How many latent frames the pipeline will make of ``given``: the first of them holds one picture."""
    if "video" in given:
        return 1 + (len(given["video"]) - 1) // temporal
    return len(given)


@contextmanager
def _notes(console: Console, quiet: bool) -> Iterator[None]:
    """Show longvid's own warnings (unknown words, slower backends) as notes, and nobody else's."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(f"note: {record.getMessage()}", markup=False)

    logger, handler = logging.getLogger("longvid"), Notes(logging.WARNING)
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if quiet else "default")
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.showwarning = lambda message, *_, **__: console.print(f"note: {message}", markup=False)
            yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
