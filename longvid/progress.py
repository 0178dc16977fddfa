"""Progress of a render on the terminal: blocks, and steps inside the block; plain lines where there is no terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from longvid.plan import human_bytes

if TYPE_CHECKING:
    from longvid.pipelines.render import RenderProgress

_LINE_SECONDS = 5.0


class RenderDisplay:
    """A context manager whose ``update`` takes RenderProgress.

    Args:
        console: where to draw.
        title: stands before the bar.
        quiet: show nothing.
    """

    def __init__(self, console: Console, title: str, *, quiet: bool = False) -> None:
        self._console, self._title, self._quiet = console, title, quiet
        self._bars: Progress | None = None
        self._last_line = time.monotonic()
        self.last: RenderProgress | None = None

    def __enter__(self) -> RenderDisplay:
        if not self._quiet and self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:g}/{task.fields[of]}"),
                TextColumn("{task.fields[detail]}"),
                console=self._console,
                transient=True,
            )
            self._blocks = self._bars.add_task(f"{self._title} blocks", total=None, of="?", detail="starting")
            self._steps = self._bars.add_task(f"{' ' * len(self._title)} steps ", total=None, of="?", detail="")
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, progress: RenderProgress) -> None:
        """Show ``progress``."""
        self.last = progress
        if self._bars is not None:
            self._bars.update(
                self._blocks,
                completed=progress.block,
                total=progress.blocks,
                of=progress.blocks,
                detail=detail(progress),
            )
            steps = progress.steps or "?"
            self._bars.update(self._steps, completed=progress.step, total=progress.steps, of=steps, detail="")
        elif not self._quiet and progress.step == 0 and time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._last_line = time.monotonic()
            line = f"{self._title} block {progress.block}/{progress.blocks}, {detail(progress)}"
            self._console.print(line, markup=False, highlight=False)


def detail(progress: RenderProgress) -> str:
    """``9.0/60.0 s, 31.2 fps, 0:25 to go, 412 MB``."""
    done, total = progress.frames / progress.video_fps, progress.total_frames / progress.video_fps
    parts = [f"{done:.1f}/{total:.1f} s"]
    if progress.fps:
        parts.append(f"{progress.fps:.1f} fps")
    if progress.eta is not None:
        parts.append(f"{clock(progress.eta)} to go")
    return ", ".join([*parts, human_bytes(progress.memory)])


def clock(seconds: float) -> str:
    """``3725`` -> ``1:02:05``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
