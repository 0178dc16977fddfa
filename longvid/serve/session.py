"""A viewer's session: what it asked for, what was made for it, what it has seen. Lives on the event loop.

::

    take (model) -> add_block -> unsent: frames and acks in order -> pop -> ring: sent, not shown -> acknowledge
                                                                                 `-> replay after a resume

Ids are given when a frame is sent, so frames that an event made stale can be dropped without a gap.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Literal, NamedTuple, Protocol

import numpy as np

from .encoder import FrameEncoder, Picture, make_encoder
from .events import EventBook, check_event
from .limits import Limits
from .messages import Accepted, Done, Error, ErrorCode, Event, EventAck, Format, FrameHeader, Message, Queue, Stats
from .meter import LiveMeter
from .pacer import Pacer
from .protocol import ProtocolError, dump_message, pack_frame
from .ring import FrameRing, SentFrame
from .studio import MadeBlock, Order, Take
from .tally import Tally

State = Literal["opening", "running", "done", "failed"]


class Viewer(Protocol):
    """The connection that a session is attached to."""

    def wake(self) -> None:
        """Something may be sent."""

    def refuse(self, error: ProtocolError) -> None:
        """Tell the viewer that something it asked for was not done."""

    def drop(self, error: ProtocolError) -> None:
        """Tell the viewer why and close."""


class _Unsent(NamedTuple):
    block: int
    picture: Picture


class Session:
    """One video for one viewer. Nothing here blocks, but `encode` and `measure`, which belong on another thread."""

    def __init__(self, order: Order, kind: Format, limits: Limits, *, clock: Callable[[], float] = monotonic) -> None:
        self.name, self.token = secrets.token_hex(4), secrets.token_urlsafe(24)
        self.order, self.kind, self.limits, self.clock = order, kind, limits, clock
        self.state: State = "opening"
        self.take: Take | None = None
        self.viewer: Viewer | None = None
        self.paused_at: float | None = None
        self.served = 0.0
        """Model seconds, for fair sharing; a session that waited starts from the others' level."""
        self.making = False
        """The model is at a block of it."""
        self.posting = 0
        """Blocks that are being encoded."""
        self.scheduled = 0
        """Frames that the model has made, being encoded ones included."""
        self.exhausted = False
        """The model has made the last block."""
        self.born = self.detached_at = self.progress_at = clock()
        self.ring = FrameRing(limits.history_frames)
        self.pacer = Pacer(order.fps)
        self.final: Done | Error | None = None
        self.prompts: deque[Event] = deque()
        """Prompt events that the model has not been given yet."""
        self._given: list[tuple[Event, str | None]] = []  # given to the model, not visible yet
        self._controls: deque[Event] = deque()  # pauses and resumes, acknowledged between blocks
        self._events = EventBook()
        self._unsent: deque[_Unsent | EventAck] = deque()
        self._stats: Stats | None = None
        self._encoder: FrameEncoder = make_encoder(kind, order.width, order.height, order.fps)
        self._meter = LiveMeter(order.fps)
        self.tally = Tally()

    # ---------------------------------------------------------------- what it is

    @property
    def paused(self) -> bool:
        return self.paused_at is not None

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed")

    @property
    def unsent(self) -> int:
        """Frames that are encoded and not yet sent."""
        return sum(isinstance(item, _Unsent) for item in self._unsent)

    @property
    def total(self) -> int:
        """Id that the next frame to be made will get."""
        return self.ring.next_id + self.unsent

    @property
    def memory_bytes(self) -> int:
        return 0 if self.take is None else self.take.memory_bytes

    def outstanding_blocks(self) -> int:
        """Blocks that are made and not yet acknowledged whole, those being made or encoded included."""
        blocks = self.ring.unacked_blocks() | {item.block for item in self._unsent if isinstance(item, _Unsent)}
        return len(blocks) + self.posting + self.making

    def accepted(self, *, resumed: bool, replay_from: int) -> Accepted:
        order = self.order
        return Accepted(
            session=self.name,
            resume_token=self.token,
            resumed=resumed,
            replay_from=replay_from,
            seed=order.seed,
            config=dict(order.config),
            fps=order.fps,
            width=order.width,
            height=order.height,
            format=self.kind,
            frames=order.frames,
            block_frames=order.block_frames,
            paused=self.paused,
            notice=order.notice,
        )

    # ---------------------------------------------------------------- flow control

    def wants_block(self, now: float) -> float | None:
        """Seconds until the model should make its next block; 0 is now, None is not before something happens."""
        if self.state != "running" or self.viewer is None or self.paused or self.exhausted:
            return None
        if self.making or self.posting > 1:
            return None
        if self.outstanding_blocks() >= self.limits.ahead_blocks:
            return None
        made = self.total + self.posting * self.order.block_frames
        return self.pacer.wait(made, self.order.block_frames, self.limits.ahead_blocks, now)

    @property
    def stalled(self) -> bool:
        """Generation waits for acknowledgements."""
        return (
            self.state == "running"
            and self.viewer is not None
            and not self.paused
            and not self.making
            and not self.posting
            and self.outstanding_blocks() >= self.limits.ahead_blocks
        )

    def acknowledge(self, last_id: int) -> None:
        """The viewer has shown frames up to last_id. Raises ProtocolError for a frame that was never sent."""
        if last_id >= self.ring.next_id:
            raise ProtocolError("bad_message", f"last_id={last_id}: the last frame sent is {self.ring.next_id - 1}")
        if last_id > self.ring.acked:
            self.progress_at = self.clock()
        self.ring.acknowledge(last_id)

    # ---------------------------------------------------------------- viewers come and go

    def attach(self, viewer: Viewer) -> None:
        """The connection that sends from now on; the one before is told that it was superseded."""
        if self.viewer is not None:
            self.viewer.drop(ProtocolError("superseded", "another connection has resumed this session"))
        self.viewer = viewer
        self.progress_at = self.clock()

    def detach(self, viewer: Viewer) -> None:
        """That connection is gone; nothing happens when it was superseded."""
        if self.viewer is viewer:
            self.viewer, self.detached_at = None, self.clock()

    # ---------------------------------------------------------------- events

    def take_event(self, event: Event) -> EventAck | None:
        """Note an event; the acknowledgement when it came before and has been acknowledged. Raises ProtocolError."""
        taken = self._events.find(event)
        if taken is not None and taken.ack is not None:
            if taken.ack not in self._unsent:
                return taken.ack
            self._unsent.insert(self._unsent.index(taken.ack), taken.ack)  # not before the frames that it follows
            return None
        if taken is None:
            if self.over:
                raise ProtocolError("no_session", "event: the session is over", event_id=event.event_id)
            check_event(event, self.limits.prompt_characters)
        waiting = len(self.prompts) + len(self._given) + len(self._controls) + self._events.repeats
        if waiting >= self.limits.pending_events:
            raise ProtocolError(
                "rate_limited",
                f"event: {waiting} events wait for their acknowledgement already",
                retryable=True,
                event_id=event.event_id,
            )
        if taken is not None:
            taken.repeats += 1
            return None
        self._events.add(event)
        if event.kind == "prompt":
            self.prompts.append(event)
        elif event.kind != "stop":
            self._set_paused(event.kind == "pause")
            self._controls.append(event)
            self.settle()
        return None

    def _set_paused(self, paused: bool) -> None:
        now = self.clock()
        if paused and self.paused_at is None:
            self.paused_at = now
        elif not paused and self.paused_at is not None:
            self.pacer.hold(now - self.paused_at)
            self.paused_at, self.progress_at = None, now

    def settle(self) -> None:
        """Acknowledge pauses and resumes, once no block is under way."""
        if self.making or self.posting:
            return
        while self._controls:
            self._acknowledge_event(self._controls.popleft())

    def prompt_given(self, event: Event, notice: str | None) -> None:
        """The model has the prompt; it shows from some block on."""
        self._given.append((event, notice))

    def refuse_event(self, event: Event, error: Exception) -> None:
        """The model would not take the prompt; the event may be sent again, mended."""
        for _ in range(self._events.refuse(event)):
            if self.viewer is not None:
                self.viewer.refuse(ProtocolError("bad_request", str(error), event_id=event.event_id))

    def _acknowledge_event(self, event: Event, *, flushed: int = 0, notice: str | None = None) -> None:
        ack = EventAck(
            event_id=event.event_id,
            kind=event.kind,
            applied_at_frame=self.total,
            applied_at_block=self.tally.blocks,
            flushed=flushed,
            notice=notice,
        )
        self._unsent.extend([ack] * self._events.acknowledge(ack))

    def flush(self) -> int:
        """Drop frames that were made and not sent; returns how many. Acknowledgements stay, and name what follows."""
        kept = [item for item in self._unsent if isinstance(item, EventAck)]
        dropped = len(self._unsent) - len(kept)
        if dropped:
            moved = [ack.model_copy(update={"applied_at_frame": self.ring.next_id}) for ack in kept]
            for ack in moved:
                self._events.amend(ack)
            self._unsent = deque(moved)
        return dropped

    # ---------------------------------------------------------------- blocks

    def encode(self, frames_THW3: np.ndarray) -> list[Picture]:
        """Pictures of a block's frames. On another thread, one block at a time."""
        return self._encoder.encode(frames_THW3)

    def measure(self, frames_THW3: np.ndarray) -> None:
        """Drift and seam of a block's frames. On another thread, one block at a time."""
        self._meter.update(frames_THW3)

    def add_block(self, made: MadeBlock, pictures: list[Picture]) -> None:
        """A block is ready to be sent. When a prompt switch shows from it on, older frames are stale and dropped."""
        if self.over:
            return
        if made.switched:
            flushed = self.flush()
            for event, notice in self._given:
                self._acknowledge_event(event, flushed=flushed, notice=notice)
            self._given.clear()
        now = self.clock()
        self.pacer.made(self.total, now)
        self._unsent.extend(_Unsent(made.index, picture) for picture in pictures)
        self.tally.add(made.index, len(pictures), made.seconds, now)
        if self.outstanding_blocks() == 1:
            self.progress_at = now  # nothing was waiting: the viewer's time begins

    def set_stats(self, made: MadeBlock, encode_seconds: float, sessions: int) -> None:
        """A new picture of how it goes, in place of one that was not sent."""
        tally = self.tally
        ahead = self.pacer.ahead(self.total, self.clock()) / self.order.block_frames
        self._stats = Stats(
            block=made.index,
            frames=tally.frames,
            fps=tally.fps,
            time_to_first_frame=tally.first_frame_seconds,
            block_ms=tally.block_times,
            encode_ms=1000 * encode_seconds,
            cache=made.cache,
            memory_bytes=made.memory_bytes,
            drift=self._meter.drift,
            seam=self._meter.seam,
            queue=Queue(unsent=self.unsent, unacked=self.ring.unacked, ahead_blocks=ahead, sessions=sessions),
        )

    # ---------------------------------------------------------------- the end

    def finish(self, reason: Literal["finished", "stopped"]) -> None:
        """The video is over; frames that are made are still sent."""
        if self.over:
            return
        self.state = "done"
        self._abandon_events()
        self.final = Done(reason=reason, frames=self.total)

    def stop(self, event: Event) -> None:
        """The viewer has seen enough: frames that were not sent are dropped."""
        if self.take is not None:
            self.take.cancel()
        self._acknowledge_event(event, flushed=self.flush())
        self.finish("stopped")

    def fail(self, code: ErrorCode, message: str, *, retryable: bool = False) -> None:
        """The video cannot go on; frames that are made are still sent."""
        if self.over:
            return
        self.state = "failed"
        self._abandon_events()
        self.final = Error(code=code, message=message, retryable=retryable, fatal=True)

    def _abandon_events(self) -> None:
        """Events that came too late for any block are acknowledged as affecting the frame that never comes."""
        for event in [*(event for event, _ in self._given), *self.prompts, *self._controls]:
            self._acknowledge_event(event)
        self._given.clear()
        self.prompts.clear()
        self._controls.clear()

    # ---------------------------------------------------------------- to the wire

    def pop(self) -> bytes | str | None:
        """The next thing to send: binary frames and acknowledgements in order, then stats; None when there is none."""
        if self._unsent:
            item = self._unsent.popleft()
            if isinstance(item, EventAck):
                return dump_message(item)
            return self._send(item).data
        if self._stats is not None:
            stats, self._stats = self._stats, None
            return dump_message(stats)
        return None

    def _send(self, item: _Unsent) -> SentFrame:
        frame_id = self.ring.next_id
        header = FrameHeader(
            id=frame_id,
            pts=frame_id / self.order.fps,
            block=item.block,
            format=self.kind,
            width=self.order.width,
            height=self.order.height,
            sha=hashlib.sha256(item.picture.data).hexdigest(),
            key=item.picture.key,
        )
        frame = SentFrame(frame_id, item.block, item.picture.key, pack_frame(header, item.picture.data))
        self.ring.append(frame)
        if self.tally.first_frame_seconds is None:
            self.tally.first_frame_seconds = self.clock() - self.born
        return frame

    @property
    def last_word(self) -> Message | None:
        """What ends the session, once everything before it was sent."""
        return None if self._unsent or self._stats is not None else self.final

    def close(self) -> None:
        """Free the encoder and the meter: an ended session keeps frames alone. On the thread that encodes."""
        self._encoder.close()
        self._meter = LiveMeter(self.order.fps)
