"""A student's parts, out of model folders and back into one."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longvid.errors import InputError, OutputError
from longvid.models.folder import model_folder
from longvid.models.students import ADAPTER, BASE, FACTS, fuse_student, read_student, weights_digest
from longvid.pipelines.loading import load
from longvid.pipelines.text import embed_prompts
from longvid.presets import load_method
from longvid.training.distill.adapter import set_trained_weights, wear_adapter
from longvid.training.distill.config import StudentConfig, plain

LOG = "distillation.jsonl"
Transformer = Any  # diffusers' WanTransformer3DModel, whose base classes type checkers do not see


@dataclass(slots=True)
class Parts:
    """What distillation works on. Only `student` and `critic` are trained.

    pipe: the base pipeline; its text encoder and VAE are used, frozen. teacher: the real score. folder: the base's.
    """

    pipe: Any
    student: Transformer
    critic: Transformer
    teacher: Transformer
    folder: Path

    def embed(self, prompts: list[str]) -> Tensor:
        """Prompt embeddings [B, T, text_dim]."""
        return embed_prompts(self.pipe, prompts, quiet=True)

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """(C, h, w) for a size in pixels, the model's own where it is None.

        Raises InputError for a size that the VAE and the patch do not divide.
        """
        facts = self.pipe._facts
        patch = self.student.config.patch_size[1]
        shape = []
        for name, size in (("height", height or facts.height), ("width", width or facts.width)):
            if size < 1 or size % facts.spatial:
                near = max(1, round(size / facts.spatial)) * facts.spatial
                raise InputError(f"{name}={size}: must be a multiple of {facts.spatial}; nearest {near}")
            shape.append(size // facts.spatial * patch)
        return self.student.config.in_channels, shape[0], shape[1]


def load_parts(
    model: str | Path,
    *,
    initial: str | Path | None = None,
    teacher: str | Path | None = None,
    method: str | None = None,
    lora_rank: int = 0,
    seed: int = 0,
) -> Parts:
    """Read a base and make student, critic and teacher of it, all float32 on the CPU.

    model: a local model folder in diffusers' format, or "embedded". initial: what the student starts from: another
    model folder (an ODE-initialised one, or a student of another kind), or the folder of an adapter of this base.
    teacher: another folder for the real score; the critic always starts from it. lora_rank: train an adapter of that
    rank in place of the weights, drawn with `seed`; 0 trains the weights.

    Raises ModelError or InputError, one line.
    """
    folder = model_folder(model)
    if folder is None or not (folder / "model_index.json").is_file():
        raise InputError(
            f"model={str(model)!r}: must be a local folder in diffusers' format; make one: longvid convert"
        )
    pipe = load(folder, method=method, device="cpu", dtype=torch.float32, student=BASE)
    for part in (pipe.vae, pipe.text_encoder):
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    base = pipe.transformer.requires_grad_(False).eval()
    real = base if teacher is None else _transformer(teacher)
    adapter = None if initial is None or not (Path(initial) / ADAPTER).is_file() else read_student(Path(initial))
    student = copy.deepcopy(base) if initial is None or adapter is not None else _transformer(initial)
    for name, other in (("teacher", real), ("initial", student)):
        for key in ("in_channels", "patch_size", "text_dim"):
            mine, theirs = base.config[key], other.config[key]
            if (tuple(mine) if isinstance(mine, list) else mine) != (
                tuple(theirs) if isinstance(theirs, list) else theirs
            ):
                raise InputError(f"{name}: its transformer has {key}={theirs}, the model {mine}; they must agree")
    critic = copy.deepcopy(real).requires_grad_(True)
    if adapter is not None and not lora_rank:
        fuse_student(student, adapter, folder)
    student.requires_grad_(True)
    if lora_rank:
        if initial is not None and adapter is None:
            raise InputError(
                f"initial={str(initial)!r}: an adapter is trained beside the base's own weights; "
                "start from another adapter of it, or train whole weights (lora_rank=0)"
            )
        wear_adapter(student, lora_rank, seed=seed, start=None if adapter is None else adapter.folder)
    return Parts(pipe, student.eval(), critic.eval(), real.requires_grad_(False).eval(), folder)


def _transformer(model: str | Path) -> Transformer:
    return load(model, device="cpu", dtype=torch.float32, student=BASE).transformer


def sampling_of(config: StudentConfig) -> dict[str, Any]:
    """How a student samples: what replaces the base's defaults."""
    return {
        "steps": list(config.steps),
        "shift": config.shift,
        "frames_per_block": config.frames_per_block,
        "sampler": "renoise",
        "guidance_scale": 1.0,
    }


def export_student(
    parts: Parts,
    weights: Mapping[str, Tensor],
    config: StudentConfig,
    out: Path,
    *,
    log: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a student as a model folder: the base's folder with other transformer weights and sampling defaults.

    The transformer keeps the dtype that the base has on disk. The folder appears whole or not at all.

    Raises OutputError when `out` exists, unless it is to be overwritten and is a model folder.
    """
    check_out(out, overwrite)
    partial = out.with_name(out.name + ".part")
    if partial.exists():
        shutil.rmtree(partial)
    shutil.copytree(parts.folder, partial, ignore=shutil.ignore_patterns("transformer", "training"))
    model = copy.deepcopy(parts.student)
    model.load_state_dict(weights)
    model.to(_stored_dtype(parts.folder / "transformer")).save_pretrained(partial / "transformer")
    index = json.loads((partial / "model_index.json").read_text(encoding="utf-8"))
    index |= sampling_of(config) | {"train_frames": config.clip_frames}
    (partial / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    if log is not None and log.exists():
        (partial / "training").mkdir()
        shutil.copy2(log, partial / "training" / LOG)
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    return out


def export_adapter(
    parts: Parts,
    weights: Mapping[str, Tensor],
    config: StudentConfig,
    out: Path,
    *,
    steps: int,
    initial: str | None = None,
    log: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a student as the folder of an adapter: float16 LoRA, how it was trained and samples, the log.

    steps: critic updates that were made. initial: name of what it started from. The folder appears whole or not at all.

    Raises OutputError when `out` exists, unless it is to be overwritten and holds a student.
    """
    check_out(out, overwrite)
    partial = out.with_name(out.name + ".part")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    model = copy.deepcopy(parts.student)
    set_trained_weights(model, weights)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.half()
    model.save_lora_adapter(partial, adapter_name="default", safe_serialization=True)
    facts = {
        "kind": config.kind,
        "paper": load_method(config.kind).paper,
        "initial": initial or BASE,
        "steps": steps,
        "generator_updates": len(range(_first_update(config), steps, config.generator_every)),
        "sampling": sampling_of(config),
        "settings": plain(config),
        "base_sha256": weights_digest(parts.folder),
    }
    (partial / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if log is not None and log.exists():
        shutil.copy2(log, partial / LOG)
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    return out


def _first_update(config: StudentConfig) -> int:
    """Step of the generator's first update."""
    return -(-config.critic_warmup // config.generator_every) * config.generator_every


def check_out(out: Path, overwrite: bool) -> None:
    """Raise OutputError unless a student may be written to `out`."""
    if out.exists() and not overwrite:
        raise OutputError(f"out={str(out)!r}: exists; give another folder, or use overwrite=True (--overwrite)")
    if out.exists() and not any((out / name).is_file() for name in ("model_index.json", FACTS)):
        raise OutputError(f"out={str(out)!r}: is no model folder and will not be replaced; give another folder")


def _stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of a folder's weights on disk; float32 when none are safetensors."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                return file.get_tensor(name).dtype  # type: ignore[no-any-return]
    return torch.float32
