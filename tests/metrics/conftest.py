"""Constructed videos with known answers: a textured world that we move, fade, cut, freeze and shuffle at will."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

FPS = 16


class Clips:
    """Makers of uint8 videos [T, H, W, 3]."""

    fps = FPS

    @staticmethod
    def texture(height: int, width: int, *, seed: int = 0, cell: int = 6) -> np.ndarray:
        """A smooth random colour picture: float [H, W, 3] in 40 .. 215, with structure of about ``cell`` pixels."""
        rng = np.random.default_rng(seed)
        coarse = rng.uniform(0, 1, (height // cell + 3, width // cell + 3, 3))
        rows, cols = (np.arange(n) / cell for n in (height, width))
        r, c = rows.astype(int), cols.astype(int)
        u, v = (0.5 - 0.5 * np.cos(np.pi * (x - x.astype(int))) for x in (rows, cols))
        u, v = u[:, None, None], v[None, :, None]
        top = coarse[r][:, c] * (1 - v) + coarse[r][:, c + 1] * v
        low = coarse[r + 1][:, c] * (1 - v) + coarse[r + 1][:, c + 1] * v
        return 40 + 175 * (top * (1 - u) + low * u)

    @classmethod
    def pan(cls, frames: int, step: int, *, size: int = 96, seed: int = 0, start: int = 0, cell: int = 6) -> np.ndarray:
        """A camera panning right over a texture by ``step`` whole pixels a frame: flow is -step everywhere."""
        wide = cls.texture(size, size + step * (frames + start), seed=seed, cell=cell)
        return np.stack([wide[:, step * t : step * t + size] for t in range(start, start + frames)]).astype(np.uint8)

    @classmethod
    def still(cls, frames: int, *, size: int = 96, seed: int = 0) -> np.ndarray:
        return np.repeat(cls.texture(size, size, seed=seed)[None].astype(np.uint8), frames, axis=0)

    @classmethod
    def walker(cls, frames: int, *, size: int = 96, side: int = 24, step: float = 2.0, seed: int = 0) -> np.ndarray:
        """A bright, textured square that bounces between the walls of a still scene."""
        video = cls.still(frames, size=size, seed=seed)
        square = (cls.texture(side, side, seed=seed + 1, cell=4) * (0.4, 0.4, 0.1) + (160, 160, 20)).astype(np.uint8)
        reach = size - side
        for t in range(frames):
            at = (step * t + 5) % (2 * reach)
            x = round(at if at <= reach else 2 * reach - at)
            y = (size - side) // 2
            video[t, y : y + side, x : x + side] = square
        return video

    @classmethod
    def wander(cls, frames: int, *, size: int = 96, seed: int = 0) -> np.ndarray:
        """A camera that pans over a long texture and never comes back."""
        return cls.pan(frames, 1, size=size, seed=seed)

    @staticmethod
    def noise(frames: int, *, size: int = 96, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)

    @staticmethod
    def flat(frames: int, rgb: tuple[int, int, int], *, size: int = 64) -> np.ndarray:
        return np.broadcast_to(np.array(rgb, np.uint8), (frames, size, size, 3)).copy()


@pytest.fixture
def clips() -> type[Clips]:
    return Clips


@pytest.fixture
def save(tmp_path: Path):
    """Write frames to a video file: losslessly (ffv1 in mkv) unless another name and codec are given."""

    def write(
        frames: np.ndarray, name: str = "clip.mkv", *, codec: str = "ffv1", fps: int = FPS, movflags: str = ""
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
            stream = container.add_stream(codec, rate=fps)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write
