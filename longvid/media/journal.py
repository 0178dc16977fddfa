"""The render journal: what was rendered, how, and from where to go on.

    clip.mp4.journal/
        lock                        held while a process renders to clip.mp4
        recipe.json                 everything that the frames depend on; another recipe is refused
        blocks.jsonl                one line a block: frames and bytes so far, each new frame's MD5 and mark
        snapshot-000032.safetensors state of rollout and decoder after block 31 (at most two)
        whole                       every block is in the file; it may be taking its final form

A block's line is written after the block is in the video file, so the file is never shorter than the journal says. A
torn last line is dropped. A snapshot is written after its blocks' lines, so that the newest is the one to go on from;
the one before it stays until a third is begun, for a newest one that turns out to be damaged. When the render ends, the
MD5s and marks become ``clip.mp4.frames_md5`` and the folder is removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from longvid.errors import ResumeError
from longvid.media.lock import OutputLock
from longvid.media.writer import Position, sync_folder, told

if TYPE_CHECKING:
    import numpy as np
    import torch

_UNFINISHED = ("*.part", ".tmp*")
"""What a kill leaves of a file that was being written: under our name, or under safetensors' own."""


class BlockRecord(NamedTuple):
    """One line of ``blocks.jsonl``."""

    block: int
    """0-based index."""
    frames: int
    """Video frames in the file once this block is in it."""
    bytes: int
    """Bytes of the file then."""
    md5: tuple[str, ...]
    """MD5 of each of the block's frames (uint8 RGB, row by row)."""
    marks: tuple[str, ...] = ()
    """What begins with each of them (``frame_marks``); empty in journals that were begun before there were marks."""


class Snapshot(NamedTuple):
    """State after ``blocks`` blocks."""

    blocks: int
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


def frame_md5s(frames_THWC: np.ndarray) -> tuple[str, ...]:
    """MD5 of the bytes of each frame, uint8 [T, H, W, 3]."""
    return tuple(hashlib.md5(frame.tobytes(), usedforsecurity=False).hexdigest() for frame in frames_THWC)


def frame_marks(frames: int, *, new_scene: bool, temporal_stride: int) -> tuple[str, ...]:
    """What begins with each of a block's ``frames`` video frames: "scene", "block", "latent" (frame), or "-".

    new_scene: the block begins the video or stands behind a hard cut. temporal_stride: video frames of a latent frame;
    the first one of a scene is a single video frame.
    """
    ahead = temporal_stride - 1 if new_scene else 0  # as if the first latent frame had its other frames before it
    joints = ("latent" if (index + ahead) % temporal_stride == 0 else "-" for index in range(1, frames))
    return ("scene" if new_scene else "block", *joints)


def journal_folder(output: str | os.PathLike[str]) -> Path:
    """Where the journal of ``output`` lies while it is rendered."""
    return Path(f"{os.fspath(output)}.journal")


def sidecar(output: str | os.PathLike[str]) -> Path:
    """Where the frames' MD5s lie when ``output`` is done."""
    return Path(f"{os.fspath(output)}.frames_md5")


class RenderJournal:
    """The journal of one output, locked from construction to ``release`` or ``finish``.

    Raises ``OutputLockedError`` when another process holds it, ``OutputError`` when the folder cannot be made.
    """

    def __init__(self, output: str | os.PathLike[str]) -> None:
        self.output = os.fspath(output)
        self.folder = journal_folder(output)
        self._lines: Any = None
        self._newest: Path | None = None  # the newest snapshot that this process has written or read
        with told(self.output):
            self.folder.mkdir(exist_ok=True)
            self._lock = OutputLock(self.folder / "lock", self.output)

    # -- beginning ----------------------------------------------------------------------------------------------------
    @property
    def begun(self) -> bool:
        """A recipe was written: there is, or was, a render to go on with."""
        return (self.folder / "recipe.json").is_file()

    def begin(self, recipe: Mapping[str, Any]) -> None:
        """Start anew, forgetting what the folder holds."""
        with told(self.output):
            self._forget()
            _write_whole(self.folder / "recipe.json", json.dumps(recipe, indent=1, sort_keys=True).encode())

    def resume(self, recipe: Mapping[str, Any]) -> list[BlockRecord]:
        """The blocks that are in the file, if ``recipe`` is the journal's own.

        Raises ``ResumeError`` naming what differs.
        """
        try:
            then = json.loads((self.folder / "recipe.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ResumeError(f"resume: {self.folder / 'recipe.json'} is damaged ({error}); use "
                              "overwrite=True (--overwrite)") from None  # fmt: skip
        refuse_other(then, recipe)
        records = list(self._read_blocks())
        with told(self.output):
            for pattern in _UNFINISHED:
                for path in self.folder.glob(pattern):
                    path.unlink()
        self.keep(records)
        return records

    def keep(self, records: Sequence[BlockRecord]) -> None:
        """Drop all lines but those of the first blocks: a torn one, which the next would continue, and those of blocks
        that are in the file no more."""
        with told(self.output):
            _write_whole(self.folder / "blocks.jsonl", b"".join(map(_line, records)))

    # -- going on -----------------------------------------------------------------------------------------------------
    def record(self, record: BlockRecord) -> None:
        """Append a block's line; on return it is on the disk."""
        with told(self.output):
            if self._lines is None:
                self._lines = open(self.folder / "blocks.jsonl", "ab", buffering=0)  # noqa: SIM115
            end = self._lines.seek(0, os.SEEK_END)
            try:
                self._lines.write(_line(record))
                os.fsync(self._lines.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    self._lines.truncate(end)
                raise

    def snapshot(self, snapshot: Snapshot) -> None:
        """Write a snapshot under a temporary name, sync it, rename it.

        All but the newest usable one are dropped before: of a large model it has gigabytes, and no more than two lie on
        the disk at any time. Raises ``DiskFullError`` when there is no room: nothing of it is left, the newest stays.
        """
        path = self.folder / f"snapshot-{snapshot.blocks:06d}.safetensors"
        tensors = {name: tensor.contiguous() for name, tensor in snapshot.tensors.items()}
        facts = {"meta": json.dumps(snapshot.meta), "blocks": str(snapshot.blocks)}
        with told(self.output):
            for old in self._snapshots():
                if old != self._newest:
                    old.unlink()
            # Asked first, so that others who write to this disk do not find it full.
            if shutil.disk_usage(self.folder).free < sum(tensor.nbytes for tensor in tensors.values()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with _whole(path) as part:
                _save(tensors, part, facts)
                with contextlib.suppress(OSError):  # safetensors lets nobody but the owner read it
                    shutil.copymode(self.folder / "recipe.json", part)
        self._newest = path

    def latest_snapshot(self, blocks: int) -> Snapshot | None:
        """The newest readable snapshot after at most ``blocks`` blocks; ``snapshot`` keeps this one."""
        from safetensors import SafetensorError, safe_open

        for path in reversed(self._snapshots()):
            if int(path.stem.rpartition("-")[2]) > blocks:
                continue
            try:
                with safe_open(path, framework="pt") as file:
                    facts = file.metadata()
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                found = Snapshot(int(facts["blocks"]), tensors, json.loads(facts["meta"]))
            except (SafetensorError, OSError, ValueError, KeyError):
                continue  # damaged: the one before it, or the beginning, leads to the same frames
            self._newest = path
            return found
        return None

    @property
    def whole(self) -> bool:
        """Every block is in the file: only its final form and the sidecar are missing."""
        return (self.folder / "whole").is_file()

    def mark_whole(self) -> None:
        """From now on the file may take its final form, whose length is not the blocks'."""
        with told(self.output):
            _write_whole(self.folder / "whole", b"")

    # -- ending -------------------------------------------------------------------------------------------------------
    def finish(self) -> None:
        """The video is whole: write the sidecar, remove the folder, let go."""
        self._close()
        recipe = json.loads((self.folder / "recipe.json").read_text("utf-8"))
        with told(self.output):
            write_sidecar(self.output, recipe, list(self._read_blocks()))
            self._forget()
            self._lock.release(remove=True)
            with contextlib.suppress(OSError):  # another process may wait for the lock inside
                self.folder.rmdir()

    def release(self) -> None:
        """Let go and keep everything for a later resume; an empty folder is removed."""
        self._close()
        self._lock.release(remove=not self.begun)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _close(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def _forget(self) -> None:
        self._close()
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()

    def _snapshots(self) -> list[Path]:
        return sorted(self.folder.glob("snapshot-*.safetensors"))

    def _read_blocks(self) -> Iterator[BlockRecord]:
        path = self.folder / "blocks.jsonl"
        if not path.is_file():
            return
        with open(path, "rb") as file:
            for index, line in enumerate(file):
                try:
                    block, frames, size, md5, *marks = json.loads(line)
                except ValueError:
                    return  # torn by a kill: whatever follows was never finished
                if block != index or not line.endswith(b"\n"):
                    return
                yield BlockRecord(block, frames, size, tuple(md5), tuple(*marks))


def write_sidecar(output: str | os.PathLike[str], recipe: Mapping[str, Any], records: Sequence[BlockRecord]) -> None:
    """``clip.mp4.frames_md5``: the recipe as a comment, then ``frame md5 mark`` a line; no mark if a block has none."""
    md5s = [md5 for record in records for md5 in record.md5]
    marks = [f" {mark}" for record in records for mark in record.marks]
    if len(marks) != len(md5s):
        marks = [""] * len(md5s)
    lines = [f"#recipe {json.dumps(recipe, sort_keys=True)}\n"]
    lines += [f"{index} {md5}{mark}\n" for index, (md5, mark) in enumerate(zip(md5s, marks, strict=True))]
    _write_whole(sidecar(output), "".join(lines).encode())


def read_sidecar(output: str | os.PathLike[str]) -> tuple[dict[str, Any], list[str]] | None:
    """Recipe and MD5s of a finished render, or None when there is no (readable) sidecar."""
    found = _read_sidecar(output)
    return None if found is None else (found[0], [row[1] for row in found[1]])


def read_marks(output: str | os.PathLike[str]) -> tuple[dict[str, Any], list[str]] | None:
    """Recipe and ``frame_marks`` of a finished render; None without a (readable) sidecar that holds them."""
    found = _read_sidecar(output)
    if found is None or any(len(row) < 3 for row in found[1]):
        return None
    return found[0], [row[2] for row in found[1]]


def _read_sidecar(output: str | os.PathLike[str]) -> tuple[dict[str, Any], list[list[str]]] | None:
    try:
        head, *rest = sidecar(output).read_text("utf-8").splitlines()
        rows = [line.split() for line in rest]
        return (json.loads(head.removeprefix("#recipe ")), rows) if all(len(row) > 1 for row in rows) else None
    except (OSError, ValueError):
        return None


def refuse_other(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ``ResumeError`` naming the first differences between two recipes, if there are any."""
    before, after = dict(_flat(then)), dict(_flat(json.loads(json.dumps(now))))
    names = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
    names.sort(key=lambda name: name.count("."))  # what was asked for before what follows from it
    if names:
        said = "; ".join(f"{name} was {_short(before.get(name))}, is {_short(after.get(name))}" for name in names[:4])
        more = f"; and {len(names) - 4} more" if len(names) > 4 else ""
        raise ResumeError(f"resume: another configuration made this file: {said}{more}; restore it, or use "
                          "overwrite=True (--overwrite)")  # fmt: skip


def position_after(records: list[BlockRecord]) -> Position:
    """Where the file is whole after these blocks."""
    return Position(records[-1].frames, records[-1].bytes) if records else Position(0, 0)


def _flat(plain: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(plain, Mapping):
        for key, value in plain.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, plain


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line(record: BlockRecord) -> bytes:
    return json.dumps([record.block, record.frames, record.bytes, record.md5, record.marks]).encode() + b"\n"


def _write_whole(path: Path, data: bytes) -> None:
    """Write ``path`` so that it is either as before or holds all of ``data``."""
    with _whole(path) as part:
        part.write_bytes(data)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to write under; then ``path`` is what was written, or, when anything goes wrong, as before."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path)


def _save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors straight from where they lie, without the second copy that bytes of the file would be."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # the system's errors come in words only
        if number is None:
            raise
        raise OSError(int(number[1]), str(error), None, int(number[1])) from error  # the last is Windows' number
