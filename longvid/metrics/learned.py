"""Optional metrics with learned features, when their weights are on disk: consistency as VBench defines it.

Nothing here downloads. A feature model is anything with ``encode`` (:class:`FrameEncoder`); ``load_encoder`` makes one
of a local folder in the Hugging Face format: a CLIP model, or a DINO or DINOv2 backbone. VBench takes DINO for the
subject and CLIP for the background.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from longvid.errors import InputError
from longvid.metrics.frames import check_fps, check_frames

SAMPLE_RATE = 2.0  # frames a second that are encoded


class FrameEncoder(Protocol):
    """A learned picture of a frame."""

    name: str

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Features float [T, D] of uint8 frames [T, H, W, 3]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedConsistency:
    """Similarity of learned features over a video, 0-1."""

    encoder: str
    score: float
    """Mean over frames of (similarity to the previous + similarity to the first) / 2, negative ones as 0 (VBench)."""
    to_previous: float
    to_first: float
    last_to_first: float
    """The same to the first, of the last 5 s alone: a mean over the video hides where it ended."""


class LearnedMeter:
    """Online consistency of an encoder's features: keeps the features of the first, the previous and the last 5 s."""

    def __init__(self, encoder: FrameEncoder, fps: float, *, last_seconds: float = 5.0) -> None:
        self._encoder = encoder
        self._step = max(1, round(check_fps(fps) / SAMPLE_RATE))
        self._tail_length = max(1, round(last_seconds * fps / self._step))
        self._first: np.ndarray | None = None
        self._previous: np.ndarray | None = None
        self._to_first: list[float] = []
        self._sums = np.zeros(3)  # score, to_previous, to_first
        self._pairs = self._frames = 0

    def update(self, frames: np.ndarray) -> None:
        """Add uint8 frames [T, H, W, 3]; two a second are encoded."""
        check_frames(frames)
        chosen = frames[(-self._frames) % self._step :: self._step]
        self._frames += len(frames)
        if not len(chosen):
            return
        features = np.asarray(self._encoder.encode(chosen), dtype=np.float64)
        for row in features / np.linalg.norm(features, axis=1, keepdims=True):
            if self._first is None or self._previous is None:
                self._first = self._previous = row
                continue
            previous, first = max(0.0, float(row @ self._previous)), max(0.0, float(row @ self._first))
            self._sums += ((previous + first) / 2, previous, first)
            self._to_first = [*self._to_first, first][-self._tail_length :]
            self._pairs += 1
            self._previous = row

    def result(self) -> LearnedConsistency:
        """Raises ValueError under two encoded frames."""
        if not self._pairs:
            raise ValueError(f"frames: got {self._frames}, two that are {self._step} apart are needed")
        score, previous, first = self._sums / self._pairs
        return LearnedConsistency(
            encoder=self._encoder.name,
            score=float(score),
            to_previous=float(previous),
            to_first=float(first),
            last_to_first=float(np.mean(self._to_first)),
        )


def learned_consistency(frames: Iterable[np.ndarray], fps: float, encoder: FrameEncoder) -> LearnedConsistency:
    """Consistency of frames [H, W, 3] in the features of ``encoder``."""
    meter = LearnedMeter(encoder, fps)
    for frame in frames:
        meter.update(np.asarray(frame)[None])
    return meter.result()


def load_encoder(folder: str | Path) -> FrameEncoder:
    """An encoder of a local folder with ``config.json``, ``preprocessor_config.json`` and weights. Never downloads.

    Understood are the model types clip, dinov2 and vit (as which DINO is kept). Raises InputError that names what is
    missing.
    """
    path = Path(folder)
    for name in ("config.json", "preprocessor_config.json"):
        if not (path / name).is_file():
            raise InputError(
                f"weights={str(folder)!r}: has no {name}; give a local folder of a CLIP or DINO model, "
                "as save_pretrained of model and image processor writes it (nothing is downloaded)"
            )
    from transformers import AutoConfig

    kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
    if kind not in ("clip", "dinov2", "vit"):
        raise InputError(f"weights={str(folder)!r}: model type {kind!r} is not understood; known: clip, dinov2, vit")
    return _TransformersEncoder(path, kind)


class _TransformersEncoder:
    def __init__(self, path: Path, kind: str) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModel

        processors: Any = AutoImageProcessor

        self.name = f"{kind}:{path.name}"
        self._kind, self._torch = kind, torch
        try:
            self._processor = processors.from_pretrained(path, local_files_only=True)
            self._model = AutoModel.from_pretrained(path, local_files_only=True).eval()
        except OSError as error:
            raise InputError(f"weights={str(path)!r}: cannot be loaded ({error})") from error

    def encode(self, frames: np.ndarray) -> np.ndarray:
        pixels = self._processor(images=list(frames), return_tensors="pt")["pixel_values"]
        with self._torch.inference_mode():
            if self._kind == "clip":
                found = self._model.get_image_features(pixel_values=pixels)
                features = found if isinstance(found, self._torch.Tensor) else found.pooler_output
            else:
                features = self._model(pixel_values=pixels).last_hidden_state[:, 0]  # the class token
        array: np.ndarray = features.float().numpy()
        return array
