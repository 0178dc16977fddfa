"""Facts about this machine and installation for bug reports: ``longvid env``."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import longvid

PACKAGES = (
    "torch", "diffusers", "transformers", "accelerate", "safetensors", "huggingface-hub", "numpy", "av", "imageio",
    "pillow", "omegaconf", "typer", "rich", "triton", "xformers", "torchao", "peft", "fastapi", "uvicorn", "websockets",
    "opencv-python-headless", "scikit-image",
)  # fmt: skip


def environment() -> list[tuple[str, str]]:
    """(what, value) pairs, in the order in which to print them. Imports torch."""
    import torch

    from longvid.models.folder import EMBEDDED
    from longvid.plan import human_bytes
    from longvid.precision import native_types
    from longvid.presets import config_root, method_names

    facts = [
        ("longvid", f"{longvid.__version__} ({Path(longvid.__file__).parent})"),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("system", platform.platform()),
        ("processor", f"{_processor()}, {os.cpu_count()} cores"),
        ("memory", _memory(human_bytes)),
        ("threads", str(torch.get_num_threads())),
        ("fast types", native_types()),
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            capability = f"{about.major}.{about.minor}"
            facts.append((f"gpu {index}", f"{about.name}, {human_bytes(about.total_memory)}, capability {capability}"))
        facts.append(("cuda", str(torch.version.cuda or torch.version.hip)))
    else:
        facts.append(("gpu", "mps" if torch.backends.mps.is_available() else "none"))
    facts += [(name, _version(name) or "not installed") for name in PACKAGES]
    facts.append(("h264 encoder", _encoder()))
    facts += [(f"attention {name}", reason) for name, reason in _attention()]
    present = (EMBEDDED / "model_index.json").is_file()
    facts.append(("embedded model", str(EMBEDDED) if present else "missing from this installation"))
    facts.append(("methods", f"{', '.join(method_names())} ({config_root()})"))
    return facts


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory(human: object) -> str:
    import psutil

    memory = psutil.virtual_memory()
    return f"{human(memory.total)}, {human(memory.available)} free"  # type: ignore[operator]


def _encoder() -> str:
    import av

    try:
        return av.codec.Codec("libx264", "w").long_name
    except av.codec.codec.UnknownCodecError:
        return "libx264 is missing from PyAV"


def _attention() -> list[tuple[str, str]]:
    """Backends of diffusers' attention dispatcher that can run here, and why others cannot."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    query = torch.zeros(1, 1, 1, 8, device=device)
    scaled_dot_product_attention(query, query, query)
    found = [("native", f"works on {device.type}")]
    from longvid.kernels.backend import triton_reason

    return [*found, ("triton", triton_reason(device) or f"works on {device.type}")]
