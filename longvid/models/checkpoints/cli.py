"""``longvid convert``: any readable checkpoint -> a diffusers pipeline folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from longvid.config import DTYPES
from longvid.errors import InputError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to longvid's application."""
    app.command("convert")(convert_command)


def convert_command(
    source: Annotated[
        str | None,
        typer.Argument(help="File, folder, hub id (owner/name or owner/name/file.pt) or a name that --list shows."),
    ] = None,
    destination: Annotated[Path | None, typer.Argument(help="Folder to write.")] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Wan folder (diffusers or original) or hub id that gives VAE, text encoder, tokenizer."),
    ] = None,
    lora: Annotated[Path | None, typer.Option(help="LoRA to merge into the transformer.")] = None,
    lora_scale: Annotated[float, typer.Option(help="Strength of the LoRA.")] = 1.0,
    lora_alpha: Annotated[float | None, typer.Option(help="Its alpha, where the file does not tell.")] = None,
    entry: Annotated[str, typer.Option(help="Top-level key of a trainer's file, such as generator.")] = "auto",
    config: Annotated[Path | None, typer.Option(help="config.json for weights that come without one.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads, where nothing tells.")] = None,
    dtype: Annotated[str | None, typer.Option(help=f"{', '.join(DTYPES)}; as in the file when not given.")] = None,
    link: Annotated[bool, typer.Option("--link", help="Hard-link the base's files in place of copying.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing pipeline folder.")] = False,
    inspect: Annotated[bool, typer.Option("--inspect", help="Say what the checkpoint is; write nothing.")] = False,
    list_known: Annotated[bool, typer.Option("--list", help="List known checkpoints and their licences.")] = False,
) -> None:
    """Turn a released checkpoint into a diffusers pipeline folder, or say what it is."""
    if list_known:
        _print_known()
        return
    if source is None:
        raise InputError("source: not given; name a checkpoint, or see `longvid convert --list`")
    if destination is None and not inspect:
        raise InputError("destination: not given; name a folder to write, or add --inspect")
    torch_dtype = _dtype(dtype)
    reading: dict[str, Any] = {
        "lora": lora,
        "lora_scale": lora_scale,
        "lora_alpha": lora_alpha,
        "entry": entry,
        "config": config,
        "heads": heads,
    }
    out = Console(soft_wrap=True, highlight=False)
    if inspect:
        from longvid.models.checkpoints.transformer import read_transformer

        out.print(str(read_transformer(source, **reading)), markup=False)
        return
    from longvid.models.checkpoints.conversion import convert

    assert destination is not None
    done = convert(source, destination, base=base, dtype=torch_dtype, link=link, overwrite=overwrite, **reading)
    out.print(done.checkpoint, markup=False)
    out.print(f"wrote {done.folder} ({done.bytes / 1e9:.2f} GB)", markup=False)
    if done.missing:
        out.print(
            f"without {', '.join(done.missing)}: run again with --base FOLDER, or pass them to from_pretrained",
            markup=False,
        )


def _dtype(name: str | None) -> Any:
    if name is None:
        return None
    if name not in DTYPES:
        raise InputError(f"dtype={name!r}: must be one of {', '.join(DTYPES)}")
    import torch

    return getattr(torch, name)


def _print_known() -> None:
    from longvid.models.checkpoints.known import KNOWN

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "file", "method", "licence"):
        table.add_column(heading, overflow="fold")
    for known in KNOWN.values():
        files = f"{known.hub}/{known.file}" + (f" + {known.lora}" if known.lora else "")
        method = " ".join((known.method, *(f"--set {setting}" for setting in known.settings)))
        table.add_row(known.name, files, method, known.licence)
    Console().print(table)
