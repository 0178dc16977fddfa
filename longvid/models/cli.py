"""``longvid models``: a model and its students: how they were trained, how they sample, how good they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from longvid.config import DEFAULT_MODEL
from longvid.errors import InputError
from longvid.models.folder import EMBEDDED, ModelFolder, model_folder, read_json, read_model_folder
from longvid.models.students import BASE, FOLDER, find_student, pick_student, student_names

FIGURES = "figures.json"
"""In the folder of students: what benchmarks/methods.py measured, a list a student (scripts/student_figures.py)."""
_BASE_PAPER = "flow matching, block by block"


def register(app: typer.Typer) -> None:
    """Add ``models`` to ``app``."""
    app.command("models")(models)


def models(
    model: Annotated[str, typer.Argument(help="'embedded', or a local model folder.")] = DEFAULT_MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List a model and its few-step students: training, sampling, size, figures, and who renders with them."""
    entries = model_entries(model)
    if as_json:
        print(json.dumps(entries, indent=1))
        return
    out = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("student", "trained", "samples", "size", "methods that pick it"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        size = f"{entry['bytes'] / 1e6:.1f} MB"
        table.add_row(entry["name"], _trained(entry), _samples(entry["sampling"]), size, ", ".join(entry["methods"]))
    out.print(table)
    if any(entry["figures"] for entry in entries):
        out.print()
        out.print(_figures_table(entries))
        seen = next(seen for entry in entries for seen in entry["figures"])
        out.print(
            f"Means over {seen['prompts']} held-out prompts, {seen['videos']} videos a row, {seen['seconds']:g} s "
            "each, the same for all. In the first/last 5 s: % of frames whose shape and scene are right, and with a "
            "single subject; motion against the world's own; scene drift in grey levels, with its 95 % interval.",
            markup=False,
        )
    out.print("longvid render PROMPT --student NAME takes another than the method's own.", markup=False)


def model_entries(model: str | Path) -> list[dict[str, Any]]:
    """The base, then each student, as plain JSON. Raises InputError for a hub id, ModelError for a damaged folder."""
    from longvid.presets import load_method, method_names

    folder = read_model_folder(model)
    place = model_folder(model)
    if folder is None or place is None:
        raise InputError(f"model={str(model)!r}: is no local folder in diffusers' format; make one: longvid convert")
    measured = read_json(place / FOLDER / FIGURES, model) if (place / FOLDER / FIGURES).is_file() else {}
    picked = {name: pick_student(model, load_method(name)) for name in method_names()}
    entries = []
    for name in (BASE, *student_names(model)):
        student = find_student(model, name)
        entries.append(
            {
                "name": name,
                "training": _base_training(place) if student is None else _student_training(student.facts),
                "sampling": _sampling(folder, {} if student is None else student.sampling),
                "bytes": sum(part.bytes for part in folder.components.values()) if student is None else student.bytes,
                "methods": [method for method, one in picked.items() if (BASE if one is None else one.name) == name],
                "figures": measured.get(name, []),
            }
        )
    return entries


def _base_training(folder: Path) -> dict[str, Any]:
    step = folder / "training" / "step.json"
    if folder != EMBEDDED or not step.is_file():
        return {}
    return {"paper": _BASE_PAPER, "steps": read_json(step, "embedded")["diffusion_steps"]}


def _student_training(facts: Any) -> dict[str, Any]:
    names = ("kind", "paper", "initial", "steps", "generator_updates", "settings")
    return {name: facts[name] for name in names if name in facts}


def _sampling(folder: ModelFolder, student: dict[str, Any]) -> dict[str, Any]:
    names = ("steps", "shift", "sampler", "guidance_scale")
    return {name: value for name in names if (value := (dict(folder.index) | student).get(name)) is not None}


def _trained(entry: dict[str, Any]) -> str:
    training = entry["training"]
    if not training:
        return "not recorded"
    paper = training.get("paper", "")
    parts = [f"{training['kind']}{f' ({paper})' if paper else ''}" if "kind" in training else paper]
    if "initial" in training:
        parts[0] += f" from {training['initial']}"
    if "steps" in training:
        parts.append(f"{training['steps']:,} steps")
    if "generator_updates" in training:
        parts.append(f"{training['generator_updates']:,} updates")
    if rank := training.get("settings", {}).get("lora_rank"):
        parts.append(f"rank {rank}")
    return ", ".join(parts)


def _samples(sampling: dict[str, Any]) -> str:
    parts = [f"{len(sampling['steps'])} steps"] if "steps" in sampling else []
    parts += [str(sampling["sampler"])] if "sampler" in sampling else []
    if (guidance := sampling.get("guidance_scale")) is not None:
        parts.append("no guidance" if guidance == 1 else f"guidance {guidance:g}")
    return ", ".join(parts) or "the method's"


def _figures_table(entries: list[dict[str, Any]]) -> Table:
    """Fits 80 columns: whole per cents, first and last five seconds."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("student", "method", "shape", "scene", "single", "motion", "drift"):
        table.add_column(heading, no_wrap=True)
    for entry in entries:
        for seen in entry["figures"]:
            means = seen["means"]
            shares = [
                "/".join(f"{100 * means[f'{name}_{end}']['estimate']:.0f}" for end in ("first", "last"))
                for name in ("shape", "background", "one_subject")
            ]
            motion = means["subject_motion"]["estimate"] / seen["world"]["subject_motion"]
            drift = means["scene_drift"]
            told = f"{drift['estimate']:.1f} [{drift['low']:.1f}, {drift['high']:.1f}]"
            table.add_row(entry["name"], seen["method"], *shares, f"{motion:.2f}", told)
    return table
