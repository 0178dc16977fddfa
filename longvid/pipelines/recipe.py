"""The recipe of a render: everything that its frames depend on, as plain JSON.

A resumed render must have the recipe that it began with; what differs is named. It is also what ``clip.mp4.frames_md5``
opens with, so a finished video says how it was made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import longvid
from longvid.config import to_mapping

from .request import Request

_SAMPLES = 64
"""Values of each weight that go into the fingerprint: enough to tell checkpoints apart, cheap for 14 B of them."""


def render_recipe(
    pipe: Any, request: Request, prompt: str, given: Mapping[str, Any], output: Mapping[str, Any]
) -> dict[str, Any]:
    """The recipe of ``request`` on ``pipe``.

    prompt: the schedule as the user wrote it. given: other arguments that shape the frames (image, video, attention).
    output: how frames become a file.
    """
    device = torch.device(pipe._execution_device)
    return {
        "student": pipe.student,
        "prompt": prompt,
        "negative_prompt": list(request.negative) if request.guided else [],
        "frames": request.frames,
        "fps": request.fps,
        "height": request.height,
        "width": request.width,
        "seed": list(request.seeds),
        "method": to_mapping(request.method),
        "given": {name: fingerprint(value) for name, value in given.items() if value is not None},
        "model": {
            name: weights_fingerprint(part) for name, part in pipe.components.items() if isinstance(part, nn.Module)
        },
        "output": dict(output),
        "machine": {
            "longvid": longvid.__version__,
            "torch": torch.__version__,
            "device": _device_name(device),
            # Sums depend on how they are split among threads.
            "threads": torch.get_num_threads() if device.type == "cpu" else None,
        },
    }


def _device_name(device: torch.device) -> str:
    """The GPU, or the instructions of the CPU: both decide how sums are rounded."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 over each weight's name, shape, dtype and some of its values."""
    digest = hashlib.sha256()
    for name, weight in module.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if weight.numel() and not weight.is_meta:
            flat = weight.detach().reshape(-1)
            digest.update(_bytes(flat[:: max(1, flat.numel() // _SAMPLES)]))
    return digest.hexdigest()[:16]


def fingerprint(value: Any) -> Any:
    """``value`` itself if it is plain, else a hash of its contents (pictures, arrays, tensors, lists of them)."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    digest = hashlib.sha256()
    if isinstance(value, Tensor):
        digest.update(f"{tuple(value.shape)} {value.dtype}".encode() + _bytes(value))
    elif isinstance(value, (list, tuple)):
        for entry in value:
            digest.update(str(fingerprint(entry)).encode())
    elif hasattr(value, "__dataclass_fields__"):
        return to_mapping(value)
    else:
        array = np.asarray(value)
        if array.dtype == object:
            raise TypeError(f"{type(value).__name__}: cannot be fingerprinted")
        digest.update(f"{array.shape} {array.dtype}".encode() + array.tobytes())
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).cpu().view(torch.uint8).numpy().tobytes()
