"""One schema for Python, YAML and the command line.

A long video is one loop with three free choices: what to denoise together (``ScheduleConfig``), what to remember
(``CacheConfig``), what to attend to (``AttentionConfig``). A ``MethodConfig`` names one combination of them;
``configs/NAME.yaml`` holds the published ones.

Precedence, strongest first: an explicit argument or ``--set``; the model folder's own sampling defaults; the method's
YAML. ``presets.py`` reads files and merges; here are only the fields and their rules.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longvid.errors import InputError, UnknownNameError

SCHEDULE_KINDS = ("chunk", "rolling", "fifo")
SAMPLERS = ("renoise", "euler", "ab2")
POLICIES = ("full", "window", "sink", "deep-sink", "participative", "ema-sink", "rolling", "radial")
POSITIONS = ("absolute", "window")
ATTENTION_KINDS = ("dense", "radial")
RECENCY_BACKENDS = ("auto", "native")  # the others take no bias
FUSIONS = ("sum", "max")
RECACHES = ("none", "window", "all")
FIFO_CONTEXTS = ("lowest", "clean")
FIFO_INITS = ("trajectory", "renoise", "uniform")
TAIL_FILTERS = ("gaussian", "butterworth", "ideal", "box")
SUBJECT_ATTENTIONS = ("none", "boost", "bridge")
GUIDANCE_FORMS = ("direction", "exact")

#: Names of the types that weights may have, as torch spells them.
DTYPES = ("float32", "bfloat16", "float16")
#: The method that ``longvid.load`` and ``longvid render`` use when none is named.
DEFAULT_METHOD = "deep-forcing"
#: The model that they use when none is named: the one that ships in the package.
DEFAULT_MODEL = "embedded"


def require(ok: bool, argument: str, value: object, rule: str) -> None:
    """Raise ``InputError`` "argument=value: rule" unless ``ok``."""
    if not ok:
        raise InputError(f"{argument}={value!r}: {rule}")


def one_of(argument: str, value: object, known: tuple[str, ...]) -> None:
    """Raise ``UnknownNameError`` unless ``value`` is among ``known``."""
    if value not in known:
        raise UnknownNameError(f"value for {argument}", value, known)


def whole(argument: str, value: object, least: int, rule: str = "") -> None:
    """Raise ``InputError`` unless ``value`` is a whole number of at least ``least`` (a bool is no number)."""
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(good, argument, value, rule or f"must be a whole number, {least} or more")


def finite(argument: str, value: object, least: float | None = None, most: float | None = None) -> None:
    """Raise ``InputError`` unless ``value`` is a finite number within ``[least, most]``."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    good = good and (least is None or value >= least) and (most is None or value <= most)  # type: ignore[operator]
    bounds = " and ".join(
        text
        for text in (f"at least {least}" if least is not None else "", f"at most {most}" if most is not None else "")
        if text
    )
    require(good, argument, value, f"must be a finite number{', ' + bounds if bounds else ''}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """What is denoised together: which latent frames, at which noise level, in each model call."""

    kind: str = "chunk"
    """"chunk": one block at a time; "rolling": blocks at rising noise; "fifo": a diagonal queue of frames."""
    frames_per_block: int = 3
    """Latent frames that share a noise level in one model call."""
    steps: tuple[float, ...] = (1000.0, 750.0, 500.0, 250.0)
    """Timesteps (0..1000, falling) before the warp by ``shift``; one model call each. Unused by "fifo"."""
    shift: float = 5.0
    """Flow-matching timestep shift k: sigma' = k sigma / (1 + (k - 1) sigma)."""
    warp: bool = True
    """Apply ``shift`` to ``steps``; False takes them as they are."""
    sampler: str = "renoise"
    """"renoise": predict x0, then fresh noise at the next sigma; "euler": ODE step; "ab2": Adams-Bashforth (fifo)."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1.0 is one model call a step and no guidance."""
    independent_first_frame: bool = False
    """The first latent frame is a block of its own (image-to-video variants)."""
    num_partitions: int = 4
    """fifo: n of arXiv 2405.11473; the queue holds n windows."""
    window_frames: int | None = None
    """fifo: latent frames of one model call; None takes the model's training length."""
    lookahead: bool = True
    """fifo: half-overlapping windows that keep their noisier half (section 4.3)."""
    eta: float = 0.0
    """fifo: share of fresh noise in each step; 0 is deterministic."""
    context: str = "lowest"
    """fifo: noise level that finished context frames are announced with, "lowest" (reference) or "clean"."""
    init: str = "trajectory"
    """fifo: how the queue is first filled, "trajectory", "renoise" (reference) or "uniform"."""
    window_batch: int = 0
    """fifo: windows of one model call at most; 0 takes all windows of a pass (fewer when memory runs out)."""
    tail_gain: float = 0.0
    """fifo: gain of the coherent tail's low band (Ouroboros-Diffusion, Eq. 3); 0 enqueues plain noise."""
    tail_cutoff: float = 0.25
    """fifo: cutoff of the coherent tail's filter, as a fraction of the Nyquist frequency."""
    tail_retain: float = 1.0
    """fifo: share of the queue's tail that survives re-noising; 0.9089 is the published DDPM schedule's."""
    tail_filter: str = "gaussian"
    """fifo: "gaussian", "butterworth", "ideal" or "box"."""
    subject_attention: str = "none"
    """fifo: subject-aware attention (Ouroboros-Diffusion, Eq. 4): "none", "boost" (the window's own subject tokens once
    more) or "bridge" (the subject of finished frames)."""
    subject_words: tuple[str, ...] = ()
    """fifo: words of the prompt that name its subject; none takes the prompt's first noun phrase."""
    subject_sink: int = 1
    """fifo: first finished frames that "bridge" remembers."""
    subject_recent: int = 3
    """fifo: newest finished frames that "bridge" remembers."""
    memory_guidance: float = 0.0
    """fifo: strength of the self-recurrent guidance (Ouroboros-Diffusion, Eq. 5-6); 0 is off, try 0.03."""
    memory_decay: float = 0.9
    """fifo: decay of the subject memory's moving average."""
    memory_every: int = 2
    """fifo: guide every so-manieth pass."""
    memory_form: str = "direction"
    """fifo: "direction" (the published step) or "exact" (samples the law weighted by exp(-g L))."""

    def __post_init__(self) -> None:
        one_of("schedule.kind", self.kind, SCHEDULE_KINDS)
        one_of("schedule.sampler", self.sampler, SAMPLERS)
        one_of("schedule.context", self.context, FIFO_CONTEXTS)
        one_of("schedule.init", self.init, FIFO_INITS)
        whole("schedule.frames_per_block", self.frames_per_block, 1)
        require(len(self.steps) > 0, "schedule.steps", self.steps, "must hold one timestep or more")
        for step in self.steps:
            finite("schedule.steps", step, 0, 1000)
        falling = all(a > b for a, b in zip(self.steps, self.steps[1:], strict=False))
        require(falling, "schedule.steps", self.steps, "must fall from step to step")
        require(
            self.steps[-1] > 0,
            "schedule.steps",
            self.steps,
            "must end above 0: the last call predicts the clean frames",
        )
        finite("schedule.shift", self.shift)
        require(self.shift > 0, "schedule.shift", self.shift, "must be above 0")
        finite("schedule.guidance_scale", self.guidance_scale, 0, 1000)
        whole("schedule.num_partitions", self.num_partitions, 1)
        if self.window_frames is not None:
            whole("schedule.window_frames", self.window_frames, 2 if self.lookahead else 1)
        finite("schedule.eta", self.eta, 0, 1)
        whole("schedule.window_batch", self.window_batch, 0)
        finite("schedule.tail_gain", self.tail_gain, 0)
        rule = "must be below 1: towards 1 the low frequencies of the queue grow without bound"
        require(self.tail_gain < 1, "schedule.tail_gain", self.tail_gain, rule)
        finite("schedule.tail_cutoff", self.tail_cutoff)
        require(self.tail_cutoff > 0, "schedule.tail_cutoff", self.tail_cutoff, "must be above 0")
        finite("schedule.tail_retain", self.tail_retain, 0, 1)
        one_of("schedule.tail_filter", self.tail_filter, TAIL_FILTERS)
        one_of("schedule.subject_attention", self.subject_attention, SUBJECT_ATTENTIONS)
        whole("schedule.subject_sink", self.subject_sink, 0)
        whole("schedule.subject_recent", self.subject_recent, 0)
        rule = 'must be 1 frame or more together with schedule.subject_sink for "bridge"'
        remembers = self.subject_attention != "bridge" or self.subject_sink + self.subject_recent > 0
        require(remembers, "schedule.subject_recent", self.subject_recent, rule)
        finite("schedule.memory_guidance", self.memory_guidance, 0)
        finite("schedule.memory_decay", self.memory_decay, 0, 1)
        whole("schedule.memory_every", self.memory_every, 1)
        one_of("schedule.memory_form", self.memory_form, GUIDANCE_FORMS)
        require(
            self.sampler != "ab2" or not self.eta, "schedule.eta", self.eta, 'a stochastic step needs sampler="euler"'
        )
        require(
            self.sampler != "ab2" or self.kind == "fifo", "schedule.sampler", self.sampler, 'needs schedule.kind="fifo"'
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """What is remembered: which finished latent frames the attention reads, and where it believes they are."""

    policy: str = "sink"
    """"full", "window", "sink", "deep-sink", "participative", "ema-sink", "rolling" or "radial"."""
    window: int = 21
    """Latent frames that a model call sees, the current block and the sink included; -1 keeps all."""
    sink: int = 0
    """First latent frames, which never leave."""
    positions: str = "absolute"
    """Temporal RoPE positions of cached keys: "absolute" (frame numbers) or "window" (0, 1, ... in reading order)."""
    budget: int = 16
    """participative: latent frames kept at a compression, sink and recent included (N of arXiv 2512.05081)."""
    recent: int = 4
    """participative: newest latent frames that are always kept, and whose queries score the others (R). radial: the
    distance from which on frames are thinned, a power of two."""
    fusion: str = "sum"
    """participative: how a key's scores over the queries become one, "sum" or "max"."""
    max_reuse: int = 7
    """participative: how often a token may be selected (released code; the paper does not name it)."""
    unify: bool = False
    """participative: give selected tokens new phases as equations 10-11 say; the released code never does."""
    per_head: bool = False
    """participative: each attention head keeps tokens of its own choice; the paper makes one choice for all heads of a
    layer."""
    ema_alpha: float = 0.999
    """ema-sink: share of the old sink at each merge (released code; the paper also names 0.99)."""
    static: int = 0
    """ema-sink: first latent frames of the sink that stay as they are, the average behind them (ours; whole blocks)."""
    hole_free: bool = False
    """deep-sink, participative: put the sink directly before the tail; the released code leaves a block's hole."""
    commit_window: int = 0
    """Latent frames that the commit pass sees; 0 is the denoise passes' own view (Commit Forcing: a small number)."""
    cache_frames: int = 0
    """rolling: latent frames of storage; 0 is the least that the window needs."""
    context_noise: float = 0.0
    """Timestep (0..1000) announced in the commit pass."""
    recache: str = "none"
    """At a prompt switch: "none" keeps the keys, "window" re-encodes recent frames, "all" the sink too (LongLive)."""

    def __post_init__(self) -> None:
        one_of("cache.policy", self.policy, POLICIES)
        one_of("cache.positions", self.positions, POSITIONS)
        one_of("cache.fusion", self.fusion, FUSIONS)
        one_of("cache.recache", self.recache, RECACHES)
        window = self.window
        whole("cache.window", window, -1, "must be a whole number of latent frames, 1 or more, or -1 for all")
        require(window != 0, "cache.window", window, "must be 1 or more, or -1 for all")
        whole("cache.sink", self.sink, 0)
        if window > 0:
            rule = f"must be below cache.window={window}: set cache.sink={window - 1} or less, or widen the window"
            require(self.sink < window, "cache.sink", self.sink, rule)
        for name in ("budget", "recent", "max_reuse"):
            whole(f"cache.{name}", getattr(self, name), 1)
        for name in ("commit_window", "cache_frames", "static"):
            whole(f"cache.{name}", getattr(self, name), 0)
        if self.policy == "participative":
            least = self.sink + self.recent
            rule = f"must be at least sink + recent = {least}"
            require(self.budget >= least, "cache.budget", self.budget, rule)
            require(window > 0, "cache.window", window, 'policy "participative" needs a window: set it to 1 or more')
            require(self.budget <= window, "cache.budget", self.budget, f"must be at most cache.window={window}")
        finite("cache.ema_alpha", self.ema_alpha, 0, 1)
        finite("cache.context_noise", self.context_noise, 0, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """What is attended to inside a model call."""

    kind: str = "dense"
    """"dense", or "radial" (arXiv 2506.19852): density falls with temporal distance."""
    backend: str = "auto"
    """"auto", or a backend by name; `longvid env` lists those that work here."""
    strict: bool = False
    """Falling back to a slower backend is an error instead of a warning."""
    recency: float = 0.0
    """beta of a bias that lets cached frames between sink and newest block count less with age (Recency Forcing, arXiv
    2609.19729), the oldest exp(-beta) times as much before normalisation; 0 is off, try 4. Not for "radial"."""

    def __post_init__(self) -> None:
        one_of("attention.kind", self.kind, ATTENTION_KINDS)
        good = isinstance(self.backend, str) and bool(self.backend)
        require(good, "attention.backend", self.backend, 'must be "auto" or the name of a backend')
        finite("attention.recency", self.recency, 0)
        if self.recency:
            rule = f'needs attention.kind="dense", not {self.kind!r}, whose kernels take no bias; use 0'
            require(self.kind == "dense", "attention.recency", self.recency, rule)
            rule = f'takes no bias of attention.recency={self.recency:g}; use "auto" or "native"'
            require(self.backend in RECENCY_BACKENDS, "attention.backend", self.backend, rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodConfig:
    """A named combination of the three choices, with the paper that it comes from."""

    name: str
    """What ``--method`` takes."""
    title: str = ""
    """Name as published."""
    paper: str = ""
    """Where it was published."""
    summary: str = ""
    """One sentence."""
    pipeline: str = "LongVideoPipeline"
    """Name of the pipeline class among longvid's public names."""
    checkpoint: str = ""
    """Weights that the numbers were published for: hub id and file."""
    student: str = ""
    """Student that it renders with where the model has it (`longvid models`); empty: the model itself."""
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    """What to denoise together."""
    cache: CacheConfig = dataclasses.field(default_factory=CacheConfig)
    """What to remember."""
    attention: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)
    """What to attend to."""

    def __post_init__(self) -> None:
        require(isinstance(self.name, str) and bool(self.name), "name", self.name, "must name the method")
        if self.attention.recency:
            value, rule = self.attention.recency, 'needs a cache of past frames, schedule.kind="fifo" has none; use 0'
            require(self.schedule.kind != "fifo", "attention.recency", value, rule)
            rule = 'needs whole frames, cache.policy="participative" keeps single tokens; use 0, or another policy'
            require(self.cache.policy != "participative", "attention.recency", value, rule)
        block, window = self.schedule.frames_per_block, self.cache.window
        if window > 0 and self.schedule.kind != "fifo":
            rule = f"must be at least schedule.frames_per_block={block}: the window includes the current block"
            require(window >= block, "cache.window", window, rule)
            if self.cache.policy not in ("full", "window"):
                rule = (
                    f"leaves no room for a block of {block} in cache.window={window}: "
                    f"set cache.sink={max(window - block, 0)} or less"
                )
                require(self.cache.sink + block <= window, "cache.sink", self.cache.sink, rule)

    @classmethod
    def load(cls, name: str) -> MethodConfig:
        """The method of ``configs/NAME.yaml``. Raises ``UnknownNameError`` naming the nearest method."""
        from longvid.presets import load_method

        return load_method(name)


def from_mapping(cls: type, values: Mapping[str, Any], where: str = "") -> Any:
    """Build a config dataclass from plain values (YAML, command line); nested mappings build nested configs.

    Raises:
        UnknownNameError: a key that the class has not; the message names the nearest.
        InputError: a value of the wrong type, or one that breaks a rule of the class.
    """
    hints = typing.get_type_hints(cls)
    fields = [field.name for field in dataclasses.fields(cls)]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise UnknownNameError("key", f"{where}{key}", [where + name for name in fields])
        arguments[key] = _convert(hints[key], value, f"{where}{key}")
    try:
        return cls(**arguments)
    except TypeError as error:  # a required field is missing
        raise InputError(f"{where or cls.__name__}: {error}".replace("__init__() ", "")) from None


def to_mapping(config: Any) -> dict[str, Any]:
    """The inverse of ``from_mapping``: plain dicts, lists, numbers and strings, ready for YAML or JSON."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            plain[field.name] = to_mapping(value)
        else:
            plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def _convert(kind: Any, value: Any, name: str) -> Any:
    """``value`` as the annotated type ``kind``: the few conversions that YAML and command lines need, no more."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not types.NoneType)
    if dataclasses.is_dataclass(kind):
        if isinstance(value, kind):  # type: ignore[arg-type]
            return value
        require(isinstance(value, Mapping), name, value, "must be a mapping of keys to values")
        return from_mapping(kind, value, name + ".")  # type: ignore[arg-type]
    if typing.get_origin(kind) is tuple:
        listed = isinstance(value, (list, tuple))
        require(listed, name, value, "must be a list, such as [1000, 750, 500, 250]")
        return tuple(_convert(typing.get_args(kind)[0], entry, name) for entry in value)
    if typing.get_origin(kind) is dict:
        require(isinstance(value, Mapping), name, value, "must be a mapping of keys to values")
        return dict(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    fits = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    word = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(kind, str(kind))
    require(fits, name, value, f"must be {word}")
    return value
