"""The messages of protocol version 1 and what may be in them. docs/protocol.md describes how they follow each other.

Nothing is accepted that is not described here: unknown types and fields, NaN, infinities, numbers out of range.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PROTOCOL_VERSION = 1
#: Integers beyond this are not exact in JavaScript, which reads them as doubles.
MAX_SAFE_INTEGER = 2**53 - 1
MAX_SECONDS = 7 * 24 * 3600

Format = Literal["jpeg", "webp", "h264"]
FORMATS: tuple[Format, ...] = ("jpeg", "webp", "h264")

ErrorCode = Literal[
    "bad_message",
    "too_large",
    "bad_request",
    "conflict",
    "rate_limited",
    "no_session",
    "unknown_session",
    "busy",
    "out_of_memory",
    "generation_failed",
    "superseded",
    "start_timeout",
    "idle_timeout",
    "stall_timeout",
    "pause_timeout",
    "too_many_errors",
    "shutting_down",
]


class Message(BaseModel):
    """Base of all messages: immutable, no unknown fields, no conversions, no NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Id = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")]
FrameId = Annotated[int, Field(ge=-1, le=MAX_SAFE_INTEGER)]
Count = Annotated[int, Field(ge=0, le=MAX_SAFE_INTEGER)]
Number = Annotated[float, Field(ge=0)]

# ---------------------------------------------------------------- client -> server


class Start(Message):
    """Begin a video. One session at a time on a connection; another may follow ``done`` or a fatal ``error``."""

    type: Literal["start"] = "start"
    prompt: Annotated[str, Field(min_length=1)]
    """Text, or a prompt schedule: ``a man walks[5s] | he runs[10s] | night falls[10s#]``."""
    seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] | None = None
    """Length of the video; null is endless, unless the prompt schedule has a length."""
    seed: Annotated[int, Field(ge=0, le=MAX_SAFE_INTEGER)] | None = None
    """null: the server draws one and tells it in ``accepted``."""
    method: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """One of ``hello.methods``; null is ``hello.method``."""
    format: Format = "jpeg"
    """Encoding of the frames."""
    fps: Annotated[float, Field(ge=1, le=120)] | None = None
    """Pace of the video; null is the model's own."""


class Event(Message):
    """Steer the running session. Answered by ``event.ack`` with the same event_id, or by ``error``."""

    type: Literal["event"] = "event"
    event_id: Id
    """Chosen by the client; sending the same event again is harmless: it happens once, and each copy is answered."""
    kind: Literal["prompt", "pause", "resume", "stop"]
    prompt: Annotated[str, Field(min_length=1)] | None = None
    """The new prompt; required for kind "prompt", not allowed otherwise."""
    hard_cut: bool = False
    """Kind "prompt": begin a new scene instead of flowing out of the running one."""


class Ack(Message):
    """All frames up to last_id were shown. Generation waits when acknowledgements lag behind."""

    type: Literal["ack"] = "ack"
    last_id: FrameId


class Resume(Message):
    """Take a session up again, on a new connection. Frames behind last_id are sent again."""

    type: Literal["resume"] = "resume"
    resume_token: Id
    last_id: FrameId = -1
    """The last frame that was shown; -1: none."""


class Ping(Message):
    """Answered by ``pong``. Any message keeps a connection from counting as idle; this one does nothing else."""

    type: Literal["ping"] = "ping"


ClientMessage = Annotated[Start | Event | Ack | Resume | Ping, Field(discriminator="type")]
CLIENT_MESSAGES: tuple[type[Message], ...] = (Start, Event, Ack, Resume, Ping)

# ---------------------------------------------------------------- server -> client


class MethodEntry(Message):
    """A method that ``start`` may name."""

    name: str
    title: str
    summary: str


class ClientLimits(Message):
    """Bounds that a client has to respect."""

    start_bytes: int
    control_bytes: int
    prompt_characters: int
    events_per_second: float
    pending_events: int
    ahead_blocks: int
    history_frames: int
    idle_timeout: float
    stall_timeout: float
    pause_timeout: float
    grace: float


class Hello(Message):
    """First message of every connection."""

    type: Literal["hello"] = "hello"
    protocol: int = PROTOCOL_VERSION
    server: str
    """Name and version of the software."""
    model: str
    method: str
    """The default method."""
    methods: list[MethodEntry]
    formats: list[Format] = list(FORMATS)
    fps: float
    """The model's own pace."""
    width: int
    height: int
    limits: ClientLimits


class Accepted(Message):
    """A session has begun, or was taken up again."""

    type: Literal["accepted"] = "accepted"
    session: str
    """Public name of the session, as it stands in logs."""
    resume_token: str
    """Secret: whoever has it can take the session over."""
    resumed: bool
    replay_from: Count
    """Id of the frame that comes next; after a resume, the first one that is sent again."""
    seed: Count
    config: dict[str, Any]
    """The resolved method: schedule, cache, attention."""
    fps: float
    width: int
    height: int
    format: Format
    frames: Count | None
    """Frames in all; null: endless."""
    block_frames: Count
    """Frames of a block."""
    paused: bool
    notice: str | None = None
    """What the model did not understand of the prompt."""


class EventAck(Message):
    """An event has taken effect. Comes before the frame that it names, and after all frames before that."""

    type: Literal["event.ack"] = "event.ack"
    event_id: str
    kind: Literal["prompt", "pause", "resume", "stop"]
    applied_at_frame: Count
    """Id of the first frame that the event affects. For "pause": the frame that will follow after "resume"."""
    applied_at_block: Count
    flushed: Count = 0
    """Frames that were made, not yet sent, and made stale by the event: they are dropped, ids stay contiguous."""
    notice: str | None = None
    """What the model did not understand of the prompt."""


class SlotEntry(Message):
    """A frame in the cache."""

    frame: int
    """Latent frame of the video."""
    role: Literal["sink", "merged", "selected", "recent"]


class CachePicture(Message):
    """What the model remembers."""

    capacity: Count
    """Frames that fit."""
    bytes: Count
    slots: list[SlotEntry]
    """Resident frames, oldest first."""


class BlockTimes(Message):
    """Model and decoder time of a block, in milliseconds, over the last 100 blocks."""

    last: Number
    median: Number
    p95: Number


class Queue(Message):
    """What is between the model and the eyes."""

    unsent: Count
    """Frames encoded and not yet sent."""
    unacked: Count
    """Frames sent and not yet acknowledged."""
    ahead_blocks: Number
    """Blocks by which generation is ahead of the display clock."""
    sessions: Count
    """Sessions that share the model."""


class Stats(Message):
    """How it goes. Once a block; a newer one replaces one that was not sent yet."""

    type: Literal["stats"] = "stats"
    block: Count
    frames: Count
    """Frames made so far."""
    fps: Number | None
    """Frames made a second over the last blocks, waiting included; null until the second block."""
    time_to_first_frame: Number | None
    """Seconds from ``start`` to the first frame handed to the connection."""
    block_ms: BlockTimes
    encode_ms: Number
    """Time to encode and measure the last block's frames."""
    cache: CachePicture | None
    """null: the method keeps no frame cache."""
    memory_bytes: Count
    """Model memory that the session holds."""
    drift: dict[str, float]
    """Means over the last block: brightness, contrast (0-255), saturation (0-1), sharpness; where known also flicker
    (VBench's score, 1 is none), motion (pixels a frame, of the 5 % of the picture that move most), start_distance and
    identity_drift (grey levels), frozen (1 when nothing has moved for a second, else 0)."""
    seam: Number | None
    """Change at the block's border over the change inside the block: 1 is seamless."""
    queue: Queue


class Done(Message):
    """The video is over; nothing follows but ``stats`` of the end."""

    type: Literal["done"] = "done"
    reason: Literal["finished", "stopped"]
    frames: Count
    """Frames of the session: the last id + 1."""


class Error(Message):
    """Something did not work. ``fatal`` ends the session; other errors leave it as it was."""

    type: Literal["error"] = "error"
    code: ErrorCode
    message: str
    retryable: bool
    """The same request may succeed later."""
    fatal: bool = False
    event_id: str | None = None
    """That of the message that was refused, where one could be read."""


class Pong(Message):
    """Answer to ``ping``."""

    type: Literal["pong"] = "pong"


class FrameHeader(Message):
    """Header of a binary message; the encoded picture follows it."""

    type: Literal["frame"] = "frame"
    id: Count
    """Contiguous from 0."""
    pts: Number
    """Seconds from the session's beginning: id / fps."""
    block: Count
    format: Format
    width: int
    height: int
    sha: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the picture's bytes."""
    key: bool
    """Decodes without any frame before it. Always so for jpeg and webp; for h264 the first frame of a block."""


SERVER_MESSAGES: tuple[type[Message], ...] = (Hello, Accepted, EventAck, Stats, Done, Error, Pong, FrameHeader)
