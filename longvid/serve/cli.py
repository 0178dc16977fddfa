"""``longvid serve``: a model behind a websocket, and the page to watch it."""

from __future__ import annotations

import gc
import logging
import secrets
from typing import Annotated

import typer

from longvid.errors import InputError

_EXTRA = "serve: needs fastapi, uvicorn and websockets; pip install 'longvid[serve]'"


def register(app: typer.Typer) -> None:
    """Add the ``serve`` command to ``app``."""
    app.command("serve")(serve)


def serve(
    host: Annotated[str, typer.Option(help="Address to bind to; anything but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    model: Annotated[str, typer.Option(help="'embedded', a model folder, or a hub id.")] = "embedded",
    method: Annotated[
        str | None, typer.Option(help="Default method; viewers may choose another.", show_default=False)
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="base, or one of `longvid models`, for all methods; each method's own if not given.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, ...; chosen if not given.", show_default=False)] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="Secret that viewers must present; 'auto' makes one.", envvar="LONGVID_TOKEN", show_default=False
        ),
    ] = None,
    max_sessions: Annotated[int, typer.Option(min=1, help="Sessions at the same time.")] = 4,
    allowed_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", help="Pages of this origin may connect, too. May be repeated.", show_default=False
        ),
    ] = None,
    ahead: Annotated[
        int, typer.Option(min=2, help="Blocks made ahead of the display: more is smoother, fewer obeys sooner.")
    ] = 3,
    grace: Annotated[float, typer.Option(min=1, help="Seconds a session waits for a vanished viewer.")] = 30.0,
) -> None:
    """Serve video as it is made: a viewer page and a websocket (docs/protocol.md)."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError:
        raise InputError(_EXTRA) from None
    from longvid.precision import check_device
    from longvid.serve.access import Access, parse_origins
    from longvid.serve.engine import Engine
    from longvid.serve.limits import Limits
    from longvid.serve.server import Server, address, bind
    from longvid.serve.studio import PipelineStudio

    check_device(device)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    secret = secrets.token_urlsafe(24) if token == "auto" else token
    access = Access(host, secret, parse_origins(allowed_origin or ()))
    limits = Limits(max_sessions=max_sessions, max_connections=4 * max_sessions + 16, grace=grace, ahead_blocks=ahead)
    listener = bind(host, port)

    from longvid.pipelines.loading import load

    pipe = load(model, method, device=device, student=student)
    studio = PipelineStudio(pipe, model=str(model), own_students=student is None)
    seconds = studio.warm_up()
    # Modules and weights stay as long as the server does. Collections hold up every viewer and need not look at them.
    gc.collect()
    gc.freeze()
    typer.echo(
        f"{studio.model}, {studio.method}{_with(pipe.student)}: {studio.width}x{studio.height} at {studio.fps:g} fps; "
        f"first block in {seconds:.2f} s",
        err=True,
    )
    query = "" if secret is None else f"?token={secret}"
    typer.echo(f"watch at {address(listener)}{query}")
    server = Server(Engine(studio, limits), access)
    server.run(sockets=[listener])


def _with(student: str) -> str:
    return "" if student == "base" else f" (student {student})"
