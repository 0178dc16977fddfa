"""Runs the application on a socket, and ends it politely."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from types import FrameType

import uvicorn

from longvid.errors import InputError

from .access import Access
from .app import make_app
from .engine import Engine
from .limits import Limits
from .studio import Studio

#: Larger messages are not even read to their end (close code 1009).
_MAX_MESSAGE = 256 * 1024


def _not_a_refusal(record: logging.LogRecord) -> bool:
    return "without completing handshake" not in record.getMessage()


class Server(uvicorn.Server):
    """uvicorn, with viewers told before their sockets are closed. SIGTERM and SIGINT end it; a second one at once."""

    def __init__(self, engine: Engine, access: Access) -> None:
        self.engine = engine
        config = uvicorn.Config(
            make_app(engine, access),
            lifespan="on",
            log_level="warning",
            access_log=False,  # it would log tokens in query strings
            server_header=False,
            proxy_headers=False,
            ws="websockets-sansio",
            ws_max_size=_MAX_MESSAGE,
            ws_per_message_deflate=False,  # pictures do not shrink, and every connection would hold a compressor
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        # A refusal with a reason is an answer; uvicorn would log each as a failure of the application.
        logging.getLogger("uvicorn.error").addFilter(_not_a_refusal)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note the signal, and do not raise it again afterwards: being told to stop is an ordinary end (exit 0)."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.engine.shutdown()
        await asyncio.sleep(0.1)  # the last words leave before uvicorn closes what is left
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, taken before minutes of loading. Raises InputError when the address is not to be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        raise InputError(f"host={host!r}, port={port}: cannot be bound ({error.strerror or error})") from None
    return listener


def address(listener: socket.socket) -> str:
    """The viewer's address, as a browser takes it."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class LocalServer:
    """A server on 127.0.0.1 in a thread of this process, for notebooks and tests. `stop()` it, or use it in `with`.

    port: 0 takes a free one. url: the viewer's address. engine: what runs the sessions.
    """

    def __init__(
        self, studio: Studio, limits: Limits | None = None, access: Access | None = None, *, port: int = 0
    ) -> None:
        self.engine = Engine(studio, limits or Limits())
        self._server = Server(self.engine, access or Access("127.0.0.1"))
        self._listener = bind("127.0.0.1", port)
        self.url = address(self._listener)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, name="longvid-serve", daemon=True
        )
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.01)

    def stop(self) -> None:
        """End as SIGTERM ends `longvid serve`: viewers are told, everything is freed."""
        self._server.should_exit = True
        self._thread.join(20)
        self._listener.close()

    def __enter__(self) -> LocalServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
