"""Plain failures: frozen, black, blank or burnt-out frames, sudden cuts and flashes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from longvid.metrics.frames import View, box_mean, check_fps, check_frames, mean_abs_diff

_LISTED = 100  # events listed by time; all are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What went plainly wrong. Shares are of all frames; times are seconds, the first 100 of each kind."""

    frozen: float
    """Share of frames in stretches of a second or more in which, from first to last, the whole picture changes by less
    than half a grey level and no spot of 5 x 5 pixels by 8."""
    frozen_at: tuple[float, ...]
    black: float
    """Share of frames with less than 1 % of pixels brighter than 16 of 255."""
    blank: float
    """Share of frames of one colour, black ones aside."""
    burnt: float
    """Share of frames with more than 60 % of channel values at 0 or 255."""
    cuts: int
    cuts_at: tuple[float, ...]
    flashes: int
    """Single frames unlike both neighbours, which are alike."""
    flashes_at: tuple[float, ...]

    @property
    def any(self) -> bool:
        return bool(self.frozen or self.black or self.blank or self.burnt or self.cuts or self.flashes)


class FaultMeter:
    """Online detectors; keeps one frame, two thumbnails and the sizes of the last 32 steps."""

    def __init__(
        self,
        fps: float,
        *,
        frozen_seconds: float = 1.0,
        frozen_change: float = 0.5,
        frozen_spot: float = 8.0,
        cut_step: float = 12.0,
        cut_ratio: float = 4.0,
    ) -> None:
        """``frozen_*``: least length of a frozen stretch, and the change since its first frame that ends it: the mean
        over all pixels, or the luma of any 5 x 5 pixels at the working size, in grey levels. A small subject moves the
        first by nothing; what H.264 at its usual quality does to a still picture stays under half the second.

        ``cut_*``: a cut's thumbnail step is at least ``cut_step`` grey levels and ``cut_ratio`` times the usual one,
        the median of the last 32.
        """
        self._fps = check_fps(fps)
        self._frozen_frames = max(2, round(frozen_seconds * fps))
        self._frozen_change, self._frozen_spot = frozen_change, frozen_spot
        self._cut_step, self._cut_ratio = cut_step, cut_ratio
        self._anchor: View | None = None  # first frame of the current still stretch
        self._still = 0
        self._frozen = self._black = self._blank = self._burnt = self._frames = 0
        self._steps: deque[float] = deque(maxlen=32)
        self._thumbs: deque[np.ndarray] = deque(maxlen=2)
        self._jump = 0.0  # size of the step into the last frame, if that step may be a cut
        self._times: dict[str, list[float]] = {"frozen": [], "cut": [], "flash": []}
        self._cuts = self._flashes = 0
        self.frozen_now = False

    def update(self, view: View) -> None:
        """Add one frame."""
        self._freeze(view)
        self._exposure(view)
        self._cut(view.thumb)
        self._frames += 1

    def cut(self) -> None:
        """The step between the frames so far and those to come is no fault, and no frozen stretch spans it."""
        self._anchor, self._still, self._jump = None, 0, 0.0
        self._thumbs.clear()

    def _freeze(self, view: View) -> None:
        # Against the first frame of the stretch, not the one before: slow motion adds up, a codec's noise does not.
        if self._anchor is not None and self._same(self._anchor, view):
            self._still += 1
        else:
            self._anchor, self._still = view, 1
        self.frozen_now = self._still >= self._frozen_frames
        if self._still == self._frozen_frames:
            self._frozen += self._frozen_frames
            self._note("frozen", self._frames - self._frozen_frames + 1)
        elif self.frozen_now:
            self._frozen += 1

    def _same(self, anchor: View, view: View) -> bool:
        if mean_abs_diff(anchor.full, view.full) >= self._frozen_change:
            return False
        return float(box_mean(np.abs(view.luma - anchor.luma), 5).max()) < self._frozen_spot

    def _exposure(self, view: View) -> None:
        bright = np.count_nonzero(view.gray > 16)
        if bright < 0.01 * view.gray.size:
            self._black += 1
        elif float(view.luma.std()) < 1.0 and float(view.rgb.std(axis=(0, 1)).max()) < 1.0:
            self._blank += 1
        values = view.rgb
        if bright >= 0.01 * view.gray.size:
            self._burnt += int(np.count_nonzero((values == 0) | (values == 255)) > 0.6 * values.size)

    def _cut(self, thumb: np.ndarray) -> None:
        if self._thumbs:
            step = float(np.abs(thumb - self._thumbs[-1]).mean())
            usual = float(np.median(self._steps)) if self._steps else step
            if self._jump:  # the last step may have been a cut: it was a flash if this one undoes it
                undone = float(np.abs(thumb - self._thumbs[-2]).mean()) < 0.5 * self._jump
                self._flashes, self._cuts = self._flashes + undone, self._cuts + (not undone)
                self._note("flash" if undone else "cut", self._frames - 1)
                self._jump = 0.0
                if undone:
                    self._thumbs.append(thumb)
                    return
            if len(self._steps) >= 2 and step >= self._cut_step and step >= self._cut_ratio * usual:
                self._jump = step
            else:
                self._steps.append(step)
        self._thumbs.append(thumb)

    def _note(self, kind: str, frame: int) -> None:
        if len(self._times[kind]) < _LISTED:
            self._times[kind].append(frame / self._fps)

    def result(self) -> Faults:
        """Raises ValueError when no frame was added."""
        n = self._frames
        if n == 0:
            raise ValueError("frames: got 0, the detectors need at least 1")
        cuts, cut_times = self._cuts, list(self._times["cut"])
        if self._jump:  # a step into the very last frame: nothing follows that could undo it
            cuts += 1
            cut_times.append((n - 1) / self._fps)
        return Faults(
            frozen=self._frozen / n,
            frozen_at=tuple(self._times["frozen"]),
            black=self._black / n,
            blank=self._blank / n,
            burnt=self._burnt / n,
            cuts=cuts,
            cuts_at=tuple(cut_times[:_LISTED]),
            flashes=self._flashes,
            flashes_at=tuple(self._times["flash"]),
        )


def find_faults(frames: np.ndarray, fps: float) -> Faults:
    """Faults of uint8 frames [T, H, W, 3], with the meter's defaults."""
    meter = FaultMeter(fps)
    for frame in check_frames(frames):
        meter.update(View(frame))
    return meter.result()
