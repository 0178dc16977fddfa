"""The part every figure shares: where it was measured, with what, and how. Written beside the figures as JSON."""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "diffusers", "transformers", "triton", "numpy", "av")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + (
        "+changes" if git("status", "--porcelain", "--", ":/", ":!/benchmarks/results") else ""
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


class Record:
    """Facts of one benchmark run. vae: whether decoding is inside what was timed. warm_up: untimed runs before."""

    def __init__(self, *, vae: bool, warm_up: int, **more: Any) -> None:
        self.facts: dict[str, Any] = {"vae_included": vae, "warm_up": warm_up, **more}

    def header(self) -> dict[str, Any]:
        import torch

        cuda = torch.cuda.is_available()
        return {
            "command": shlex.join(["python", *sys.argv]),
            "commit": _commit(),
            "machine": {
                "processor": _processor(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "load_average": os.getloadavg(),
                "gpu": torch.cuda.get_device_name() if cuda else None,
            },
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
            "peak_memory_megabytes": {
                "process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "gpu": round(torch.cuda.max_memory_allocated() / 2**20) if cuda else None,
            },
            **self.facts,
        }

    def write(self, path: Path, figures: dict[str, Any]) -> None:
        """Write header and figures to `path`."""
        write(path, {**self.header(), "figures": figures})


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a whole record to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
