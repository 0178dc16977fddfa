"""The HTTP side: viewer page, /health, /metrics, and the door to /ws."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.middleware.base import RequestResponseEndpoint

import longvid

from .access import COOKIE, Access, Refusal
from .connection import Connection
from .engine import Engine

VIEWER = Path(__file__).resolve().parent / "viewer"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_WHY: dict[Refusal, tuple[int, str]] = {
    "host": (421, "Host: this server is not known by that name; use the address that it printed"),
    "origin": (403, "Origin: pages of that origin may not connect; start the server with --allowed-origin"),
    "token": (401, "token: missing or wrong; use the address with ?token=... that the server printed"),
}


def make_app(engine: Engine, access: Access) -> FastAPI:
    """The application. Its lifespan starts the engine; `Engine.shutdown` is for whoever stops the server."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        if not engine.stopping:
            await engine.shutdown()

    # No interactive documentation: it loads scripts from elsewhere.
    app = FastAPI(title="longvid", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.engine, app.state.connections = engine, 0

    @app.middleware("http")
    async def guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
        why = access.refusal(
            request.headers, request.query_params.get("token"), open_to_all=request.url.path == "/health"
        )
        if why is None:
            response = await call_next(request)
        else:
            engine.telemetry.refused[why] += 1
            status, text = _WHY[why]
            response = JSONResponse({"error": text}, status)
        response.headers.update(_security_headers(request))
        return response

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "version": longvid.__version__, "sessions": len(engine.active)}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        text = engine.telemetry.text(
            {"longvid_connections": ("Open websockets.", app.state.connections), **engine.gauges()}
        )
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/")
    async def index(request: Request) -> Response:
        given = request.query_params.get("token")
        if given is not None and access.token_matches(given):
            # The token moves from the address bar, where it would be copied and logged, into a cookie.
            response = RedirectResponse("/", 303)
            secure = request.url.scheme == "https"
            response.set_cookie(COOKIE, given, httponly=True, samesite="strict", secure=secure)
            return response
        return FileResponse(VIEWER / "index.html", media_type="text/html")

    @app.get("/viewer/{name}")
    async def asset(name: str) -> Response:
        file = VIEWER / name
        if file.parent != VIEWER or file.suffix not in _TYPES or not file.is_file():
            return JSONResponse({"error": "not found"}, 404)
        return FileResponse(file, media_type=_TYPES[file.suffix], headers={"Cache-Control": "no-cache"})

    @app.websocket("/ws")
    async def websocket(socket: WebSocket) -> None:
        why = access.refusal(socket.headers, socket.query_params.get("token"))
        full = app.state.connections >= engine.limits.max_connections
        if why is not None or full or engine.stopping:
            engine.telemetry.refused[why or "full"] += 1
            status, text = _WHY[why] if why is not None else (503, "too many connections; try again later")
            await socket.send_denial_response(JSONResponse({"error": text}, status))
            return
        app.state.connections += 1
        try:
            await socket.accept()
            await Connection(socket, engine).run()
        finally:
            app.state.connections -= 1

    return app


def _security_headers(request: Request) -> dict[str, str]:
    # Browsers disagree on whether 'self' covers websockets of the same host.
    host = request.headers.get("host", "")
    same = f"ws://{host} wss://{host}" if all(c.isalnum() or c in ".:-[]" for c in host) else ""
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        f"media-src blob:; connect-src 'self' {same}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
