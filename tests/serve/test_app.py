"""Doors and pages: who is let in over real HTTP, what /health and /metrics say, how the process begins and ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from longvid.cli import main
from longvid.serve.access import Access

from .conftest import Client, Served

Serving = Callable[..., Served]
TOKEN = "a-token-of-some-length"
VIEWER = Path(__file__).resolve().parents[2] / "longvid" / "serve" / "viewer"


@pytest.fixture
def guarded(serving: Serving) -> Served:
    return serving(access=Access("127.0.0.1", TOKEN, frozenset({"https://films.example"})))


def status_of_refusal(served: Served, url: str | None = None, **options: object) -> int:
    with pytest.raises(InvalidStatus) as caught:
        Client(url or served.url, **options)
    return caught.value.response.status_code


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_websockets_from_elsewhere_are_refused_before_they_are_accepted(
    serving: Serving, headers: dict[str, str], status: int
) -> None:
    served = serving()
    port = served.url.rsplit(":", 1)[1].rstrip("/")
    if "Host" in headers:  # the client library writes its own Host: speak plainly
        with socket.create_connection(("127.0.0.1", int(port)), timeout=30) as raw:
            raw.sendall(
                b"GET /ws HTTP/1.1\r\nHost: evil.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            assert raw.recv(100).startswith(f"HTTP/1.1 {status}".encode())
    else:
        assert status_of_refusal(served, additional_headers=headers) == status
    assert sum(served.engine.telemetry.refused.values()) == 1
    served.client()


def test_a_token_is_demanded_where_there_is_one(guarded: Served) -> None:
    assert status_of_refusal(guarded) == 401
    assert status_of_refusal(guarded, additional_headers={"Authorization": "Bearer wrong-token-entirely"}) == 401
    assert guarded.client(additional_headers={"Authorization": f"Bearer {TOKEN}"}).hello["type"] == "hello"
    assert guarded.client(additional_headers={"Cookie": f"longvid_token={TOKEN}"}).hello["type"] == "hello"
    assert guarded.client(additional_headers={"Authorization": f"Bearer {TOKEN}"}, origin="https://films.example").hello
    for path, status in (("health", 200), ("metrics", 401), ("", 401), ("viewer/main.js", 401)):
        assert httpx.get(guarded.url + path).status_code == status, path


def test_the_token_moves_from_the_address_into_a_cookie(guarded: Served) -> None:
    response = httpx.get(guarded.url, params={"token": TOKEN})
    assert (response.status_code, response.headers["location"]) == (303, "/")
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    with httpx.Client(cookies={"longvid_token": TOKEN}) as browser:
        assert browser.get(guarded.url).status_code == 200
        assert browser.get(guarded.url + "metrics").status_code == 200


def test_health_and_metrics(serving: Serving) -> None:
    served = serving()
    client = served.client()
    client.start("a", fps=120)
    client.until_frame(30)
    client.send_raw("nonsense")
    client.until("error")
    health = httpx.get(served.url + "health").json()
    assert (health["status"], health["sessions"]) == ("ok", 1)
    response = httpx.get(served.url + "metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {}
    for line in response.text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) \S+ .+|[a-z_]+(\{[a-z]+="[^"]*"\})? [0-9.e+-]+', line), line
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name] = float(value)
    assert values["longvid_sessions_active"] == 1
    assert values["longvid_session_memory_bytes"] > 0
    assert values["longvid_frames_sent_total"] >= 31
    assert values['longvid_errors_total{code="bad_message"}'] == 1
    assert values['longvid_block_seconds_bucket{le="+Inf"}'] == values["longvid_block_seconds_count"] >= 7
    assert values["longvid_first_frame_seconds_count"] == 1


def test_pages(serving: Serving) -> None:
    served = serving()
    page = httpx.get(served.url)
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in page.headers
    for path in ("viewer/../app.py", "viewer/..%2fapp.py", "viewer/nope.js", "docs", "openapi.json", "viewer/"):
        assert httpx.get(served.url + path).status_code == 404, path
    for file in VIEWER.iterdir():
        assert httpx.get(served.url + f"viewer/{file.name}").text == file.read_text(encoding="utf-8")


def test_the_viewer_is_self_contained() -> None:
    for file in VIEWER.iterdir():
        text = file.read_text(encoding="utf-8")
        outside = [u for u in re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text) if "www.w3.org" not in u]
        assert not outside, (file.name, outside)
        for name in re.findall(r'(?:from |import )"\./([\w.]+)"', text):
            assert (VIEWER / name).is_file(), (file.name, name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "needs a token; add --token auto"),
        (["--token", "short"], "at least 16"),
        (["--allowed-origin", "films.example"], "allowed-origin="),
        (["--host", "203.0.113.9", "--token", "auto"], "cannot be bound"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert "\n" not in error


def test_a_taken_port_is_found_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1]), "--model", "/nowhere"]) == 2
    assert "cannot be bound" in capsys.readouterr().err


@pytest.fixture
def process(tiny_model_folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`longvid serve` as users start it: the process and the address that it prints."""
    command = [sys.executable, "-m", "longvid", "serve", "--port", "0", "--model", str(tiny_model_folder)]
    command += ["--method", "streaming-llm", "--token", "auto"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as running:
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            found = re.search(r"http://\S+", line)
            assert found, (line, running.stderr.read() if running.stderr and running.poll() is not None else "")
            yield running, found[0]
        finally:
            running.kill()


def test_sigterm_ends_politely(process: tuple[subprocess.Popen[str], str]) -> None:
    running, url = process
    address, token = url.split("?token=")
    client = Client(address, additional_headers={"Authorization": f"Bearer {token}"})
    assert client.start("a red ball")["type"] == "accepted"
    client.until_frame(12, timeout=60)
    running.send_signal(signal.SIGTERM)
    error = client.until("error", timeout=60)
    assert (error["code"], error["retryable"]) == ("shutting_down", True)
    assert client.until_closed() == 1012
    assert running.wait(60) == 0
    assert running.stderr is not None
    assert "Traceback" not in running.stderr.read()
