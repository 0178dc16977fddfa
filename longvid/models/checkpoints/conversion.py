"""Write any readable checkpoint as a diffusers pipeline folder.

::

    out/
      model_index.json            LongVideoPipeline, its components, and how the weights want to be sampled
      longvid_checkpoint.json     where they came from and under which licence
      transformer/ scheduler/     from the checkpoint
      vae/ text_encoder/ tokenizer/    from the base model's folder

The folder is built beside its final place and renamed when it is whole: an interrupted run leaves nothing half done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer

from longvid.errors import DiskFullError, OutputError
from longvid.models.checkpoints.files import is_diffusers_pipeline, read_json
from longvid.models.checkpoints.known import KNOWN, RECORD, identify
from longvid.models.checkpoints.sources import fetch_folder
from longvid.models.checkpoints.text_encoder import load_text_encoder
from longvid.models.checkpoints.transformer import Checkpoint, build_transformer, read_transformer
from longvid.models.checkpoints.vae import load_vae

__all__ = ["Conversion", "convert", "original_components"]

#: What a pipeline needs besides its transformer and scheduler.
_OTHERS = ("vae", "text_encoder", "tokenizer")
_TOKENIZER_FOLDERS = ("tokenizer", "google/umt5-xxl")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What :func:`convert` made."""

    folder: Path
    """The pipeline folder."""
    checkpoint: str
    """The transformer, in one line."""
    missing: tuple[str, ...]
    """Components that no base gave; the pipeline needs them passed to from_pretrained."""
    bytes: int
    """Size of the folder."""


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
    lora_alpha: float | None = None,
    entry: str = "auto",
    config: Mapping[str, Any] | str | Path | None = None,
    heads: int | None = None,
    link: bool = False,
    overwrite: bool = False,
    max_shard_size: str = "5GB",
) -> Conversion:
    """Convert ``source`` to a diffusers pipeline folder that ``longvid.load`` and ``from_pretrained`` take.

    Args:
        source: as in ``load_transformer``: any layout, a known name, a hub id.
        destination: the folder to write.
        base: where VAE, text encoder and tokenizer come from: a diffusers Wan folder or hub id, or an original Wan
            folder. Not needed where ``source`` is such a folder itself; a known name brings its own.
        dtype: of the transformer (and of what is converted from an original Wan folder); None keeps the files'.
        lora, lora_scale, lora_alpha, entry, config, heads: as in ``load_transformer``.
        link: hard-link the base's files where the file system can, in place of copying gigabytes.
        overwrite: replace ``destination`` if it is a pipeline folder.
        max_shard_size: of the transformer's safetensors files.

    Raises:
        CheckpointError: the checkpoint or the base cannot be used.
        OutputError: the destination is in the way, or cannot be written.
        DiskFullError: not enough room; nothing is left behind.
    """
    destination = Path(destination).expanduser()
    _check_destination(destination, overwrite)
    checkpoint = read_transformer(
        source, lora=lora, lora_scale=lora_scale, lora_alpha=lora_alpha, entry=entry, config=config, heads=heads
    )
    known = identify(source)
    folder = _base_folder(source, base)
    _check_room(destination, checkpoint, folder, dtype, link)
    with _atomic_folder(destination) as building:
        build_transformer(checkpoint, dtype=dtype).save_pretrained(
            building / "transformer", max_shard_size=max_shard_size
        )
        components: dict[str, list[str | None]] = {"transformer": ["diffusers", "WanTransformer3DModel"]}
        components |= _write_others(folder, building, dtype, link)
        sampling = dict(known.sampling) if known else _sampling_of(folder)
        FlowMatchEulerDiscreteScheduler(shift=float(sampling.get("shift") or 1.0)).save_pretrained(
            building / "scheduler"
        )
        components["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
        index = {"_class_name": "LongVideoPipeline", "_diffusers_version": diffusers.__version__}
        _write_json(building / "model_index.json", index | dict(sorted(components.items())) | sampling)
        _write_json(
            building / RECORD,
            {
                "checkpoint": known.name if known else None,
                "licence": known.licence if known else None,
                "source": checkpoint.source,
                "layout": checkpoint.layout,
                "base": str(base) if base else None,
            },
        )
    return Conversion(
        folder=destination,
        checkpoint=str(checkpoint),
        missing=tuple(name for name, (library, _) in components.items() if library is None),
        bytes=sum(file.stat().st_size for file in destination.rglob("*") if file.is_file()),
    )


def original_components(folder: str | Path, *, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """VAE, text encoder and tokenizer of an original Wan folder, those that it has.

    Keys are the pipeline's component names; values diffusers and transformers objects.

    Raises:
        CheckpointError: one of them is damaged.
    """
    folder = Path(folder)
    found: dict[str, Any] = {}
    names = [file.name.lower() for file in folder.iterdir() if file.is_file()]
    if any("vae" in name for name in names):
        found["vae"] = load_vae(folder, dtype=dtype)
    if any("t5" in name for name in names):
        found["text_encoder"] = load_text_encoder(folder, dtype=dtype)
    if tokenizer := _tokenizer_folder(folder):
        found["tokenizer"] = AutoTokenizer.from_pretrained(tokenizer)
    return found


def _tokenizer_folder(folder: Path) -> Path | None:
    return next((folder / name for name in _TOKENIZER_FOLDERS if (folder / name).is_dir()), None)


def _base_folder(source: str | Path, base: str | Path | None) -> Path | None:
    """Where the other components come from; None for a transformer alone."""
    patterns = ["model_index.json", *(f"{name}/*" for name in _OTHERS), "scheduler/*"]
    if base is not None:
        return fetch_folder(base, patterns)
    if str(source) in KNOWN and not Path(source).exists():
        known = KNOWN[str(source)]
        return fetch_folder(known.base or known.hub, patterns)
    path = Path(source).expanduser()
    return path if path.is_dir() else None


def _write_others(
    base: Path | None, building: Path, dtype: torch.dtype | None, link: bool
) -> dict[str, list[str | None]]:
    written: dict[str, list[str | None]] = {name: [None, None] for name in _OTHERS}
    if base is None:
        return written
    if is_diffusers_pipeline(base):
        index = read_json(base / "model_index.json")
        for name in _OTHERS:
            entry = index.get(name)
            if entry and entry[0] is not None and (base / name).is_dir():
                shutil.copytree(base / name, building / name, copy_function=_link_or_copy if link else shutil.copy2)
                written[name] = list(entry)
        return written
    for name, component in original_components(base, dtype=dtype).items():
        component.save_pretrained(building / name)
        library = type(component).__module__.split(".")[0]
        written[name] = [library, type(component).__name__]
    return written


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(os.path.realpath(source), target)  # the hub's cache holds links to its files
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
    return target


def _sampling_of(base: Path | None) -> dict[str, Any]:
    """What the source's own model_index.json says about sampling, and its scheduler's shift."""
    if base is None or not is_diffusers_pipeline(base):
        return {}
    names = ("frames_per_block", "steps", "shift", "sampler", "guidance_scale", "fps", "train_frames")
    index = read_json(base / "model_index.json")
    sampling = {name: index[name] for name in names if index.get(name) is not None}
    scheduler = base / "scheduler" / "scheduler_config.json"
    if "shift" not in sampling and scheduler.is_file():
        settings = read_json(scheduler)
        if shift := settings.get("flow_shift") or settings.get("shift"):
            sampling["shift"] = shift
    return sampling


def _check_destination(destination: Path, overwrite: bool) -> None:
    if not destination.parent.is_dir():
        raise OutputError(f"destination={destination}: the folder {destination.parent} does not exist; make it first")
    if not destination.exists():
        return
    if not destination.is_dir():
        raise OutputError(f"destination={destination}: a file; give a folder")
    if not any(destination.iterdir()):
        return
    if not overwrite:
        raise OutputError(
            f"destination={destination}: exists and is not empty; give another, or use overwrite=True (--overwrite)"
        )
    if not is_diffusers_pipeline(destination):
        raise OutputError(f"destination={destination}: not a pipeline folder, so it is not overwritten; give another")


def _check_room(
    destination: Path, checkpoint: Checkpoint, base: Path | None, dtype: torch.dtype | None, link: bool
) -> None:
    size = (dtype or checkpoint.dtype).itemsize
    needed = sum(tensor.numel() for tensor in checkpoint.state.values()) * size
    if base is not None and not link:
        folders = [base / name for name in _OTHERS] if is_diffusers_pipeline(base) else []
        needed += sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(destination.parent).free
    if free < needed:
        raise DiskFullError(
            errno.ENOSPC, f"destination needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free", str(destination)
        )


@contextlib.contextmanager
def _atomic_folder(destination: Path) -> Iterator[Path]:
    building = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir()
        yield building
        if destination.exists():
            replaced = destination.with_name(f".{destination.name}.replaced")
            shutil.rmtree(replaced, ignore_errors=True)
            destination.rename(replaced)
            building.rename(destination)
            shutil.rmtree(replaced)
        else:
            building.rename(destination)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFullError(errno.ENOSPC, "the disk ran full; nothing was written", str(destination)) from None
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
