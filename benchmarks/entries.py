"""What benchmarks/methods.py compares: entries, and the frames that each of them makes."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from longvid.models.students import ADAPTER, BASE
from longvid.models.students import FOLDER as STUDENTS_FOLDER

# All methods on the same weights, so that only the method differs; then students, each under the method it is for.
COMMON = (
    "self-forcing",
    "streaming-llm",
    "longlive",
    "deep-sink:deep-forcing,cache.policy=deep-sink",
    "deep-forcing",
    "rolling-forcing",
    "reward-forcing",
    "static-sink:reward-forcing,cache.policy=sink",  # the same window without the moving average
    "radial:self-forcing,attention.kind=radial",
    "radial-cache:radial",
    "fifo",
    "ouroboros",
    "longvid",
)
STUDENTS = (
    # the rolling window beside two first blocks, and nothing in between is read again
    "joint-window:rolling-forcing,cache.policy=sink,cache.window=9,cache.sink=6,cache.positions=window,"
    "cache.cache_frames=0,student=self-forcing",
    "distilled-self-forcing:self-forcing,student=self-forcing",
    "distilled-deep-forcing:deep-forcing,student=self-forcing",
    "distilled-rolling-forcing:rolling-forcing,student=rolling-forcing",
    "distilled-ema-sink:reward-forcing,student=self-forcing",
    "distilled-reward-forcing:reward-forcing,student=reward-forcing",
)
DEFAULT_ENTRIES = (
    *(f"{entry},student=base" if ":" in entry else f"{entry}:{entry},student=base" for entry in COMMON),
    *STUDENTS,
    "world",
    "autoencoder",
)
REFERENCES = ("world", "autoencoder")
TEMPORAL_STRIDE = 4  # video frames a latent frame, of the embedded model's autoencoder and of Wan's
RUN_UP = 6  # latent frames decoded and dropped before a part that is wanted: what a causal decoder remembers

Parts = Sequence[tuple[int, int]]
"""Video frames that are wanted: [start, stop), in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the table."""

    label: str
    method: str
    model: str
    student: str | None = None
    overrides: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, default_model: str) -> Entry:
        """Read [LABEL:]METHOD[@MODEL][,student=NAME][,key=value...]. Raises ValueError for an empty part."""
        head, *pairs = text.split(",")
        label, colon, rest = head.partition(":")
        method, at, model = (rest if colon else head).partition("@")
        if not method or (at and not model) or (colon and not label) or not all("=" in pair for pair in pairs):
            raise ValueError(f"entry={text!r}: must be [LABEL:]METHOD[@MODEL][,student=NAME][,key=value...]")
        named = [pair.partition("=")[2] for pair in pairs if pair.startswith("student=")]
        return cls(
            label=label if colon else text,
            method=method,
            model=model or default_model,
            student=named[-1] if named else None,
            overrides=tuple(pair for pair in pairs if not pair.startswith("student=")),
        )


class Renderer:
    """Loads each model once a method and streams videos of it."""

    def __init__(self, device: str | None, dtype: str | None) -> None:
        self._device, self._dtype = device, dtype
        self._held: tuple[Entry, Any] | None = None  # one pipeline at a time: models can be large

    def pipe(self, entry: Entry) -> Any:
        import torch

        import longvid
        from benchmarks.products import is_rounded
        from longvid.presets import parse_overrides

        if self._held is None or self._held[0] != entry:
            method = None if entry.method in REFERENCES else entry.method
            where = {"device": self._device, "dtype": getattr(torch, self._dtype) if self._dtype else None}
            overrides = parse_overrides(entry.overrides)
            with warnings.catch_warnings():
                if is_rounded(where["dtype"], self._device):  # what the warning tells of is not what is done here
                    warnings.simplefilter("ignore", RuntimeWarning)
                pipe = longvid.load(entry.model, method, student=entry.student, overrides=overrides, **where)
            pipe.set_progress_bar_config(disable=True)
            self._held = entry, pipe
        return self._held[1]

    def facts(self, entry: Entry) -> dict[str, Any]:
        """What the frames of an entry depend on: the resolved method and the weights."""
        from longvid.config import to_mapping

        if entry.method == "world":
            return {"method": "world"}
        if entry.method in REFERENCES:
            method: Any = entry.method
        else:
            resolved = to_mapping(self.pipe(entry).method)
            method = {part: resolved[part] for part in ("pipeline", "schedule", "cache", "attention")}
        facts = {"method": method, "model": entry.model, "weights": fingerprint(entry.model)}
        if entry.method not in REFERENCES and self.pipe(entry).student != BASE:
            facts["student"] = self.pipe(entry).student
            facts["adapter"] = fingerprint(entry.model, facts["student"])
        return facts | ({"dtype": self._dtype} if self._dtype else {})

    def products(self, entry: Entry) -> str:
        """How matrix products of the type are made: by the processor's own instructions, or rounded from float32."""
        import torch

        from benchmarks.products import is_rounded

        dtype = getattr(torch, self._dtype) if self._dtype else None
        made = entry.method != "world" and is_rounded(dtype, self._device)
        return "rounded from float32" if made else "native"

    def cache_bytes(self, entry: Entry, prompt: str) -> int | None:
        """Bytes of the frame cache; None for what has none."""
        if entry.method in REFERENCES:
            return None
        cache = getattr(self.pipe(entry).rollout(prompt, seconds=1, seed=0), "cache", None)
        return None if cache is None else int(cache.nbytes)

    def fps(self, entry: Entry) -> float:
        """Frames a second of what an entry makes."""
        from longvid.training.world import FPS

        return FPS if entry.method in REFERENCES else float(self.pipe(entry).fps)

    def videos(
        self, entry: Entry, jobs: Sequence[tuple[str, Any, int]], seconds: float, parts: Parts
    ) -> Iterator[list[Any]]:
        """The wanted parts of one video a job (prompt, scene, seed), made together: lists of chunks, one a job.

        A chunk never crosses a part's ends; a gap between parts shows as a jump of ``start_frame``. A half type that
        the processor has no instructions for is computed as benchmarks/products.py says.
        """
        import torch

        from benchmarks.products import with_products

        dtype = getattr(torch, self._dtype) if self._dtype else None
        yield from with_products(self._videos(entry, jobs, seconds, parts), dtype, self._device)

    def _videos(
        self, entry: Entry, jobs: Sequence[tuple[str, Any, int]], seconds: float, parts: Parts
    ) -> Iterator[list[Any]]:
        if entry.method in REFERENCES:
            pipe = self.pipe(entry) if entry.method == "autoencoder" else None
            yield from zip(*(reference(pipe, scene, seed, parts) for _, scene, seed in jobs), strict=True)
        else:
            yield from excerpts(self.pipe(entry), [job[0] for job in jobs], [job[2] for job in jobs], seconds, parts)


def excerpts(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], seconds: float, parts: Parts
) -> Iterator[list[Any]]:
    """Roll out a batch over ``seconds``, decode the wanted parts alone, and give a list of VideoChunks at a time.

    Sample i draws with the i-th seed, so it is the video that it would be alone, up to the rounding of batched sums.
    """
    import torch

    from longvid.models.vae_stream import streaming_decoder
    from longvid.pipelines.output import VideoChunk, to_uint8

    decoder, running = streaming_decoder(pipe.vae), True
    for block in pipe.rollout(list(prompts), seconds=seconds, seed=list(seeds)):
        frames = TEMPORAL_STRIDE * block.latents.shape[2] - (TEMPORAL_STRIDE - 1 if block.new_scene else 0)
        begin, end = block.video_frame, block.video_frame + frames
        if not any(start - RUN_UP * TEMPORAL_STRIDE < end and begin < stop for start, stop in parts):
            running = False
            continue
        if block.new_scene or not running:
            decoder.reset()
        running = True
        with torch.no_grad():
            video = decoder.decode(block.latents.to(pipe.vae.dtype))
        first = end - video.shape[2]  # a decoder that starts anew makes one frame of its first latent
        for start, stop in parts:
            low, high = max(first, start), min(end, stop)
            if low < high:
                shown = to_uint8(video[:, :, low - first : high - first])
                yield [VideoChunk(frames, block.index, low) for frames in shown]


def completed(facts: dict[str, Any]) -> dict[str, Any]:
    """A video's facts that were recorded before a setting existed, with its default, which is what was done then."""
    from longvid.config import AttentionConfig, CacheConfig, ScheduleConfig, to_mapping

    method, parts = (
        facts.get("method"),
        {"schedule": ScheduleConfig, "cache": CacheConfig, "attention": AttentionConfig},
    )
    facts = {"scoring": 1} | facts
    if not isinstance(method, dict) or not parts.keys() <= method.keys():
        return facts
    return facts | {"method": method | {part: to_mapping(kind()) | method[part] for part, kind in parts.items()}}


def fingerprint(model: str, student: str | None = None) -> str | None:
    """Hash of a local model's components, or of one of its students; None for a hub id. What else lies in its folder
    changes no frame."""
    from longvid.pipelines.loading import model_folder

    folder = model_folder(model)
    if folder is None:
        return None
    if student is not None:
        return hashlib.sha256((folder / STUDENTS_FOLDER / student / ADAPTER).read_bytes()).hexdigest()[:16]
    digest = hashlib.sha256()
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = [folder / name for name in sorted(index) if (folder / name).is_dir()]
    files = [file for part in parts for ending in ("safetensors", "json") for file in part.rglob(f"*.{ending}")]
    for file in sorted(files):
        digest.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as opened:
            while piece := opened.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()[:16]


def real_video(scene: Any, seed: int, start: int, stop: int, latents: int = 3) -> Iterator[Any]:
    """Frames [start, stop) of the world's own video, in chunks as long as a block of ``latents`` latent frames: the
    first one as a causal decoder's, 1 + stride (latents - 1) frames, then stride latents each."""
    from longvid.pipelines.output import VideoChunk
    from longvid.training import world

    at, index = start, 0
    while at < stop:
        count = min(latents * TEMPORAL_STRIDE - (TEMPORAL_STRIDE - 1 if at == start else 0), stop - at)
        yield VideoChunk(world.render(scene, seed, start=at, frames=count), index, at)
        at, index = at + count, index + 1


def reference(pipe: Any, scene: Any, seed: int, parts: Parts) -> Iterator[Any]:
    """The world's own video of some parts, each through the autoencoder of ``pipe`` unless that is None."""
    for start, stop in parts:
        chunks = real_video(scene, seed, start, stop)
        yield from chunks if pipe is None else through_autoencoder(pipe, chunks)


def through_autoencoder(pipe: Any, chunks: Iterable[Any]) -> Iterator[Any]:
    """Chunks encoded and decoded again by the pipeline's autoencoder; an incomplete last latent frame is dropped."""
    import torch

    from longvid.models.vae_stream import streaming_decoder, streaming_encoder
    from longvid.pipelines.output import VideoChunk, to_uint8

    encoder, decoder = streaming_encoder(pipe.vae), streaming_decoder(pipe.vae)
    for place, chunk in enumerate(chunks):
        whole = len(chunk.frames) - (len(chunk.frames) - (place == 0)) % TEMPORAL_STRIDE
        if whole <= 0:
            return
        video = torch.from_numpy(chunk.frames[:whole]).permute(3, 0, 1, 2)[None].to(pipe.vae.device, pipe.vae.dtype)
        with torch.no_grad():
            decoded = decoder.decode(encoder.encode(video / 127.5 - 1).to(pipe.vae.dtype))
        yield VideoChunk(to_uint8(decoded.float())[0], chunk.index, chunk.start_frame)


def chosen_prompts(count: int, *, skip: int = 0, backgrounds: Collection[str] | None = None) -> list[tuple[str, Any]]:
    """``count`` held-out prompts with their scenes, behind the first ``skip``; of these ``backgrounds`` alone."""
    from longvid.training.describe import held_out_prompts

    wanted, found = skip + count, list[tuple[str, Any]]()
    while len(found) < count:
        found = [
            (t, s) for t, s in held_out_prompts(wanted)[skip:] if backgrounds is None or s.background in backgrounds
        ]
        wanted += count
    return found[:count]


def chosen_entries(
    parser: argparse.ArgumentParser, texts: Iterable[str], default_model: str, baseline: str
) -> list[Entry]:
    """Entries of a command line; its error where labels repeat or the baseline is not among them."""
    entries = [Entry.parse(text, default_model) for text in texts]
    labels = [entry.label for entry in entries]
    if len(set(labels)) != len(labels):
        parser.error(f"entries: labels repeat ({', '.join(labels)}); give LABEL:METHOD")
    if baseline not in labels:
        parser.error(f"baseline={baseline!r}: must be among the entries ({', '.join(labels)})")
    return entries
