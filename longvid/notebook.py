"""For notebooks: videos that show themselves, a live preview and nested progress bars while one is made.

    from longvid.notebook import record
    video = record(pipe, "a red ball bounces over green hills", seconds=10, seed=0)   # bars and preview meanwhile
    video                                                                           # plays where it stands
    video.plot_cache()

Shape letters: T video frames, H W pixels.
"""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvid.errors import InputError, OutputError
from longvid.media.journal import RenderJournal, journal_folder, sidecar
from longvid.media.output import check_output
from longvid.media.writer import told

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from longvid.metrics.report import VideoReport

ROLE_COLOURS = {"sink": "#d9772b", "merged": "#b0488f", "selected": "#6a63c7", "recent": "#17897f"}
_SHEET_FRAMES = 8


@dataclass(frozen=True, slots=True)
class Seen:
    """A block as `watch` yields it. frames: uint8 [T, H, W, 3]. cache: (latent frame, role) of what it could look back
    at, oldest first; empty for methods without a frame cache. seconds: model and decoder time of the block."""

    frames: np.ndarray
    index: int
    start_frame: int
    cache: tuple[tuple[int, str], ...]
    seconds: float


class Video:
    """Frames that show themselves: a player in a live notebook, a contact sheet where only pictures are shown.

    frames: uint8 [T, H, W, 3]. fps: of playback. starts: the frames at which blocks begin. caches: what each
    block could look back at, as in `Seen`.
    """

    def __init__(
        self,
        frames: np.ndarray,
        fps: float,
        *,
        caption: str = "",
        starts: tuple[int, ...] = (),
        caches: tuple[tuple[tuple[int, str], ...], ...] = (),
    ) -> None:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
            raise InputError(f"frames: got {frames.dtype} {list(frames.shape)}, must be uint8 [T, H, W, 3], none empty")
        self.frames, self.fps, self.caption, self.starts, self.caches = frames, float(fps), caption, starts, caches

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.fps

    def __repr__(self) -> str:
        frames, height, width = self.frames.shape[:3]
        return f"Video({frames} frames, {width}x{height}, {self.seconds:.2f} s at {self.fps:g} fps)"

    def mp4(self) -> bytes:
        """The video as an MP4 file."""
        import av

        buffer = io.BytesIO()
        height, width = self.frames.shape[1:3]
        with av.open(buffer, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=round(self.fps))
            stream.width, stream.height = width + width % 2, height + height % 2
            stream.pix_fmt, stream.options = "yuv420p", {"crf": "16", "preset": "veryfast"}
            for frame in self.frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode(None))
        return buffer.getvalue()

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the MP4 file; returns its path. overwrite: replace what is there, an unfinished render included.

        Raises OutputError for another ending, a folder that is not there, and a file that is.
        """
        target = Path(path)
        if target.suffix.lower() != ".mp4":
            raise OutputError(
                f"out={str(path)!r}: must end in .mp4, which is what is written; pipe.render writes others"
            )
        check_output(target, overwrite=overwrite)
        data = self.mp4()
        RenderJournal(target).release()  # refused while a render goes there
        with told(str(target)):
            # What another video's render left beside the file would be taken for this one's.
            sidecar(target).unlink(missing_ok=True)
            shutil.rmtree(journal_folder(target), ignore_errors=True)
            target.write_bytes(data)
        return target

    def sheet(self, count: int = _SHEET_FRAMES) -> Any:
        """Frames evenly spread over the video, side by side, as a PIL image."""
        from PIL import Image

        chosen = np.linspace(0, len(self.frames) - 1, min(count, len(self.frames))).round().astype(int)
        return Image.fromarray(np.concatenate(list(self.frames[chosen]), axis=1))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        data = base64.b64encode(self.mp4()).decode()
        width = max(256, self.frames.shape[2])
        player = f'<video controls loop autoplay muted width="{width}" src="data:video/mp4;base64,{data}"></video>'
        picture = io.BytesIO()
        self.sheet().save(picture, "JPEG", quality=88)
        sheet = base64.b64encode(picture.getvalue()).decode()
        return {"text/plain": repr(self), "text/html": player, "image/jpeg": sheet}

    # ---------------------------------------------------------------- pictures of what happened

    def report(self) -> VideoReport:
        """Every metric of the video; see longvid.metrics."""
        from longvid.metrics.report import evaluate

        return evaluate(self.frames, self.fps, boundaries=self.starts[1:])

    def plot_cache(self) -> Figure:
        """What the model remembered: a column a block, a mark a latent frame, coloured by role.

        Raises InputError for a video whose method keeps no frame cache.
        """
        if not any(self.caches):
            raise InputError("plot_cache(): no cache was recorded; use record(), and a method that has one")
        figure = _figure(9, 3.2)
        axis = figure.subplots()
        for role, colour in ROLE_COLOURS.items():
            marks = [(block, frame) for block, cache in enumerate(self.caches) for frame, r in cache if r == role]
            if marks:
                blocks, frames = zip(*marks, strict=True)
                axis.scatter(blocks, frames, s=10, marker="s", color=colour, label=role, linewidths=0)
        axis.set(xlabel="block", ylabel="latent frame remembered", title=self.caption)
        axis.locator_params(integer=True)
        axis.legend(loc="upper left", markerscale=2, frameon=False)
        return figure


def plot_drift(videos: Mapping[str, Video]) -> Figure:
    """How videos leave their beginning, one line each: median picture of a segment against the first, and motion beside
    it, because a frozen video does not drift either. Videos should be 15 seconds or longer."""
    figure = _figure(9, 3.2)
    drift, motion = figure.subplots(1, 2)
    for name, video in videos.items():
        report = video.report()
        if report.identity is not None:
            length = report.identity.segment_seconds
            seconds = (np.arange(len(report.identity.segments)) + 1.5) * length
            drift.plot(seconds, report.identity.segments, marker="o", label=name)
        if "motion" in report.curves:
            motion.plot(report.curves["motion"].seconds, report.curves["motion"].values, lw=1, label=name)
    drift.set(xlabel="seconds", title="identity drift (0-255)")
    motion.set(xlabel="seconds", title="motion (pixels a frame)")
    for axis in (drift, motion):
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
    drift.legend(frameon=False)
    return figure


def _figure(width: float, height: float) -> Figure:
    from longvid.metrics.extras import require

    require("matplotlib", "a plot")
    from matplotlib.figure import Figure

    class Shown(Figure):
        """A figure that shows itself. Not pyplot's: that would show it twice, and keep it."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=100)
            return buffer.getvalue()

    return Shown(figsize=(width, height), layout="constrained")


# ---------------------------------------------------------------- while it is made


def watch(pipe: Any, prompt: str, *, preview: bool = True, progress: bool = True, **arguments: Any) -> Iterator[Seen]:
    """Blocks as they become ready, with two bars (blocks, and the model's calls within one) and a live preview.

    arguments: as `pipe.stream` takes them; without a length it goes on until you stop iterating.
    Raises InputError at the call for whatever cannot be made.
    """
    request = pipe.check_inputs(prompt, endless=True, **arguments)
    arguments |= {"seed": request.seeds[0], "generator": None}  # what was drawn for the check is what is made
    return _watch(pipe, prompt, request, request.blocks, preview, progress, arguments)


def _watch(
    pipe: Any, prompt: str, request: Any, total: int | None, preview: bool, progress: bool, arguments: dict[str, Any]
) -> Iterator[Seen]:
    from time import perf_counter

    from tqdm.auto import tqdm

    from longvid.pipelines.output import to_uint8

    window = Preview() if preview else None
    with (
        tqdm(total=total, desc="blocks", unit="block", disable=not progress) as blocks,
        tqdm(total=len(request.sigmas), desc="calls", unit="call", leave=False, disable=not progress) as calls,
    ):

        def step(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
            calls.update()
            return {}

        rollout = pipe.rollout(prompt, callback_on_step_end=step, **arguments)
        shown, began = 0, perf_counter()
        for block, video in pipe.decoded(rollout, request.frames):
            frames, now = to_uint8(video)[0], perf_counter()
            cache = getattr(rollout, "cache", None)
            held = () if cache is None else tuple((frame, cache.role(frame)) for frame in cache.resident)
            block_seen = Seen(frames, block.index, shown, held, now - began)
            shown += len(frames)
            blocks.update()
            blocks.set_postfix_str(f"{shown / request.fps:.1f} s of video, {len(frames) / (now - began):.1f} frames/s")
            calls.reset()
            if window is not None:
                window.show(frames, request.fps)
            began = perf_counter()
            yield block_seen


def record(pipe: Any, prompt: str, **arguments: Any) -> Video:
    """A whole video, watched while it is made. Arguments as `watch`, with a length.

    Raises InputError for a request without a length: it would never be whole.
    """
    request = pipe.check_inputs(prompt, endless=True, **{k: v for k, v in arguments.items() if k not in _OURS})
    if request.frames is None:
        raise InputError("seconds=None: give seconds or num_frames; an endless video is for watch()")
    seen = list(watch(pipe, prompt, **arguments))
    return Video(
        np.concatenate([block.frames for block in seen]),
        request.fps,
        caption=f"{request.method.title or request.method.name}: {prompt}",
        starts=tuple(block.start_frame for block in seen),
        caches=tuple(block.cache for block in seen),
    )


_OURS = ("preview", "progress")


class Preview:
    """The block that was made last, looping in place. Outside a notebook it shows nothing."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, frames_THW3: np.ndarray, fps: float) -> None:
        """uint8 [T, H, W, 3]: replaces what is shown."""
        if not _in_notebook():
            return
        from IPython.display import Image, display
        from PIL import Image as Pillow

        height, width = frames_THW3.shape[1:3]
        size = (width, height) if width >= 256 else (2 * width, 2 * height)
        pictures = [Pillow.fromarray(frame).resize(size) for frame in frames_THW3]
        buffer = io.BytesIO()
        pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)
        image = Image(data=buffer.getvalue(), format="gif")  # type: ignore[no-untyped-call]
        if self._handle is None:
            self._handle = display(image, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(image)


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")
