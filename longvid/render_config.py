"""Everything that ``longvid render`` takes: one schema for options, ``--config`` files and ``--set``."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longvid.config import (
    DEFAULT_METHOD,
    DEFAULT_MODEL,
    DTYPES,
    MethodConfig,
    finite,
    from_mapping,
    one_of,
    require,
    to_mapping,
    whole,
)
from longvid.errors import UnknownNameError
from longvid.media.output import check_output
from longvid.media.writer import DEFAULT_CRF, ending_of
from longvid.presets import merge, resolve_method
from longvid.prompts import parse_prompt, read_prompts

DEFAULT_SECONDS = 10.0
"""Length when neither the user nor the prompt schedule says."""
MAX_SECONDS = 7 * 24 * 3600.0
SECTIONS = ("schedule", "cache", "attention")
"""Keys that hold parts of the method; what is given there overrules the method and the model."""
_DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderConfig:
    """One ``longvid render``."""

    prompt: str | None = None
    """Text, or a prompt schedule: "a man walks[5s] | night falls[10s#]"."""
    prompts_file: str | None = None
    """A text file with a prompt a line, in place of ``prompt``; one video each, numbered."""
    negative_prompt: str = ""
    """What to steer away from; used where guidance_scale is not 1."""
    model: str = DEFAULT_MODEL
    """"embedded", a model folder, or a hub id."""
    method: str = DEFAULT_METHOD
    """A name that ``longvid methods`` lists."""
    student: str | None = None
    """"base" or a student of the model (``longvid models``); None takes the method's own."""
    seconds: float | None = None
    """Length of the video; None takes the prompt schedule's own, or 10 s when it has none."""
    num_frames: int | None = None
    """Length in video frames (4k+1), in place of ``seconds``."""
    seed: int = 0
    """Of the noise; the n-th prompt of a file takes seed + n - 1."""
    height: int | None = None
    """Pixels; None is the model's."""
    width: int | None = None
    """Pixels; None is the model's."""
    image: str | None = None
    """A picture that the video begins with."""
    video: str | None = None
    """A video whose last frames it begins with."""
    out: str | None = None
    """.mp4, .gif, .webp or .png (numbered frames); a folder, or None, makes a name from the prompt."""
    crf: float = DEFAULT_CRF
    """Quality of H.264: 0 (lossless) to 51; 18 is hard to tell from the source."""
    device: str | None = None
    """"cpu", "cuda", "cuda:1" or "mps"; None takes the GPU where there is one."""
    dtype: str | None = None
    """"float32", "bfloat16" or "float16"; None is bfloat16 on a GPU, float32 on a CPU."""
    schedule: dict[str, Any] = field(default_factory=dict)
    """Fields of ScheduleConfig that overrule method and model."""
    cache: dict[str, Any] = field(default_factory=dict)
    """Fields of CacheConfig that overrule the method."""
    attention: dict[str, Any] = field(default_factory=dict)
    """Fields of AttentionConfig that overrule the method."""

    def __post_init__(self) -> None:
        given = [name for name in ("prompt", "prompts_file") if getattr(self, name) is not None]
        require(len(given) == 1, "prompt", self.prompt, "give a prompt or a file of prompts, and only one of them")
        if self.prompt is not None:
            self.seconds_of(self.prompt)
        if self.seconds is not None:
            require(self.num_frames is None, "num_frames", self.num_frames, "give seconds or num_frames, not both")
            finite("seconds", self.seconds)
            require(self.seconds > 0, "seconds", self.seconds, "must be above 0")
            require(self.seconds <= MAX_SECONDS, "seconds", self.seconds, f"must be at most {MAX_SECONDS:g} (a week)")
        for name in ("num_frames", "height", "width"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1)
        whole("seed", self.seed, 0, "must be a whole number from 0 to 2^62")
        require(self.seed <= 2**62, "seed", self.seed, "must be a whole number from 0 to 2^62")
        finite("crf", self.crf, 0, 51)
        if self.dtype is not None:
            one_of("dtype", self.dtype, DTYPES)
        if self.device is not None:
            require(
                bool(_DEVICE.fullmatch(self.device)), "device", self.device, 'must be "cpu", "cuda", "cuda:1" or "mps"'
            )
        require(
            not (self.image and self.video), "video", self.video, "give an image or a video to begin with, not both"
        )
        for name in ("image", "video"):
            path = getattr(self, name)
            require(path is None or Path(path).is_file(), name, path, "there is no such file")
        if self.out is not None and not os.path.isdir(self.out):
            ending_of(self.out)
        self.resolved()

    @classmethod
    def build(cls, *layers: Mapping[str, Any]) -> RenderConfig:
        """From plain mappings, weakest first: a config file, options, ``--set``.

        Raises ``UnknownNameError`` for a key that does not exist, ``InputError`` for a value that cannot be.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            merged = merge(merged, layer)
        for section in SECTIONS:
            value = merged.get(section)
            require(value is None or isinstance(value, Mapping), section, value, "must be a mapping of keys to values")
        plain = {key: value for key, value in merged.items() if value is not None}
        known = [spec.name for spec in dataclasses.fields(cls)]
        for key in plain:
            if key not in known:
                raise UnknownNameError("key", key, _all_keys(known))
        built: RenderConfig = from_mapping(cls, plain)
        return built

    @property
    def overrides(self) -> dict[str, Any]:
        """What overrules method and model, nested."""
        return {section: dict(getattr(self, section)) for section in SECTIONS if getattr(self, section)}

    def resolved(self, model_defaults: Mapping[str, Any] | None = None) -> MethodConfig:
        """The method that will run, given the model folder's sampling defaults."""
        return resolve_method(self.method, model_defaults=model_defaults, overrides=self.overrides)

    def seconds_of(self, prompt: str) -> float | None:
        """Length of the video of ``prompt``; None when ``num_frames`` says it. Raises ``InputError``."""
        schedule = parse_prompt(prompt)
        if self.num_frames is not None:
            return None
        return schedule.length(DEFAULT_SECONDS if self.seconds is None and schedule.seconds is None else self.seconds)

    def jobs(self) -> list[tuple[str, int, str]]:
        """(prompt, seed, output) of each video.

        Raises ``InputError`` for a prompts file that cannot be read, or a prompt whose length is not known.
        """
        if self.prompt is not None:
            return [(self.prompt, self.seed, self._place(default_name(self.prompt, self.seed)))]
        assert self.prompts_file is not None
        prompts = read_prompts(self.prompts_file)
        digits = max(3, len(str(len(prompts))))
        jobs = []
        for index, prompt in enumerate(prompts):
            self.seconds_of(prompt)
            number = f"{index + 1:0{digits}d}"
            name = Path(self._place(default_name(prompt, self.seed + index)))
            named = self.out is not None and name == Path(self.out)
            name = name.with_name(f"{name.stem}-{number}{name.suffix}" if named else f"{number}-{name.name}")
            jobs.append((prompt, self.seed + index, str(name)))
        return jobs

    def _place(self, name: str) -> str:
        """The output: ``out``, or ``name`` where that says no file."""
        if self.out is None:
            return name
        return os.path.join(self.out, name) if os.path.isdir(self.out) else self.out

    def check_outputs(self, *, resume: bool, overwrite: bool) -> None:
        """Raise ``OutputError`` unless every output may be written."""
        for _, _, out in self.jobs():
            check_output(out, resume=resume, overwrite=overwrite)

    def to_plain(self, method: MethodConfig) -> dict[str, Any]:
        """As a mapping that ``build`` takes back, with ``method`` written out in full."""
        plain = {key: value for key, value in to_mapping(self).items() if value is not None and key not in SECTIONS}
        sections = to_mapping(method)
        return plain | {section: sections[section] for section in SECTIONS}


def default_name(prompt: str, seed: int) -> str:
    """``a red ball bounces`` and seed 3 -> ``a-red-ball-bounces-3.mp4``."""
    words = re.sub(r"[^a-z0-9]+", "-", parse_prompt(prompt).parts[0].text.lower()).strip("-")
    return f"{words[:60].rstrip('-') or 'video'}-{seed}.mp4"


def _all_keys(known: list[str]) -> list[str]:
    from longvid.config import AttentionConfig, CacheConfig, ScheduleConfig

    sections = {"schedule": ScheduleConfig, "cache": CacheConfig, "attention": AttentionConfig}
    inner = [f"{name}.{spec.name}" for name, cls in sections.items() for spec in dataclasses.fields(cls)]
    return [*known, *inner]
