"""Frames as the metrics see them: uint8 [T, H, W, 3], and the few pictures derived from one frame.

T frames, H W full size, h w working size. Colours are sRGB; luma is Rec. 601 on the 0-255 scale of the frames.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image

from longvid.errors import InputError

# Metrics that average over areas run near this size of the shorter side, reduced by a whole factor.
WORKING_SIDE = 128
THUMB_SIDE = 32
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

# sRGB (IEC 61966-2-1) decoded for each of the 256 levels, then to CIE XYZ relative to the D65 white.
_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4).astype(np.float32)
_RGB_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]], dtype=np.float32
)
_RGB_TO_XYZ_D65 = (_RGB_TO_XYZ / np.array([[0.95047], [1.0], [1.08883]])).astype(np.float32)


def check_frames(frames: np.ndarray, name: str = "frames", *, least: int = 1) -> np.ndarray:
    """Return ``frames`` if it is a uint8 array [T, H, W, 3] of at least ``least`` frames, else raise InputError."""
    array = np.asarray(frames)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
        broken = non_finite_frames(array) if np.issubdtype(array.dtype, np.floating) and array.ndim > 1 else []
        found = f" with NaN or infinity in frames {broken[:8]}" if broken else ""
        raise InputError(
            f"{name}: got {array.dtype} {list(array.shape)}{found}, must be uint8 [T, H, W, 3]; "
            "scale floats to 0-255 and round, and look for NaN first (non_finite_frames): rounded it passes for black"
        )
    if array.shape[0] < least:
        raise InputError(f"{name}: got {array.shape[0]} frames, this metric needs at least {least}")
    if min(array.shape[1:3]) < THUMB_SIDE:
        raise InputError(f"{name}: {array.shape[2]}x{array.shape[1]} pixels, the metrics need {THUMB_SIDE} a side")
    return array


def non_finite_frames(frames: np.ndarray) -> list[int]:
    """Indices of the frames of a float array [T, ...] that hold a NaN or an infinity.

    For decoded frames or latents before they are rounded: once uint8, such a frame can only be seen as black.
    """
    array = np.asarray(frames)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"frames: got {array.dtype}, must be a float array: integers are always finite")
    if array.ndim < 2:
        raise ValueError(f"frames: got shape {list(array.shape)}, must be [T, ...]")
    return np.flatnonzero(~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))).tolist()


def check_fps(fps: float) -> float:
    """Return ``fps`` as a float if it is finite and positive, else raise InputError."""
    if not np.isfinite(fps) or fps <= 0:
        raise InputError(f"fps={fps}: must be a positive number of frames a second")
    return float(fps)


class Pictures(NamedTuple):
    """A frame's luma float32 [h, w] and the same rounded to uint8."""

    luma: np.ndarray
    gray: np.ndarray


class View:
    """One frame [H, W, 3] and what the metrics derive from it, each derived once and only when asked for."""

    def __init__(self, frame: np.ndarray) -> None:
        self.full = frame
        self.factor = max(1, round(min(frame.shape[:2]) / WORKING_SIDE))

    @cached_property
    def rgb(self) -> np.ndarray:
        """The frame box-averaged by ``factor`` in both directions: uint8 [h, w, 3]."""
        if self.factor == 1:
            return self.full
        return np.asarray(Image.fromarray(self.full).reduce(self.factor))

    @cached_property
    def luma(self) -> np.ndarray:
        """Rec. 601 luma of ``rgb``: float32 [h, w], 0-255."""
        return luma(self.rgb)

    def luma_at(self, rows: slice, cols: slice) -> np.ndarray:
        """Luma of some rows and columns of the full frame: float32."""
        return self.luma[rows, cols] if self.factor == 1 else luma(self.full[rows, cols])

    @cached_property
    def gray(self) -> np.ndarray:
        """``luma`` rounded to uint8 [h, w]."""
        gray: np.ndarray = np.rint(self.luma).astype(np.uint8)
        return gray

    def pictures(self) -> Pictures:
        """The pictures to keep for the frames to come, without holding on to the full frame."""
        return Pictures(self.luma, self.gray)

    @cached_property
    def thumb(self) -> np.ndarray:
        """Luma averaged down to float32 [32, 32], whatever the aspect ratio."""
        return area_average(self.luma, THUMB_SIDE, THUMB_SIDE)

    @cached_property
    def lab(self) -> np.ndarray:
        """Mean CIE L*a*b* (D65) of every second pixel of every second row of ``rgb``: float64 [3]."""
        mean: np.ndarray = rgb_to_lab(self.rgb[::2, ::2]).reshape(-1, 3).mean(axis=0, dtype=np.float64)
        return mean


def luma(rgb: np.ndarray) -> np.ndarray:
    """Rec. 601 luma on the 0-255 scale: uint8 [..., 3] -> float32 [...]."""
    y: np.ndarray = rgb.astype(np.float32) @ _LUMA
    return y


def area_average(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Average image [h, w] over height x width cells whose edges are rounded to whole pixels: float32."""
    rows = np.linspace(0, image.shape[0], height + 1).round().astype(int)
    cols = np.linspace(0, image.shape[1], width + 1).round().astype(int)
    sums = np.add.reduceat(np.add.reduceat(image, rows[:-1], axis=0), cols[:-1], axis=1)
    average: np.ndarray = (sums / (np.diff(rows)[:, None] * np.diff(cols)[None, :])).astype(np.float32)
    return average


def box_mean(image: np.ndarray, side: int) -> np.ndarray:
    """Means of all ``side`` x ``side`` pixels of image [h, w]: [h - side + 1, w - side + 1], of its dtype (float)."""
    h, w = image.shape
    rows = np.sum([image[i : h - side + 1 + i] for i in range(side)], axis=0)
    total: np.ndarray = np.sum([rows[:, i : w - side + 1 + i] for i in range(side)], axis=0)
    return total / side**2


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65, 2 degrees) of sRGB pixels: uint8 [..., 3] -> float32 [..., 3]."""
    xyz = _LINEAR[rgb] @ _RGB_TO_XYZ_D65.T
    delta = 6 / 29
    f = np.where(xyz > delta**3, np.cbrt(xyz), xyz / (3 * delta**2) + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def saturation(rgb: np.ndarray) -> np.ndarray:
    """HSV saturation in [0, 1] of uint8 [..., 3]: float32 [...]. That of black is 0."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    top = np.maximum(np.maximum(r, g), b)
    share: np.ndarray = (top - np.minimum(np.minimum(r, g), b)) / np.maximum(top, 1).astype(np.float32)
    return share


def hue(rgb: np.ndarray) -> np.ndarray:
    """HSV hue in degrees [0, 360) of uint8 [..., 3]: float32 [...]. That of a grey is 0."""
    c = rgb.astype(np.float32)
    r, g, b = c[..., 0], c[..., 1], c[..., 2]
    top = np.maximum(np.maximum(r, g), b)
    spread = top - np.minimum(np.minimum(r, g), b)
    safe = np.where(spread > 0, spread, 1)
    sector = np.where(top == r, (g - b) / safe, np.where(top == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    return np.where(spread > 0, np.mod(60 * sector, 360), 0)


def mean_abs_diff(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two uint8 pictures of one size, in grey levels 0-255."""
    return float(np.mean(np.maximum(a, b) - np.minimum(a, b), dtype=np.float64))
