"""What a careless or hostile client can do: get typed errors, and nothing else."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from longvid.errors import InputError
from longvid.serve.limits import Limits

from .conftest import FakeStudio, Served, eventually

Serving = Callable[..., Served]


def test_limits_must_be_finite_and_positive() -> None:
    for value in (0, -1, math.nan, math.inf, 1.5):
        with pytest.raises(InputError, match="max_sessions"):
            Limits(max_sessions=value)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="grace"):
        Limits(grace=math.inf)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("{", "bad_message"),
        ('{"type":"nope"}', "bad_message"),
        ('{"type":"ack","last_id":NaN}', "bad_message"),
        ('{"type":"ack","last_id":99999}', "bad_message"),
        (b"\x00\x01binary", "bad_message"),
        ("[" * 9000, "bad_message"),
        ('{"type":"ping"' + " " * 20_000 + "}", "too_large"),
        ('{"type":"start","prompt":"' + "x" * 70_000 + '"}', "too_large"),
        ('{"type":"start","prompt":"b"}', "conflict"),
        ('{"type":"resume","resume_token":"t"}', "conflict"),
        ('{"type":"event","event_id":"e","kind":"prompt"}', "bad_request"),
        ('{"type":"event","event_id":"e","kind":"pause","prompt":"b"}', "bad_request"),
        (json.dumps({"type": "event", "event_id": "e", "kind": "prompt", "prompt": "x" * 5000}), "bad_request"),
    ],
)
def test_nonsense_is_a_typed_error_and_the_session_survives(serving: Serving, data: str | bytes, code: str) -> None:
    client = serving().client()
    client.start("a", fps=60)
    client.until_frame(3)
    client.send_raw(data)
    error = client.until("error")
    assert (error["code"], error["fatal"]) == (code, False)
    client.until_frame(client.ids[-1] + 8)
    assert client.ids == list(range(len(client.ids)))


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prompt": "x" * 10_000}, "bad_request"),
        ({"prompt": "a", "method": "nope"}, "bad_request"),
        ({"prompt": "a", "seconds": 1e12}, "bad_message"),
        ({"prompt": "a", "seconds": -3}, "bad_message"),
        ({"prompt": 5}, "bad_message"),
    ],
)
def test_a_refused_start_leaves_the_connection_usable(serving: Serving, fields: dict[str, object], code: str) -> None:
    client = serving().client()
    client.send("start", **fields)
    assert client.until("error", "accepted")["code"] == code
    assert client.start("a", seconds=0.25)["type"] == "accepted"


def test_events_and_acks_need_a_session(serving: Serving) -> None:
    client = serving().client()
    client.send("ack", last_id=0)
    assert client.until("error")["code"] == "no_session"
    client.send("event", event_id="e", kind="stop")
    error = client.until("error")
    assert (error["code"], error["event_id"]) == ("no_session", "e")
    client.start("a", seconds=0.25)
    client.until("done")
    client.send("event", event_id="f", kind="prompt", prompt="b")
    assert client.until("error")["code"] == "no_session"


def test_rate_of_events(serving: Serving) -> None:
    client = serving(event_burst=5, events_per_second=0.001).client()
    client.start("a", fps=60)
    for i in range(8):
        client.send("event", event_id=f"e{i}", kind="pause")
    errors = [client.until("error") for _ in range(3)]
    assert [(e["code"], e["retryable"], e["event_id"]) for e in errors] == [
        ("rate_limited", True, f"e{i}") for i in (5, 6, 7)
    ]


def test_unacknowledged_events_are_bounded(serving: Serving) -> None:
    client = serving(FakeStudio(block_seconds=3600), pending_events=3, event_burst=50).client()
    client.start("a")
    for i in range(6):
        client.send("event", event_id=f"e{i}", kind="prompt", prompt=f"p{i}")
    assert client.until("error")["event_id"] in ("e3", "e4")


def test_a_flood_of_messages_is_slowed_down(serving: Serving) -> None:
    client = serving(messages_per_second=50.0, message_burst=20).client()
    started = time.monotonic()
    for _ in range(60):
        client.send("ping")
    for _ in range(60):
        client.until("pong")
    assert time.monotonic() - started > 0.6


def test_a_client_that_only_errs_is_disconnected(serving: Serving) -> None:
    client = serving(errors_per_connection=10).client()
    for _ in range(10):
        client.send_raw("nonsense")
    assert client.until_closed() == 1008
    assert client.messages[-1]["code"] == "too_many_errors"


def test_start_timeout(serving: Serving) -> None:
    client = serving(start_timeout=0.3).client()
    client.send("ping")  # does not count as a start
    assert client.until("error")["code"] == "start_timeout"
    assert client.until_closed() == 4008


def test_idle_timeout_and_ping(serving: Serving) -> None:
    served = serving(idle_timeout=3.0)
    client = served.client()
    client.ack = False
    client.start("a")
    for _ in range(4):
        time.sleep(0.9)
        client.send("ping")
        client.until("pong")
    assert client.until("error")["code"] == "idle_timeout"
    assert len(served.engine.sessions) == 1  # it can be resumed


def test_stall_timeout(serving: Serving) -> None:
    served = serving(stall_timeout=0.4)
    client = served.client()
    client.ack = False
    client.start("a", fps=120)
    with suppress(ConnectionClosed):
        for _ in range(20):  # it is not idle, it only does not acknowledge
            client.send("ping")
            time.sleep(0.05)
    assert client.until_closed() == 4008
    assert client.messages[-1]["code"] == "stall_timeout"
    assert len(served.engine.sessions) == 1


def test_pause_timeout_frees_the_take(serving: Serving) -> None:
    studio = FakeStudio()
    client = serving(studio, pause_timeout=0.4).client()
    client.start("a")
    client.send("event", event_id="p", kind="pause")
    error = client.until("error")
    assert (error["code"], error["fatal"]) == ("pause_timeout", True)
    eventually(lambda: studio.open_takes == 0)


def test_a_message_beyond_reading_closes_but_the_session_can_be_resumed(serving: Serving) -> None:
    served = serving()
    client = served.client()
    token = client.start("a")["resume_token"]
    client.send_raw("x" * 2_000_000)
    # A server that hangs up on unread bytes resets the connection, and its close frame may be lost with it.
    assert client.until_closed() in (1009, None)
    again = served.client()
    again.send("resume", resume_token=token)
    assert again.until("accepted")["resumed"]


def test_text_that_is_not_utf8_closes_but_the_session_can_be_resumed(serving: Serving) -> None:
    served = serving()
    client = served.client()
    token = client.start("a")["resume_token"]
    raw = client._socket.socket
    raw.sendall(bytes([0x81, 0x82, 0, 0, 0, 0]) + b"\xff\xfe")  # a masked text frame, mask 0
    assert client.until_closed() in (1007, 1009)
    again = served.client()
    again.send("resume", resume_token=token)
    assert again.until("accepted")["resumed"]


def test_connections_are_bounded(serving: Serving) -> None:
    served = serving(max_connections=2)
    served.client(), served.client()
    with pytest.raises(Exception, match="503"):
        served.client()


def test_garbage_on_the_port_leaves_the_server_alone(serving: Serving) -> None:
    served = serving()
    host, port = served.url.removeprefix("http://").rstrip("/").split(":")
    for data in (b"\x00" * 1000, b"GET /ws HTTP/1.1\r\n" + b"A: b\r\n" * 5000, b"\x16\x03\x01"):
        with socket.create_connection((host, int(port)), timeout=30) as raw:
            raw.sendall(data)
    assert served.client().start("a", seconds=0.25)["type"] == "accepted"


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
objects = st.fixed_dictionaries(
    {"type": st.sampled_from(["start", "event", "ack", "resume", "ping", "hello", "frame", ""])},
    optional={
        "prompt": scalars | st.just("a"),
        "seconds": scalars,
        "seed": scalars,
        "method": scalars,
        "format": scalars,
        "fps": scalars,
        "event_id": scalars | st.sampled_from(["e1", "e2"]),
        "kind": scalars | st.sampled_from(["prompt", "pause", "resume", "stop"]),
        "last_id": scalars,
        "resume_token": scalars | st.just("t"),
    },
)


def test_fuzz(serving: Serving) -> None:
    """Whatever is sent, every answer is a message of the protocol, and the server takes the next viewer."""
    served = serving(FakeStudio(), event_burst=1000, message_burst=10_000, errors_per_connection=1000)

    @settings(max_examples=10, deadline=None)
    @given(messages=st.lists(st.text(max_size=40) | objects | st.binary(max_size=20), min_size=1, max_size=25))
    def fuzz(messages: list[object]) -> None:
        client = served.client()
        for message in messages:
            client.send_raw(message if isinstance(message, (str, bytes)) else json.dumps(message))
        client.send("ping")
        client.until("pong")
        client.close()
        for session in served.engine.sessions:  # those that the fuzz began wait for their viewers; now they do not
            session.detached_at = -1e9
        eventually(lambda: len(served.engine.active) < served.engine.limits.max_sessions)
        other = served.client()
        assert other.start("after", seconds=0.25, fps=120)["type"] == "accepted"
        other.until("done")
        other.close()

    fuzz()
