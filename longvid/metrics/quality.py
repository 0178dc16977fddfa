"""Optional per-frame quality with learned scorers, when their weights are on disk: imaging and aesthetic quality.

Both are VBench's, on its scale 0-1. Imaging quality is MUSIQ (arXiv 2108.05997) through the pyiqa package, aesthetic
quality LAION's linear head on CLIP ViT-L/14 features. Nothing here downloads. A scorer is anything with ``score``
(:class:`FrameScorer`). VBench scores every frame, we two a second.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from longvid.errors import InputError
from longvid.metrics.extras import require
from longvid.metrics.frames import check_fps, check_frames
from longvid.metrics.learned import SAMPLE_RATE, FrameEncoder

END_SECONDS = 5.0  # first against last, as FramePack (arXiv 2504.12626) takes them
SEGMENTS = 30  # of equal length, as Reward Forcing takes the spread over them
_LONGER_SIDE = 512  # VBench scales larger frames down to it before MUSIQ


class FrameScorer(Protocol):
    """A learned opinion of a frame."""

    name: str

    def score(self, frames: np.ndarray) -> np.ndarray:
        """Scores float [T], 0-1, of uint8 frames [T, H, W, 3]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedQuality:
    """A scorer's opinion of a video, 0-1."""

    scorer: str
    mean: float
    """Over the scored frames: VBench's number."""
    first: float
    last: float
    """Means over the first and the last 5 s. NaN for a video under 10 s, in which they would overlap."""
    change: float
    """``last - first``; its absolute value is FramePack's drift of quality."""
    spread: float
    """Standard deviation of the means over 30 equal segments (Reward Forcing's drift), or as many as frames scored."""


class QualityMeter:
    """Online quality; keeps two numbers a second."""

    def __init__(self, scorer: FrameScorer, fps: float) -> None:
        self._scorer = scorer
        self._fps = check_fps(fps)
        self._step = max(1, round(self._fps / SAMPLE_RATE))
        self._scores: list[float] = []
        self._frames = 0

    def update(self, frames: np.ndarray) -> None:
        """Add uint8 frames [T, H, W, 3]; two a second are scored."""
        check_frames(frames)
        chosen = frames[(-self._frames) % self._step :: self._step]
        self._frames += len(frames)
        if len(chosen):
            self._scores += np.asarray(self._scorer.score(chosen), dtype=np.float64).tolist()

    def result(self) -> LearnedQuality:
        """Raises ValueError under two scored frames."""
        scores = np.array(self._scores)
        if len(scores) < 2:
            raise ValueError(f"frames: got {self._frames}, two that are {self._step} apart are needed")
        end = max(1, round(END_SECONDS * self._fps / self._step))
        long_enough = self._frames >= 2 * END_SECONDS * self._fps
        first, last = (float(part.mean()) if long_enough else float("nan") for part in (scores[:end], scores[-end:]))
        segments = [part.mean() for part in np.array_split(scores, min(SEGMENTS, len(scores)))]
        return LearnedQuality(
            scorer=self._scorer.name,
            mean=float(scores.mean()),
            first=first,
            last=last,
            change=last - first,
            spread=float(np.std(segments)),
        )


def learned_quality(frames: Iterable[np.ndarray], fps: float, scorer: FrameScorer) -> LearnedQuality:
    """Quality of frames [H, W, 3] in the opinion of ``scorer``."""
    meter = QualityMeter(scorer, fps)
    for frame in frames:
        meter.update(np.asarray(frame)[None])
    return meter.result()


def load_imaging(weights: str | Path) -> FrameScorer:
    """MUSIQ with the weights of a local file, as VBench's imaging quality: score / 100. Never downloads.

    VBench takes pyiqa's ``musiq_spaq_ckpt-358bb6af.pth``. Raises InputError for a file that is missing or holds
    something else, MissingExtraError without pyiqa.
    """
    path = _file(weights, "imaging", "MUSIQ weights, such as pyiqa's musiq_spaq_ckpt-358bb6af.pth")
    arch = require("pyiqa.archs.musiq_arch", f"imaging={str(weights)!r}: MUSIQ", install="pyiqa")
    return _Musiq(arch.MUSIQ(pretrained=False), path)


def load_aesthetic(weights: str | Path, encoder: FrameEncoder) -> FrameScorer:
    """LAION's linear head of a local file on the features of ``encoder``, as VBench's aesthetic quality: score / 10.

    VBench takes ``sa_0_4_vit_l_14_linear.pth`` on CLIP ViT-L/14 (:func:`longvid.metrics.learned.load_encoder`). Raises
    InputError for a file that is missing, holds something else, or is for features of another length.
    """
    path = _file(weights, "aesthetic", "LAION's sa_0_4_vit_l_14_linear.pth")
    state = _state(path, "aesthetic")
    width = encoder.encode(np.zeros((1, 224, 224, 3), np.uint8)).shape[1]
    found = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
    if found != {"weight": (1, width), "bias": (1,)}:
        raise InputError(
            f"aesthetic={str(weights)!r}: holds {found}, must be weight (1, {width}) and bias (1,) for {encoder.name}; "
            "LAION's heads are each for one CLIP model, sa_0_4_vit_l_14_linear.pth for ViT-L/14"
        )
    return _Aesthetic(encoder, state["weight"].double().numpy()[0], float(state["bias"]))


def _file(weights: str | Path, name: str, what: str) -> Path:
    path = Path(weights)
    if not path.is_file():
        raise InputError(f"{name}={str(weights)!r}: no such file; give a local file of {what} (nothing is downloaded)")
    return path


def _state(path: Path, name: str) -> dict[str, Any]:
    import torch

    try:
        # A pickle may hold code: tensors alone are read.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{name}={str(path)!r}: cannot be read as weights of PyTorch ({error})") from error
    if not isinstance(state, dict):
        raise InputError(f"{name}={str(path)!r}: holds a {type(state).__name__}, must be a dictionary of weights")
    return state


class _Musiq:
    def __init__(self, model: Any, path: Path) -> None:
        self.name = f"musiq:{path.stem}"
        try:
            model.load_state_dict({key.removeprefix("module."): v for key, v in _state(path, "imaging").items()})
        except RuntimeError as error:
            raise InputError(f"imaging={str(path)!r}: is not of pyiqa's MUSIQ with one output ({error})") from error
        self._model = model.eval()

    def score(self, frames: np.ndarray) -> np.ndarray:
        import torch
        from torch.nn.functional import interpolate

        scores = []
        with torch.inference_mode():
            for frame in frames:
                pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()
                scale = _LONGER_SIDE / max(frame.shape[:2])
                if scale < 1:  # as VBench: bilinear, whole grey levels
                    size = [int(scale * side) for side in frame.shape[:2]]
                    pixels = interpolate(pixels, size=size, mode="bilinear", align_corners=False).round()
                scores.append(float(self._model(pixels / 255)))
        return np.array(scores) / 100


class _Aesthetic:
    def __init__(self, encoder: FrameEncoder, weight: np.ndarray, bias: float) -> None:
        self.name = f"aesthetic on {encoder.name}"
        self._encoder, self._weight, self._bias = encoder, weight, bias

    def score(self, frames: np.ndarray) -> np.ndarray:
        features = np.asarray(self._encoder.encode(frames), dtype=np.float64)
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        scores: np.ndarray = (unit @ self._weight + self._bias) / 10
        return scores
