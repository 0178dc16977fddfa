"""The engine: one model, many sessions. Interleaves their blocks fairly and keeps every one of them bounded.

Model work (opening a take, its blocks, freeing it) runs on one thread, encoding and measuring on another; everything
else lives on the event loop, so that no state needs a lock.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, perf_counter
from typing import Any

from longvid.errors import InputError

from .limits import Limits
from .messages import Event, MethodEntry, Resume, Start
from .protocol import ProtocolError
from .session import Session, Viewer
from .studio import Cancelled, MadeBlock, Studio, Take
from .telemetry import Telemetry

logger = logging.getLogger("longvid.serve")

_ENDED_KEPT = 16
"""Ended sessions that are kept for a viewer that still has to fetch their last frames."""
_IDLE_SECONDS = 5.0
"""Longest sleep of the scheduler when nothing is announced to it."""


class Engine:
    """Runs the sessions of one studio. `start()` it in a running event loop, `shutdown()` it there."""

    def __init__(self, studio: Studio, limits: Limits, *, clock: Callable[[], float] = monotonic) -> None:
        self.studio, self.limits, self.clock = studio, limits, clock
        self.telemetry = Telemetry()
        self.stopping = False
        self._sessions: dict[str, Session] = {}  # by resume token
        self._closing: list[Take] = []
        self._level = 0.0  # model seconds that the least served session has had
        self._wake = asyncio.Event()
        self._model = ThreadPoolExecutor(1, "longvid-model")
        self._post = ThreadPoolExecutor(1, "longvid-encode")
        self._tasks: set[asyncio.Task[None]] = set()
        self._posts: dict[Session, asyncio.Task[None]] = {}

    # ---------------------------------------------------------------- what it is

    @property
    def methods(self) -> list[MethodEntry]:
        return list(self.studio.methods)

    @property
    def sessions(self) -> tuple[Session, ...]:
        return tuple(self._sessions.values())

    @property
    def active(self) -> list[Session]:
        """Sessions that hold, or will hold, model memory."""
        return [session for session in self._sessions.values() if not session.over]

    def gauges(self) -> dict[str, tuple[str, float]]:
        import psutil

        active = self.active
        return {
            "longvid_sessions_active": ("Sessions that hold a cache.", len(active)),
            "longvid_sessions_detached": ("Of these, without a viewer.", sum(s.viewer is None for s in active)),
            "longvid_sessions_kept": ("Sessions kept, ended ones included.", len(self._sessions)),
            "longvid_session_memory_bytes": ("Model memory of all sessions.", sum(s.memory_bytes for s in active)),
            "longvid_ring_bytes": ("Encoded frames kept for replay.", sum(s.ring.bytes for s in self.sessions)),
            "longvid_resident_bytes": ("Resident memory of the process.", psutil.Process().memory_info().rss),
        }

    # ---------------------------------------------------------------- life

    def start(self) -> None:
        """Begin to schedule. Inside a running event loop."""
        self._spawn(self._schedule())
        self._spawn(self._housekeep())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("engine: a task died", exc_info=error)

    async def shutdown(self) -> None:
        """Tell every viewer, cancel every take, free everything. The engine cannot be started again."""
        self.stopping = True
        for session in self.sessions:
            if session.take is not None:
                session.take.cancel()
            if session.viewer is not None:
                session.viewer.drop(ProtocolError("shutting_down", "the server is going down", retryable=True))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in self.sessions:
            self._release(session)
        self._sessions.clear()
        for take in self._closing:
            await self._on_model(take.close)
        self._closing.clear()
        self._model.shutdown(wait=True)
        self._post.shutdown(wait=True)

    def wake(self) -> None:
        """Something changed that the scheduler should look at."""
        self._wake.set()

    # ---------------------------------------------------------------- what viewers ask for

    def begin(self, start: Start, viewer: Viewer) -> Session:
        """A new session for a viewer. Raises ProtocolError "bad_request" or "busy"."""
        if self.stopping:
            raise ProtocolError("shutting_down", "the server is going down", retryable=True)
        if len(start.prompt) > self.limits.prompt_characters:
            raise ProtocolError(
                "bad_request", f"prompt: {len(start.prompt)} characters; at most {self.limits.prompt_characters}"
            )
        seed = secrets.randbits(32) if start.seed is None else start.seed
        order = self.studio.check(start.prompt, start.seconds, seed, start.method, start.fps)
        held = len(self.active)
        if held >= self.limits.max_sessions:
            raise ProtocolError(
                "busy", f"all {self.limits.max_sessions} sessions are taken; try again later", retryable=True
            )
        if held and not self.studio.room_for(order):
            raise ProtocolError("busy", "no memory for another session; try again later", retryable=True)
        session = Session(order, start.format, self.limits, clock=self.clock)
        session.served = self._level
        self._sessions[session.token] = session
        session.attach(viewer)
        self.telemetry.started += 1
        logger.info("session %s: start, method %s, seed %d", session.name, order.method, order.seed)
        self.wake()
        return session

    def resume(self, message: Resume, viewer: Viewer) -> Session:
        """The session of a resume token. Raises ProtocolError "unknown_session" or "bad_message"."""
        session = self._sessions.get(message.resume_token)
        if session is None:
            raise ProtocolError("unknown_session", "resume_token: no such session; it ended, or the server restarted")
        if message.last_id >= 0:
            session.acknowledge(message.last_id)
        session.attach(viewer)
        self.telemetry.resumed += 1
        logger.info("session %s: resumed behind frame %d", session.name, message.last_id)
        self.wake()
        return session

    def event(self, session: Session, event: Event) -> Any:
        """Steer a session; gives the acknowledgement again when the event is an old one. Raises ProtocolError."""
        known = session.take_event(event)
        if known is None and event.kind == "stop" and not session.over:
            session.stop(event)
            self._end(session, "stopped")
        self._wake_viewer(session)
        return known

    def leave(self, session: Session, viewer: Viewer) -> None:
        """A viewer's connection is gone; its session waits for it, unless it is over and was seen to its end."""
        session.detach(viewer)
        if session.viewer is None and session.over and not session.unsent and not session.ring.unacked:
            self._sessions.pop(session.token, None)
        self.wake()

    # ---------------------------------------------------------------- scheduling

    async def _schedule(self) -> None:
        while True:
            self._wake.clear()
            if self._closing:
                await self._on_model(self._closing.pop(0).close)
                continue
            session, wait = self._next()
            if session is None:
                try:
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                continue
            self._level = session.served
            if session.state == "opening":
                await self._open(session)
            else:
                await self._make(session)

    def _next(self) -> tuple[Session | None, float]:
        """The session whose turn it is: of those that want a block now, the one with the least model time so far.
        Without one, the seconds until one will."""
        soonest, ready = _IDLE_SECONDS, []
        now = self.clock()
        for session in self._sessions.values():
            wait = 0.0 if session.state == "opening" else session.wants_block(now)
            if wait is None:
                continue
            if wait <= 0:
                ready.append(session)
            soonest = min(soonest, wait)
        if not ready:
            return None, soonest
        for session in ready:
            session.served = max(session.served, self._level)  # waiting saves up no claim
        return min(ready, key=lambda session: session.served), 0.0

    async def _on_model(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._model, work, *arguments)

    async def _on_post(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._post, work, *arguments)

    async def _open(self, session: Session) -> None:
        started = perf_counter()
        try:
            take = await self._on_model(self.studio.open, session.order)
        except Exception as error:
            self._fail(session, error)
            return
        finally:
            session.served += perf_counter() - started
        if session.over:  # stopped meanwhile
            self._closing.append(take)
            return
        session.take, session.state = take, "running"
        session.progress_at = self.clock()
        self._wake_viewer(session)

    async def _make(self, session: Session) -> None:
        assert session.take is not None
        session.making = True
        started = perf_counter()
        try:
            while session.prompts:
                event = session.prompts.popleft()
                try:
                    notice = await self._on_model(session.take.set_prompt, event.prompt, event.hard_cut)
                except InputError as error:
                    session.refuse_event(event, error)
                else:
                    session.prompt_given(event, notice)
            made = await self._on_model(session.take.make)
        except Exception as error:  # whatever the model raises is the viewer's news, not the server's end
            if not (isinstance(error, Cancelled) and session.over):
                if (before := self._posts.get(session)) is not None:
                    await asyncio.wait([before])  # what was made before is sent before the error
                self._fail(session, error)
            error.__traceback__ = None  # its frames hold the take, and a future the error until after the close
            return
        finally:
            session.making = False
            session.served += perf_counter() - started
        if session.over:
            return
        session.exhausted = made is None
        if made is not None:
            session.scheduled += len(made.frames)
            session.exhausted = session.order.frames is not None and session.scheduled >= session.order.frames
            self.telemetry.blocks += 1
            self.telemetry.block_seconds.observe(made.seconds)
            session.posting += 1
        before = self._posts.get(session)
        self._posts[session] = self._spawn(self._deliver(session, made, before))

    async def _deliver(self, session: Session, made: MadeBlock | None, before: asyncio.Task[None] | None) -> None:
        """Encode and publish a block, behind the session's block before; None ends the video."""
        if before is not None:
            await asyncio.wait([before])
        try:
            if made is not None:
                await self._publish(session, made)
            if session.exhausted and not session.posting and not session.over:
                session.finish("finished")
                self._end(session, "finished")
        except Exception as error:
            self._fail(session, error)
        finally:
            if self._posts.get(session) is asyncio.current_task():
                del self._posts[session]
            self._wake_viewer(session)

    async def _publish(self, session: Session, made: MadeBlock) -> None:
        started = perf_counter()
        try:
            pictures = await self._on_post(session.encode, made.frames)
        finally:
            session.posting -= 1
        encoded = perf_counter() - started
        self.telemetry.flushed += session.unsent if made.switched else 0
        session.add_block(made, pictures)
        session.settle()
        self._wake_viewer(session)
        try:
            await self._on_post(session.measure, made.frames)
        except Exception:  # a video must not end because it could not be measured
            logger.exception("session %s: block %d could not be measured", session.name, made.index)
        session.set_stats(made, encoded, len(self.active))

    def _wake_viewer(self, session: Session) -> None:
        if session.viewer is not None:
            session.viewer.wake()
        self.wake()

    def _fail(self, session: Session, error: Exception) -> None:
        """One error to the one viewer; the server goes on."""
        if session.over:
            return
        text = " ".join(str(error).split())[:300]
        memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        memory = memory or "can't allocate memory" in text  # torch's allocator for CPUs raises a plain RuntimeError
        if isinstance(error, ProtocolError):
            session.fail(error.code, text, retryable=error.retryable)
        elif isinstance(error, InputError):
            session.fail("bad_request", text)
        elif memory:
            session.fail("out_of_memory", "the model ran out of memory; try again when fewer watch", retryable=True)
        else:
            logger.error("session %s: generation failed", session.name, exc_info=error)
            # The exception's text may name files and hosts; the log has it, the viewer gets its kind.
            session.fail("generation_failed", f"generation failed ({type(error).__name__})", retryable=True)
        self._end(session, "failed")

    def _end(self, session: Session, how: str) -> None:
        self.telemetry.sessions[how] += 1
        logger.info("session %s: %s after %d frames", session.name, how, session.tally.frames)
        self._release(session)
        ended = [s for s in self._sessions.values() if s.over and s.viewer is None]
        for old in sorted(ended, key=lambda s: s.detached_at)[:-_ENDED_KEPT]:
            self._sessions.pop(old.token, None)
        self._wake_viewer(session)

    def _release(self, session: Session) -> None:
        """Give the session's model memory back, as the model thread's next work."""
        if session.take is not None:
            session.take.cancel()
            self._closing.append(session.take)
            session.take = None
        self._post.submit(session.close)

    # ---------------------------------------------------------------- housekeeping

    async def _housekeep(self) -> None:
        limits = self.limits
        tick = min(1.0, min(limits.grace, limits.stall_timeout, limits.pause_timeout) / 4)
        while True:
            await asyncio.sleep(tick)
            now = self.clock()
            for session in self.sessions:
                self._look_after(session, now)

    def _look_after(self, session: Session, now: float) -> None:
        limits = self.limits
        if session.viewer is None:
            if now - session.detached_at >= limits.grace:
                self._sessions.pop(session.token, None)
                if not session.over:
                    session.state = "failed"
                    self._end(session, "reaped")
        elif session.stalled and now - session.progress_at >= limits.stall_timeout:
            seconds = f"{limits.stall_timeout:g}"
            session.viewer.drop(
                ProtocolError("stall_timeout", f"no frame was acknowledged for {seconds} s; resume", retryable=True)
            )
        elif session.paused_at is not None and not session.over and now - session.paused_at >= limits.pause_timeout:
            session.fail("pause_timeout", f"paused for {limits.pause_timeout:g} s; start again", retryable=True)
            self._end(session, "failed")
