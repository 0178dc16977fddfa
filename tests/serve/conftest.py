"""A studio whose takes are made of plain colours, and a client that speaks the protocol."""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from longvid.prompts import parse_switch
from longvid.serve.access import Access
from longvid.serve.engine import Engine
from longvid.serve.limits import Limits
from longvid.serve.messages import CachePicture, FrameHeader, MethodEntry, SlotEntry
from longvid.serve.protocol import ProtocolError, unpack_frame
from longvid.serve.server import LocalServer
from longvid.serve.studio import Cancelled, MadeBlock, Order

SIDE = 32
BLOCK = 4


def colour_of(prompt: str, seed: int) -> tuple[int, int]:
    """Two of three channels; the third counts frames."""
    digest = zlib.crc32(f"{prompt}/{seed}".encode())
    return digest % 251, digest // 251 % 251


class FakeTake:
    """Deterministic frames: (prompt and seed, number). Holds `studio.take_bytes` of memory until it is closed."""

    def __init__(self, studio: FakeStudio, order: Order) -> None:
        self.studio, self.order = studio, order
        self._memory: np.ndarray | None = np.ones(studio.take_bytes, np.uint8)
        self._prompt, self._pending = order.prompt, None
        self._next = self._block = 0
        self._cancel = threading.Event()
        self.closed = False

    @property
    def memory_bytes(self) -> int:
        return 0 if self._memory is None else self._memory.nbytes

    def make(self) -> MadeBlock | None:
        assert threading.current_thread().name.startswith("longvid-model")
        assert not self.closed, "a block was asked of a closed take"
        if self.order.frames is not None and self._next >= self.order.frames:
            return None
        if self._cancel.wait(self.studio.block_seconds):
            raise Cancelled
        if (broken := self.studio.broken.get(self._prompt)) is not None and self._block >= broken[0]:
            raise broken[1]
        switched = self._pending is not None
        if switched:
            self._prompt, self._pending = self._pending, None
        count = BLOCK if self.order.frames is None else min(BLOCK, self.order.frames - self._next)
        frames = np.zeros((count, SIDE, SIDE, 3), np.uint8)
        frames[..., 0], frames[..., 1] = colour_of(self._prompt, self.order.seed)
        frames[..., 2] = (np.arange(self._next, self._next + count) % 256)[:, None, None]
        block = self._block
        self._next, self._block = self._next + count, block + 1
        self.studio.log.append((self.order.prompt, block, time.monotonic()))
        slots = [SlotEntry(frame=i, role="sink" if i == 0 else "recent") for i in range(min(block, 3))]
        picture = CachePicture(capacity=4, bytes=self.memory_bytes, slots=slots)
        return MadeBlock(frames, block, self.studio.block_seconds, switched, picture, self.memory_bytes)

    def set_prompt(self, prompt: str, hard_cut: bool) -> str | None:
        self._pending = parse_switch(prompt)
        return "cut" if hard_cut else None

    def cancel(self) -> None:
        self._cancel.set()

    def close(self) -> None:
        if not self.closed:
            self.closed, self._memory = True, None
            self.studio.open_takes -= 1


class FakeStudio:
    """block_seconds: time of a block. broken: prompt -> (block, exception)."""

    model, method, fps, width, height = "fake", "plain", 16.0, SIDE, SIDE
    methods = (MethodEntry(name="plain", title="Plain", summary="One colour a prompt."),)

    def __init__(self, *, block_seconds: float = 0.002, take_bytes: int = 1000) -> None:
        self.block_seconds, self.take_bytes = block_seconds, take_bytes
        self.broken: dict[str, tuple[int, Exception]] = {}
        self.open_takes = 0
        self.room = True
        self.log: list[tuple[str, int, float]] = []

    def check(self, prompt: str, seconds: float | None, seed: int, method: str | None, fps: float | None) -> Order:
        if method not in (None, "plain"):
            raise ProtocolError("bad_request", f"method={method!r}: must be one of plain")
        frames = None if seconds is None else max(1, round(seconds * self.fps))
        return Order(prompt, seconds, seed, "plain", fps or self.fps, SIDE, SIDE, frames, BLOCK, {"name": "plain"})

    def open(self, order: Order) -> FakeTake:
        if (broken := self.broken.get(order.prompt)) is not None and broken[0] < 0:
            raise broken[1]
        self.open_takes += 1
        return FakeTake(self, order)

    def room_for(self, order: Order) -> bool:
        return self.room


class Client:
    """A viewer in a few lines. `frames` has every frame received, `messages` every message."""

    def __init__(self, url: str, **options: Any) -> None:
        self._stack = ExitStack()
        options = {"max_size": None, "close_timeout": 0.5} | options
        self._socket = self._stack.enter_context(connect(url.replace("http", "ws", 1) + "ws", **options))
        self.frames: list[tuple[FrameHeader, bytes]] = []
        self.messages: list[dict[str, Any]] = []
        self.ack = True
        self.hello = self.receive()

    def send(self, type: str, **fields: Any) -> None:
        self._socket.send(json.dumps({"type": type, **fields}))

    def send_raw(self, data: str | bytes) -> None:
        with suppress(ConnectionClosed):  # a server need not read to the end what it refuses
            self._socket.send(data)

    def receive(self, timeout: float = 30.0) -> Any:
        """The next message; a frame is noted, acknowledged if `ack`, and returned as its header."""
        data = self._socket.recv(timeout)
        if isinstance(data, bytes):
            header, picture = unpack_frame(data)
            self.frames.append((header, picture))
            if self.ack:
                with suppress(ConnectionClosed):  # what came before the close is still to be read
                    self.send("ack", last_id=header.id)
            return header
        message = json.loads(data)
        self.messages.append(message)
        return message

    def until(self, *types: str, timeout: float = 30.0, **fields: Any) -> dict[str, Any]:
        """Read on to a message of one of the types that has the fields."""
        end = time.monotonic() + timeout
        while True:
            message = self.receive(max(0.01, end - time.monotonic()))
            wanted = isinstance(message, dict) and message["type"] in types
            if wanted and all(message.get(name) == value for name, value in fields.items()):
                return message

    def until_frame(self, frame_id: int, timeout: float = 30.0) -> FrameHeader:
        end = time.monotonic() + timeout
        while True:
            message = self.receive(max(0.01, end - time.monotonic()))
            if isinstance(message, FrameHeader) and message.id >= frame_id:
                return message

    def silent(self, seconds: float) -> bool:
        """Whether no frame comes for that long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                if isinstance(self.receive(left), FrameHeader):
                    return False
            except TimeoutError:
                pass
        return True

    def until_closed(self) -> int | None:
        """Read on to the end of the connection; its close code."""
        try:
            while True:
                self.receive()
        except ConnectionClosed as closed:
            return None if closed.rcvd is None else closed.rcvd.code

    def start(self, prompt: str = "a", **fields: Any) -> dict[str, Any]:
        self.send("start", prompt=prompt, **{"seed": 0, "seconds": None} | fields)
        return self.until("accepted", "error")

    def close(self) -> None:
        self._stack.close()

    def vanish(self) -> None:
        """Gone without a goodbye."""
        self._socket.socket.close()

    @property
    def ids(self) -> list[int]:
        return [header.id for header, _ in self.frames]


class Served:
    """A running server and clients of it."""

    def __init__(self, url: str, engine: Engine, stack: ExitStack) -> None:
        self.url, self.engine, self._stack = url, engine, stack

    def client(self, **options: Any) -> Client:
        client = Client(self.url, **options)
        self._stack.callback(client.close)
        return client


@pytest.fixture
def serving() -> Iterator[Callable[..., Served]]:
    """serving(studio, access=..., max_sessions=..., grace=...) -> Served."""
    with ExitStack() as stack:

        def serve(studio: Any = None, access: Access | None = None, **limits: Any) -> Served:
            server = stack.enter_context(LocalServer(studio or FakeStudio(), Limits(**limits), access))
            clients = stack.enter_context(ExitStack())
            return Served(server.url, server.engine, clients)

        yield serve


def eventually(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    """Wait until the condition holds; AssertionError when it never does."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)
