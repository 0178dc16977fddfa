"""One websocket: reads a viewer's messages, writes its session's frames, and keeps both within their limits."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from time import monotonic

from starlette.websockets import WebSocket, WebSocketDisconnect

import longvid

from .engine import Engine
from .messages import Ack, ClientLimits, Error, Event, Hello, Message, Ping, Pong, Resume, Start
from .protocol import ProtocolError, dump_message, parse_message
from .session import Session

logger = logging.getLogger("longvid.serve")

#: Close codes by the error that closes; 1008 is for whatever a client did wrong.
_CLOSE_CODES = {
    "shutting_down": 1012,
    "superseded": 4001,
    "start_timeout": 4008,
    "idle_timeout": 4008,
    "stall_timeout": 4008,
}
_CLOSE_SECONDS = 2.0
_PENDING_REPLIES = 32


class TokenBucket:
    """A rate with bursts."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._at = float(burst), monotonic()

    def take(self) -> float:
        """Seconds until one more would be within the rate; 0: it is, and was taken."""
        now = monotonic()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return (1 - self._level) / self._rate
        self._level -= 1
        return 0.0


class Connection:
    """A viewer's websocket, already accepted. `run()` it to its end."""

    def __init__(self, socket: WebSocket, engine: Engine) -> None:
        self._socket, self._engine, self._limits = socket, engine, engine.limits
        self._session: Session | None = None
        self._cursor = 0  # next frame of the ring to send
        self._told_end = False
        self._replies: deque[Message] = deque()
        self._room = asyncio.Event()  # fewer replies wait than may
        self._wake = asyncio.Event()
        self._verdict: ProtocolError | None = None
        self._errors = 0
        self._events = TokenBucket(self._limits.events_per_second, self._limits.event_burst)
        self._messages = TokenBucket(self._limits.messages_per_second, self._limits.message_burst)
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None

    # ---------------------------------------------------------------- what the session tells

    def wake(self) -> None:
        self._wake.set()

    def refuse(self, error: ProtocolError) -> None:
        self._reply(_error(error))

    def drop(self, error: ProtocolError) -> None:
        """End the connection: the error goes out if the socket still takes it, then the close."""
        if self._verdict is None:
            self._verdict = error
        if self._reader is not None:
            self._reader.cancel()

    # ---------------------------------------------------------------- life

    async def run(self) -> None:
        """Serve until either side ends it. The session stays behind for its grace time."""
        self._reply(self._hello())
        self._reader = asyncio.ensure_future(self._read())
        self._writer = asyncio.ensure_future(self._write())
        if self._verdict is not None:
            self._reader.cancel()
        try:
            await asyncio.wait([self._reader, self._writer], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (self._reader, self._writer):
                task.cancel()
            await asyncio.gather(self._reader, self._writer, return_exceptions=True)
            session, self._session = self._session, None
            if session is not None:
                self._engine.leave(session, self)
            for task in (self._reader, self._writer):
                error = None if task.cancelled() else task.exception()
                if error is not None and not isinstance(error, (WebSocketDisconnect, OSError, RuntimeError)):
                    logger.error("connection: failed", exc_info=error)
            await self._close()

    async def _close(self) -> None:
        error = self._verdict
        # A socket that takes nothing any more must not hold the server.
        with suppress(TimeoutError, WebSocketDisconnect, OSError, RuntimeError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                if error is not None:
                    self._engine.telemetry.errors[error.code] += 1
                    await self._socket.send_text(dump_message(_error(error)))
                code = 1000 if error is None else _CLOSE_CODES.get(error.code, 1008)
                await self._socket.close(code, "" if error is None else error.code)

    def _hello(self) -> Hello:
        studio, limits = self._engine.studio, self._limits
        return Hello(
            server=f"longvid/{longvid.__version__}",
            model=studio.model,
            method=studio.method,
            methods=self._engine.methods,
            fps=studio.fps,
            width=studio.width,
            height=studio.height,
            limits=ClientLimits(**{name: getattr(limits, name) for name in ClientLimits.model_fields}),
        )

    # ---------------------------------------------------------------- reading

    async def _read(self) -> None:
        limits = self._limits
        deadline = asyncio.get_running_loop().time() + limits.start_timeout
        started = False
        while True:
            try:
                if started:
                    async with asyncio.timeout(limits.idle_timeout):
                        message = await self._socket.receive()
                else:
                    async with asyncio.timeout_at(deadline):
                        message = await self._socket.receive()
            except TimeoutError:
                self._verdict = (
                    ProtocolError(
                        "idle_timeout", f"no message for {limits.idle_timeout:g} s; send ping", retryable=True
                    )
                    if started
                    else ProtocolError(
                        "start_timeout", f"no start or resume in {limits.start_timeout:g} s", retryable=True
                    )
                )
                return
            if message["type"] == "websocket.disconnect":
                return
            try:
                await self._handle(message.get("text"))
            except ProtocolError as error:
                self._errors += 1
                if self._errors >= limits.errors_per_connection:
                    self._verdict = ProtocolError("too_many_errors", f"{self._errors} errors on one connection")
                    return
                self._reply(_error(error))
            started = started or self._session is not None
            # Neither a flood nor a client that does not read its answers makes anything grow: reading waits.
            while wait := self._messages.take():
                await asyncio.sleep(wait)
            while len(self._replies) >= _PENDING_REPLIES:
                self._room.clear()
                await self._room.wait()

    async def _handle(self, text: str | None) -> None:
        if text is None:
            raise ProtocolError("bad_message", "message: is binary; clients send JSON text")
        limits = self._limits
        message = parse_message(text, start_bytes=limits.start_bytes, control_bytes=limits.control_bytes)
        if isinstance(message, Ping):
            self._reply(Pong())
        elif isinstance(message, Start):
            self._begin(message)
        elif isinstance(message, Resume):
            self._resume(message)
        elif self._session is None:
            event_id = message.event_id if isinstance(message, Event) else None
            raise ProtocolError("no_session", f"{message.type}: no session; send start or resume", event_id=event_id)
        elif isinstance(message, Ack):
            self._session.acknowledge(message.last_id)
            self._engine.wake()
        else:
            self._event(self._session, message)

    def _begin(self, start: Start) -> None:
        if self._session is not None and not self._session.over:
            raise ProtocolError("conflict", "start: this connection has a session; send stop first")
        session = self._engine.begin(start, self)
        self._take_over(session, 0, resumed=False)

    def _resume(self, message: Resume) -> None:
        if self._session is not None:
            raise ProtocolError("conflict", "resume: this connection has a session already; open another connection")
        session = self._engine.resume(message, self)
        self._take_over(session, session.ring.replay_from(message.last_id), resumed=True)

    def _take_over(self, session: Session, cursor: int, *, resumed: bool) -> None:
        old, self._session, self._cursor, self._told_end = self._session, session, cursor, False
        if old is not None:
            self._engine.leave(old, self)
        self._reply(session.accepted(resumed=resumed, replay_from=cursor))

    def _event(self, session: Session, event: Event) -> None:
        if wait := self._events.take():
            raise ProtocolError(
                "rate_limited", f"event: too many; again in {wait:.1f} s", retryable=True, event_id=event.event_id
            )
        known = self._engine.event(session, event)
        if known is not None:
            self._reply(known)

    # ---------------------------------------------------------------- writing

    def _reply(self, message: Message) -> None:
        if isinstance(message, Error):
            self._engine.telemetry.errors[message.code] += 1
        self._replies.append(message)
        self._wake.set()

    async def _write(self) -> None:
        while True:
            item = self._next()
            if item is None:
                self._wake.clear()
                await self._wake.wait()
            elif isinstance(item, bytes):
                await self._socket.send_bytes(item)
            else:
                await self._socket.send_text(item)

    def _next(self) -> bytes | str | None:
        """What goes out next: answers, frames that are sent again, what is new, the session's last word."""
        if self._replies:
            message = self._replies.popleft()
            self._room.set()
            return dump_message(message)
        session = self._session
        if session is None or session.viewer is not self:
            return None
        if self._cursor < session.ring.next_id:
            data = session.ring.get(max(self._cursor, session.ring.oldest)).data
            self._cursor = max(self._cursor, session.ring.oldest) + 1
            return data
        first = session.ring.next_id == 0
        item = session.pop()
        if isinstance(item, bytes):
            self._cursor = session.ring.next_id
            telemetry = self._engine.telemetry
            telemetry.frames += 1
            telemetry.bytes += len(item)
            if first and session.tally.first_frame_seconds is not None:
                telemetry.first_frame.observe(session.tally.first_frame_seconds)
            return item
        if item is None and not self._told_end and (last := session.last_word) is not None:
            self._told_end = True
            if isinstance(last, Error):
                self._engine.telemetry.errors[last.code] += 1
            return dump_message(last)
        return item


def _error(error: ProtocolError) -> Error:
    fatal = error.code in _CLOSE_CODES or error.code == "too_many_errors"
    return Error(code=error.code, message=str(error), retryable=error.retryable, fatal=fatal, event_id=error.event_id)
