"""The model side of a server: one set of weights, and the takes that are being shot with it.

Everything here blocks and runs on the engine's one model thread, except `Take.cancel`.

Shape letters: B batch, T video frames, H W pixels.
"""

from __future__ import annotations

import gc
import inspect
import logging
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from longvid.config import to_mapping
from longvid.errors import InputError
from longvid.presets import load_method, method_names
from longvid.prompts import parse_prompt, parse_switch

from .messages import CachePicture, MethodEntry, SlotEntry
from .protocol import ProtocolError

logger = logging.getLogger("longvid.serve")


class Cancelled(Exception):
    """A take was cancelled in the middle of a block."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a viewer asked for, checked against the model."""

    prompt: str
    seconds: float | None
    seed: int
    method: str
    fps: float
    width: int
    height: int
    frames: int | None
    block_frames: int
    config: Mapping[str, Any]
    notice: str | None = None
    """What the model did not understand of the prompt."""


@dataclass(frozen=True, slots=True)
class MadeBlock:
    """A block fresh from the model. frames: uint8 [T, H, W, 3]. seconds: denoising and decoding.

    switched: a prompt given to `Take.set_prompt` shows from this block on.
    """

    frames: np.ndarray
    index: int
    seconds: float
    switched: bool
    cache: CachePicture | None
    memory_bytes: int


class Take(Protocol):
    """A video in the making. `make` and `set_prompt` alternate on the model thread."""

    order: Order

    @property
    def memory_bytes(self) -> int:
        """Model memory that the take holds."""

    def make(self) -> MadeBlock | None:
        """The next block, or None behind the last. Raises Cancelled, and whatever the model raises."""

    def set_prompt(self, prompt: str, hard_cut: bool) -> str | None:
        """Another prompt from the next block on; returns what the model did not understand. Raises InputError."""

    def cancel(self) -> None:
        """Stop at the next step of the model. From any thread."""

    def close(self) -> None:
        """Free the cache and everything else. It may be called more than once."""


class Studio(Protocol):
    """A model, ready to shoot takes."""

    model: str
    method: str
    """The default method."""
    methods: tuple[MethodEntry, ...]
    fps: float
    width: int
    height: int

    def check(self, prompt: str, seconds: float | None, seed: int, method: str | None, fps: float | None) -> Order:
        """Resolve a request without touching a weight. Raises ProtocolError "bad_request"."""

    def open(self, order: Order) -> Take:
        """Encode the prompt, allocate the cache."""

    def room_for(self, order: Order) -> bool:
        """Whether memory allows another take like that, as far as earlier ones tell."""


class PipelineStudio:
    """A LongVideoPipeline and its siblings: one pipeline a method, all on the same components.

    pipe: its method is the default one, overrides included. methods: names that viewers may ask for; all presets that
    the model can run when None. model: the name to announce. own_students: other methods render with the students of
    `model` that they pick themselves (one more transformer a student); else all with the weights of `pipe`.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        model: str = "embedded",
        methods: tuple[str, ...] | None = None,
        own_students: bool = False,
    ) -> None:
        self.model, self.method = model, pipe.method.name
        self._pipes: dict[str, Any] = {self.method: pipe}
        self._own_students = own_students
        self._of_student: dict[str, Any] = {pipe.student: pipe}
        facts = pipe.check_inputs("a", seconds=1.0, seed=0)
        self.fps, self.width, self.height = float(facts.fps), facts.width, facts.height
        self._known_bytes: dict[str, int] = {}
        names = [self.method, *(name for name in methods or method_names() if name != self.method)]
        entries = []
        for name in names:
            try:
                config = pipe.method if name == self.method else load_method(name)
                self._pipe(name).check_inputs("a", seconds=1.0, seed=0)
            except InputError as error:
                if methods is not None:
                    raise
                logger.info("method %s is not offered: %s", name, error)
                continue
            entries.append(MethodEntry(name=name, title=config.title or name, summary=config.summary))
        self.methods = tuple(entries)

    def _pipe(self, method: str) -> Any:
        """The pipeline of a method. The default one's components and sampling defaults, the method's own class."""
        if method not in self._pipes:
            import longvid

            base = self._home(method)
            cls = getattr(longvid, load_method(method).pipeline)
            names = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
            defaults = {
                name: base.config[name] for name in names if name not in base.components and name in base.config
            }
            pipe = cls(**{name: part for name, part in base.components.items() if name in names}, **defaults)
            pipe.set_progress_bar_config(disable=True)
            pipe.student = base.student
            self._pipes[method] = pipe.use_method(method)
        return self._pipes[method]

    def _home(self, method: str) -> Any:
        """The pipeline whose weights a method renders with; loaded for the first method of each student."""
        default = self._pipes[self.method]
        if not self._own_students:
            return default
        from longvid.models.students import BASE, pick_student

        student = pick_student(self.model, load_method(method))
        name = BASE if student is None else student.name
        if name not in self._of_student:
            from longvid.pipelines.loading import load

            parts = default.components.items()
            shared = {part: value for part, value in parts if part != "transformer" and value is not None}
            options: dict[str, Any] = {"device": default.device, "dtype": default.transformer.dtype}
            self._of_student[name] = load(self.model, method, student=name, **options, **shared)
        return self._of_student[name]

    def check(self, prompt: str, seconds: float | None, seed: int, method: str | None, fps: float | None) -> Order:
        method = method or self.method
        if method not in {entry.name for entry in self.methods}:
            known = ", ".join(entry.name for entry in self.methods)
            raise ProtocolError("bad_request", f"method={method[:64]!r}: must be one of {known}")
        pipe = self._pipe(method)
        try:
            request = pipe.check_inputs(prompt, seconds=seconds, seed=seed, endless=True)
        except InputError as error:
            raise ProtocolError("bad_request", str(error)) from None
        return Order(
            prompt=prompt,
            seconds=seconds,
            seed=seed,
            method=method,
            fps=fps or float(request.fps),
            width=request.width,
            height=request.height,
            frames=request.frames,
            block_frames=request.grid.frames_per_block * pipe._facts.temporal,
            config=to_mapping(request.method),
            notice=_misread(pipe, prompt),
        )

    def open(self, order: Order) -> PipelineTake:
        return PipelineTake(self._pipe(order.method), order, self._known_bytes)

    def room_for(self, order: Order) -> bool:
        wanted = self._known_bytes.get(order.method, 0)
        # A quarter more than it holds between blocks: activations come and go.
        return wanted * 1.25 <= free_memory(self._pipes[self.method])

    def warm_up(self) -> float:
        """Make one block of the default method, so that the first viewer does not wait for it; returns seconds."""
        started = perf_counter()
        take = self.open(self.check("a red ball bounces over green hills", None, 0, None, None))
        try:
            take.make()
        finally:
            take.close()
        return perf_counter() - started


class PipelineTake:
    """One rollout with its own cache and its own decode stream.

    known_bytes: the most that a take of each method has held so far; kept up to date.
    """

    def __init__(self, pipe: Any, order: Order, known_bytes: dict[str, int]) -> None:
        from longvid.models.vae_stream import streaming_decoder

        self.order = order
        self._cancel = threading.Event()
        self._rollout: Any = pipe.rollout(
            order.prompt,
            seconds=order.seconds,
            seed=order.seed,
            callback_on_step_end=self._step,
        )
        self._pipe: Any = pipe
        self._decoder: Any = streaming_decoder(pipe.vae)
        self._blocks = pipe.decoded(self._rollout, order.frames, self._decoder)
        self._awaited: list[str] = []
        self._known_bytes = known_bytes
        self._measured()

    def _measured(self) -> int:
        """`memory_bytes`, remembered: a decoder's state and a queue come with the first block."""
        held = self.memory_bytes
        self._known_bytes[self.order.method] = max(held, self._known_bytes.get(self.order.method, 0))
        return held

    def _step(self, pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        if self._cancel.is_set():
            raise Cancelled
        return {}

    @property
    def memory_bytes(self) -> int:
        if self._rollout is None:
            return 0
        cache = getattr(self._rollout, "cache", None)
        held = getattr(self._rollout, "nbytes", 0) if cache is None else cache.nbytes
        return int(held) + int(self._decoder.state_bytes)

    def make(self) -> MadeBlock | None:
        from longvid.pipelines.output import to_uint8

        if self._rollout is None or self._cancel.is_set():
            raise Cancelled
        started = perf_counter()
        made = next(self._blocks, None)
        if made is None:
            return None
        block, video = made
        frames = to_uint8(video)[0]
        switched = bool(self._awaited) and self._rollout.prompt == self._awaited[-1]
        if switched:
            self._awaited.clear()
        return MadeBlock(frames, block.index, perf_counter() - started, switched, self._picture(), self._measured())

    def _picture(self) -> CachePicture | None:
        cache = getattr(self._rollout, "cache", None)
        if cache is None:
            return None
        slots = [SlotEntry(frame=frame, role=cache.role(frame)) for frame in cache.resident]
        return CachePicture(capacity=cache.policy.capacity, bytes=cache.nbytes, slots=slots)

    def set_prompt(self, prompt: str, hard_cut: bool) -> str | None:
        self._rollout.set_prompt(prompt, hard_cut=hard_cut)
        self._awaited.append(parse_switch(prompt))
        return _misread(self._pipe, prompt)

    def cancel(self) -> None:
        self._cancel.set()

    def close(self) -> None:
        self._cancel.set()
        if self._rollout is None:
            return
        self._blocks.close()
        rollout = weakref.ref(self._rollout)
        self._rollout = self._blocks = self._decoder = self._pipe = None
        if rollout() is not None:
            # It refers to itself, as FIFO's do, or an exception's traceback does: its memory would stay until the next
            # collection. Not always, because a full one holds up every viewer.
            gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _misread(pipe: Any, prompt: str) -> str | None:
    """A caption encoder's own words on what it does not understand of a prompt schedule; None: all is clear."""
    report = getattr(pipe.text_encoder, "report", None)
    if report is None:
        return None
    told = [report(part.text).message() for part in parse_prompt(prompt).parts]
    return "; ".join(dict.fromkeys(filter(None, told))) or None


def free_memory(pipe: Any) -> int:
    """Bytes that the pipeline's device still has."""
    import torch

    device = torch.device(pipe._execution_device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
