"""Few-step students of a model: small adapters that are merged into the base's weights as it is loaded.

A model folder keeps them in ``students/NAME``: ``pytorch_lora_weights.safetensors`` (a LoRA as diffusers writes it) and
``student.json`` (how it was trained, how it samples, its figures). No torch until weights are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvid.errors import InputError, ModelError, UnknownNameError
from longvid.models.folder import model_defaults, model_folder, read_json

BASE = "base"
"""The model itself, without an adapter."""
FOLDER = "students"
ADAPTER = "pytorch_lora_weights.safetensors"
FACTS = "student.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """A student in a model folder, read without its weights."""

    name: str
    """Name of its folder, and what ``student=`` takes."""
    folder: Path
    """Where its adapter is."""
    facts: Mapping[str, Any]
    """student.json."""

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling defaults that replace the base's: steps, shift, sampler, guidance_scale."""
        return dict(self.facts.get("sampling") or {})

    @property
    def bytes(self) -> int:
        """Size of the adapter."""
        return (self.folder / ADAPTER).stat().st_size


def student_names(model: str | Path) -> tuple[str, ...]:
    """Students that a model has beside its base, sorted; none for a hub id."""
    folder = model_folder(model)
    if folder is None:
        return ()
    return tuple(sorted(path.parent.name for path in (folder / FOLDER).glob(f"*/{FACTS}")))


def find_student(model: str | Path, name: str) -> Student | None:
    """A model's student by name; None for "base".

    Raises UnknownNameError naming the nearest, InputError for a model without students, ModelError for a damaged one.
    """
    if name == BASE:
        return None
    known = student_names(model)
    if not known:
        raise InputError(f"student={name!r}: model {str(model)!r} has no students; leave it out, or give 'base'")
    if name not in known:
        raise UnknownNameError("student", name, (BASE, *known))
    folder = model_folder(model)
    assert folder is not None
    return read_student(folder / FOLDER / name)


def read_student(folder: Path) -> Student:
    """The student in an adapter's folder. Raises ModelError when a file is missing or damaged."""
    facts = read_json(folder / FACTS, folder)
    if not (folder / ADAPTER).is_file():
        raise ModelError(f"student={folder.name!r}: its {ADAPTER} is missing; fetch the model again")
    return Student(name=folder.name, folder=folder, facts=facts)


def pick_student(model: str | Path, method: Any, student: str | None = None) -> Student | None:
    """Whom a method renders with: the one asked for, else its own where the model has it, else the base (None).

    method: a MethodConfig.
    """
    if student is not None:
        return find_student(model, student)
    own = method.student
    return find_student(model, own) if own and own in student_names(model) else None


def student_defaults(model: str | Path, student: Student | None) -> dict[str, Any]:
    """The model folder's sampling defaults, the student's in their place where it has some."""
    defaults = model_defaults(model)
    return defaults if student is None else defaults | student.sampling


def fuse_student(transformer: Any, student: Student, base: Path) -> None:
    """Add the adapter to the transformer's weights, in place: no cost at run time.

    base: the model folder, whose weights must be those that the student was trained on.

    Raises ModelError when they are not, or for a damaged adapter.
    """
    from longvid.models.checkpoints.lora import merge_lora, read_lora

    wanted = student.facts.get("base_sha256")
    if wanted and wanted != weights_digest(base):
        raise ModelError(
            f"student={student.name!r}: was trained on other base weights than those in {str(base)!r}; "
            "take both from one release"
        )
    state = transformer.state_dict()
    merged = merge_lora(state, read_lora(student.folder / ADAPTER), source=f"student {student.name!r}")
    transformer.load_state_dict(merged)


def weights_digest(folder: Path) -> str:
    """SHA-256 of a model folder's transformer weights."""
    digest = hashlib.sha256()
    for file in sorted((folder / "transformer").glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
