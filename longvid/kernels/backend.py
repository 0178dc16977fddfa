"""Which implementation runs, and why not another: chosen explicitly or automatically, never silently.

An asked-for backend that cannot run falls back with one warning that gives the reason, or raises under `strict`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from contextlib import AbstractContextManager, nullcontext

import torch

from longvid.errors import InputError, UnknownNameError


class BackendError(InputError):
    """A backend that was asked for cannot run here, and falling back was forbidden."""


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def forget_warnings() -> None:
    """Let every fallback warn again (tests)."""
    _warn_once.cache_clear()


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors: decided when the process starts."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Where Triton launches: it takes the current GPU, which need not be the one that the tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def triton_reason(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on tensors of `device`, None when they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'longvid[triton]')"
    if interpreting():
        return None
    if device.type != "cuda":
        return f"triton kernels need a GPU, the tensors are on {device.type!r}"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "the kernels are built for compute capability 8.0 and later"
    return None


def resolve(asked: str, reasons: dict[str, str | None], fallback: str, *, strict: bool, what: str) -> str:
    """The backend to use: `asked` if it can run, else `fallback` after one warning, or BackendError if `strict`.

    `reasons` maps every backend to why it cannot run (None: it can). Raises UnknownNameError on another name.
    """
    if asked not in reasons:
        raise UnknownNameError("backend", asked, reasons, where=what)
    reason = reasons[asked]
    if reason is None:
        return asked
    message = f"{what}: backend={asked!r} cannot be used: {reason}"
    if strict:
        raise BackendError(f"{message}; name another backend or allow falling back to {fallback!r}")
    _warn_once(f"{message}; using {fallback!r}")
    return fallback
