"""How much a video moves and how smoothly, from dense optical flow (DIS, Kroeger et al. 2016, in OpenCV).

Flow is measured on luma at the working size and given in pixels of the full frame. Magnitudes are averaged, never
signed components: opposite motions would cancel. Where nothing changes nothing moves: a codec's noise of one grey level
sends DIS looking for motion in flat parts and finds several pixels, so that a frozen file would count as dynamic. A
video that falls apart "moves" too, so motion is to be read beside smoothness (which falls) and flicker.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from longvid.metrics.extras import require
from longvid.metrics.frames import Pictures, View, check_fps, check_frames

CLIP_SECONDS = 2.0  # VBench-Long cuts videos into clips of 2 s and scores each
FLOW_RATE = 8.0  # VBench samples dynamic degree at 8 frames a second
TOP_SHARE = 0.05
_VISIBLE = 2.0  # grey levels, mean over 5 x 5 pixels: a codec's noise stays under it, a moving edge is ten times above


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """Motion of a video. Speeds are in pixels of the full frame per frame."""

    mean: float
    """Flow magnitude averaged over the picture and over all consecutive pairs of frames."""
    top5: float
    """The same over the 5 % of the picture that move most: the subject's speed, where mean is diluted by the scene."""
    per_second: float
    """``top5`` a second as a share of the frame's shorter side: comparable between sizes and frame rates."""
    dynamic_degree: float
    """Share of the 2-s clips that are dynamic by VBench's rule (see :func:`is_dynamic`). NaN for a video under 2 s."""
    moving_pairs: float
    """Share of the 8-Hz pairs above VBench's threshold: the same measurement without its all-or-nothing step."""
    smoothness: float
    """1 - error of the middle frame, interpolated along its neighbours' flow, / 255 (VBench's form, DIS for AMT)."""
    jerk: float
    """Mean |second difference| of the mean flow magnitude: motion that starts and stops."""


@dataclass(frozen=True, slots=True)
class PairMotion:
    """Motion between one frame and the next, in pixels of the full frame."""

    mean: float
    top5: float


def is_dynamic(top5: np.ndarray, shorter_side: int) -> bool:
    """VBench's rule for one clip: with n pairs at 8 Hz, at least round(4 n / 16) have a top-5 % flow above 6 s / 256.

    ``top5`` [n] and ``shorter_side`` s are in pixels of the same picture. n counts pairs; VBench counts the frames and
    adds the pair (first, last) in both directions, which only a clip held in memory has.
    """
    needed = max(1, round(4 * len(top5) / 16))
    return int(np.count_nonzero(np.asarray(top5) > 6 * shorter_side / 256)) >= needed


class MotionMeter:
    """Online motion: one DIS flow a frame, and one more every other frame for smoothness.

    Needs OpenCV: raises MissingExtraError at construction without it.
    """

    def __init__(self, fps: float) -> None:
        self.fps = check_fps(fps)
        self._cv2 = require("cv2", "motion (optical flow)")
        # The medium preset thinned out: three quarters of its time, the same speeds on moving shapes to 1 %.
        self._dis = self._cv2.DISOpticalFlow_create(self._cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._dis.setPatchStride(4)
        self._dis.setGradientDescentIterations(16)
        self._step = max(1, round(self.fps / FLOW_RATE))
        self._pairs_a_clip = max(1, round(CLIP_SECONDS * self.fps / self._step))
        self._past: deque[Pictures] = deque(maxlen=max(self._step, 2))
        self._grid: np.ndarray | None = None
        self._frames = self._pairs = 0
        self._mean = self._top5 = self._jerk = self._error = 0.0
        self._middles = 0
        self._recent: deque[float] = deque(maxlen=3)
        self._clip: list[float] = []
        self._clips = self._dynamic = self._slow_pairs = self._moving = 0
        self._shorter = 0

    def update(self, view: View) -> PairMotion | None:
        """Add one frame; the motion since the previous frame, or None for the first."""
        self._shorter = min(view.full.shape[:2])
        now, pair = view.pictures(), None
        if self._past:
            pair = self._speed(self._past[-1], now, view.factor)
            self._pairs += 1
            self._mean, self._top5 = self._mean + pair.mean, self._top5 + pair.top5
            self._recent.append(pair.mean)
            if len(self._recent) == 3:
                self._jerk += abs(self._recent[0] - 2 * self._recent[1] + self._recent[2])
        on_beat = len(self._past) >= self._step and self._frames % self._step == 0
        on_middle = len(self._past) >= 2 and self._frames % 2 == 0
        flow = self._flow(self._past[-2], now) if on_middle else None
        if flow is not None:
            self._error += self._middle_error(self._past[-2], self._past[-1], now, flow)
            self._middles += 1
        if on_beat:
            if self._step == 1 and pair is not None:
                self._beat(pair.top5)
            else:
                shared = flow if self._step == 2 else None
                self._beat(self._speed(self._past[-self._step], now, view.factor, shared).top5)
        self._past.append(now)
        self._frames += 1
        return pair

    def cut(self) -> None:
        """Nothing is measured between the frames so far and those to come."""
        for held in (self._past, self._recent, self._clip):
            held.clear()

    def _flow(self, a: Pictures, b: Pictures) -> np.ndarray:
        flow: np.ndarray = self._dis.calc(a.gray, b.gray, None)
        return flow

    def _speed(self, a: Pictures, b: Pictures, factor: int, flow: np.ndarray | None = None) -> PairMotion:
        """Flow magnitudes from a to b within an eighth of the shorter side of a visible change, 0 elsewhere."""
        changed = self._cv2.blur(self._cv2.absdiff(a.luma, b.luma), (5, 5)) >= _VISIBLE
        if not changed.any():
            return PairMotion(0.0, 0.0)
        reach = 2 * (min(changed.shape) // 8) + 1
        near = self._cv2.dilate(changed.view(np.uint8), np.ones((reach, reach), np.uint8))
        flow = self._flow(a, b) if flow is None else flow
        size = (self._cv2.magnitude(flow[..., 0], flow[..., 1]) * near).ravel()
        top = max(1, int(len(size) * TOP_SHARE))
        return PairMotion(float(size.mean()) * factor, float(np.partition(size, -top)[-top:].mean()) * factor)

    def _beat(self, top5: float) -> None:
        self._slow_pairs += 1
        self._moving += top5 > 6 * self._shorter / 256
        self._clip.append(top5)
        if len(self._clip) == self._pairs_a_clip:
            self._clips += 1
            self._dynamic += is_dynamic(np.array(self._clip), self._shorter)
            self._clip.clear()

    def _middle_error(self, a: Pictures, middle: Pictures, b: Pictures, flow: np.ndarray) -> float:
        """Mean |interpolated - real| of the middle frame, 0-255, assuming straight uniform motion from a to b.

        The flow is taken as it stands at the middle: the middle's pixel x came from x - flow/2 in a and goes to
        x + flow/2 in b. A middle frame that jitters off that line costs what it costs the eye.
        """
        if self._grid is None:
            rows, cols = np.indices(flow.shape[:2], dtype=np.float32)
            self._grid = np.stack([cols, rows], axis=-1)
        half = flow / 2
        back, ahead = (
            self._cv2.remap(v.luma, self._grid + d, None, self._cv2.INTER_LINEAR, borderMode=self._cv2.BORDER_REPLICATE)
            for v, d in ((a, -half), (b, half))
        )
        return float(np.abs((back + ahead) / 2 - middle.luma).mean())

    def result(self) -> Motion:
        """Raises ValueError for fewer than 3 frames."""
        if not self._middles:
            raise ValueError(f"frames: got {self._frames}, motion needs at least 3 in a row")
        pairs = self._pairs
        top5 = self._top5 / pairs
        return Motion(
            mean=self._mean / pairs,
            top5=top5,
            per_second=top5 * self.fps / self._shorter,
            dynamic_degree=self._dynamic / self._clips if self._clips else float("nan"),
            moving_pairs=self._moving / self._slow_pairs if self._slow_pairs else float("nan"),
            smoothness=1 - self._error / self._middles / 255,
            jerk=self._jerk / max(pairs - 2, 1),
        )


def measure_motion(frames: np.ndarray, fps: float) -> Motion:
    """Motion of uint8 frames [T, H, W, 3]. Raises MissingExtraError without OpenCV, ValueError under 3 frames."""
    meter = MotionMeter(fps)
    for frame in check_frames(frames, least=3):
        meter.update(View(frame))
    return meter.result()
