"""Whether a device is here, and where low precision pays.

A processor without instructions for it multiplies bfloat16 a hundred times slower.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch

from longvid.errors import InputError

_SUPPORTED = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def check_device(device: str | int | torch.device | None) -> None:
    """Raise InputError unless ``device`` is on this machine; None, a device yet to be chosen, is fine."""
    if device is None:
        return
    try:
        asked = torch.device(device)
    except (RuntimeError, TypeError):  # torch names two dozen types, most of them nobody has
        raise InputError(f"device={device!r}: must be 'cpu', 'cuda', 'cuda:1' or 'mps'") from None
    here = torch.accelerator.current_accelerator()
    known = here is not None and asked.type == here.type and (asked.index or 0) < torch.accelerator.device_count()
    if asked.type != "cpu" and not known:
        raise InputError(
            f"device={str(device)!r}: is not on this machine; use 'cpu', or a GPU that `longvid env` lists"
        )


def is_native(dtype: torch.dtype, device: str | torch.device) -> bool:
    """Whether ``device`` has instructions for matrix products of ``dtype``: every float type on an accelerator, float32
    and float64 on a CPU, bfloat16 and float16 where oneDNN finds them (AVX-512 or AMX; ARM with its extensions)."""
    if torch.device(device).type != "cpu" or dtype not in _SUPPORTED:
        return True
    return _on_cpu(dtype)


@cache
def _on_cpu(dtype: torch.dtype) -> bool:
    try:
        return bool(getattr(torch.ops.mkldnn, _SUPPORTED[dtype])())
    except (AttributeError, RuntimeError):  # a torch built without oneDNN, whose products are plain loops
        return False


def low_precision(device: str | torch.device) -> torch.autocast:
    """Autocast to bfloat16 on a device that multiplies it; on any other a region that changes nothing, so float32."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=is_native(torch.bfloat16, kind))


def warn_if_slow(name: str, dtype: torch.dtype, device: str | torch.device, *, stacklevel: int = 2) -> None:
    """RuntimeWarning when ``dtype``, given as the argument ``name``, runs on a CPU without instructions for it."""
    if not is_native(dtype, device):
        short = str(dtype).removeprefix("torch.")
        message = (
            f"{name}={short}: this processor has no instructions for it and takes many times as long as with float32; "
            "use float32, or a GPU"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=stacklevel + 1)


def native_types() -> str:
    """One line for ``longvid env``: the types with instructions on this CPU."""
    known: tuple[Any, ...] = (torch.float32, torch.bfloat16, torch.float16)
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in known if is_native(dtype, "cpu"))
