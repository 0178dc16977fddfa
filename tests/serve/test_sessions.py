"""Sessions come, vanish, come back, fail and end, and leave nothing behind. Named after what went wrong elsewhere."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil

from longvid.serve.engine import Engine
from longvid.serve.limits import Limits
from longvid.serve.server import LocalServer
from longvid.serve.session import Session

from .conftest import BLOCK, Client, FakeStudio, Served, colour_of, eventually
from .pictures import colours

Serving = Callable[..., Served]


def test_resume_replays_from_the_last_frame_seen_and_goes_on(serving: Serving) -> None:
    served = serving(FakeStudio())
    client = served.client()
    accepted = client.start("a", fps=60)
    client.until_frame(20)
    client.vanish()
    again = served.client()
    again.send("resume", resume_token=accepted["resume_token"], last_id=12)  # what came later was never shown
    taken = again.until("accepted")
    assert (taken["resumed"], taken["replay_from"], taken["session"]) == (True, 13, accepted["session"])
    again.until_frame(40)
    assert again.ids == list(range(13, again.ids[-1] + 1))
    assert np.abs(colours(again)[:, 2] - np.array(again.ids)).max() <= 4


def test_resume_of_h264_begins_at_a_key(serving: Serving) -> None:
    served = serving(FakeStudio())
    client = served.client()
    token = client.start("a", fps=60, format="h264")["resume_token"]
    client.until_frame(3 * BLOCK)
    client.vanish()
    again = served.client()
    again.send("resume", resume_token=token, last_id=2 * BLOCK + 1)
    assert again.until("accepted")["replay_from"] == 2 * BLOCK
    again.until_frame(4 * BLOCK)
    assert again.frames[0][0].key


def test_a_vanished_viewer_stops_generation_and_is_reaped_after_its_grace(serving: Serving) -> None:
    """DEMON#52 exits the process after each client, because memory stays."""
    studio = FakeStudio(take_bytes=4_000_000)
    served = serving(studio)
    passed = [0.0]  # seconds that the engine's clock is ahead
    served.engine.clock = lambda: time.monotonic() + passed[0]
    client = served.client()
    token = client.start("a", fps=60)["resume_token"]
    client.until_frame(8)
    client.vanish()
    eventually(lambda: served.engine.sessions[0].viewer is None)
    session = served.engine.sessions[0]
    eventually(lambda: not session.making)
    blocks = len(studio.log)
    assert studio.open_takes == 1  # kept
    assert served.engine.gauges()["longvid_session_memory_bytes"][1] == 4_000_000
    passed[0] = served.engine.limits.grace
    eventually(lambda: studio.open_takes == 0 and not served.engine.sessions)
    gauges = {name: value for name, (_, value) in served.engine.gauges().items()}
    assert gauges["longvid_session_memory_bytes"] == gauges["longvid_ring_bytes"] == 0
    assert served.engine.telemetry.sessions["reaped"] == 1
    assert len(studio.log) == blocks  # nobody watched, nothing was made
    late = served.client()
    late.send("resume", resume_token=token, last_id=3)
    error = late.until("error")
    assert (error["code"], error["retryable"]) == ("unknown_session", False)
    assert late.start("b", seconds=0.25)["type"] == "accepted"  # the connection survives it


def test_another_connection_supersedes(serving: Serving) -> None:
    served = serving()
    first = served.client()
    token = first.start("a", fps=60)["resume_token"]
    first.until_frame(8)
    second = served.client()
    second.send("resume", resume_token=token, last_id=first.ids[-1])
    second.until("accepted")
    assert first.until("error")["code"] == "superseded"
    assert first.until_closed() == 4001
    second.until_frame(second.ids[-1] + 20 if second.ids else 40)
    assert second.ids == list(range(second.ids[0], second.ids[-1] + 1))


def test_a_resume_token_is_not_guessed(serving: Serving) -> None:
    served = serving()
    client = served.client()
    accepted = client.start("a")
    assert len(accepted["resume_token"]) >= 32
    other = served.client()
    other.send("resume", resume_token=accepted["session"])
    assert other.until("error")["code"] == "unknown_session"


def test_a_finished_video_can_still_be_fetched(serving: Serving) -> None:
    served = serving()
    client = served.client()
    token = client.start("a", seconds=0.5, fps=120)["resume_token"]
    client.until_frame(3)
    client.vanish()
    again = served.client()
    again.send("resume", resume_token=token, last_id=1)
    assert again.until("done")["frames"] == 8
    assert again.ids == list(range(2, 8))


def test_sessions_share_one_model_and_keep_their_own_state(serving: Serving) -> None:
    """Krea's second client re-initialises the cache that the first one uses."""
    studio = FakeStudio(block_seconds=0.01)
    served = serving(studio)
    clients = {name: served.client() for name in ("one", "two", "three")}
    for name, client in clients.items():
        client.start(name, seconds=3.0, seed=len(name), fps=120)
    with ThreadPoolExecutor(3) as pool:  # three viewers watch at the same time
        list(pool.map(lambda client: client.until("done", timeout=60), clients.values()))
    for name, client in clients.items():
        assert client.ids == list(range(48))
        shown = colours(client)
        assert np.abs(shown[:, :2] - colour_of(name, len(name))).max() <= 4
        assert np.abs(shown[:, 2] - np.arange(48)).max() <= 4


def test_the_session_with_the_least_model_time_is_next() -> None:
    """One model, blocks in turn: a slow session does not starve the others, and one that waited saves up no claim."""
    studio = FakeStudio()
    engine = Engine(studio, Limits(), clock=lambda: 0.0)
    viewer = Client.__new__(Client)  # present, and never spoken to
    made: list[str] = []
    for name in ("one", "two", "late"):
        session = Session(studio.check(name, None, 0, None, None), "jpeg", engine.limits, clock=engine.clock)
        session.viewer, session.state = viewer, "running" if name != "late" else "done"  # type: ignore[assignment]
        engine._sessions[name] = session
    costs = {"one": 1.0, "two": 3.0, "late": 1.0}
    for turn in range(12):
        if turn == 6:
            engine._sessions["late"].state = "running"
        session, wait = engine._next()
        assert session is not None
        assert wait == 0.0
        engine._level = session.served
        session.served += costs[session.order.prompt]
        made.append(session.order.prompt)
    assert made[:6].count("one") >= 4  # as much time for each, so three blocks of one to one of the other
    assert "two" in made[:2]
    assert 2 <= made[6:].count("late") <= 4  # at its turn at once, and no more than its share


def test_a_session_too_many_is_refused_and_disturbs_nobody(serving: Serving) -> None:
    served = serving(FakeStudio(), max_sessions=1)
    first = served.client()
    first.start("a", seconds=1.0, fps=60)
    second = served.client()
    error = second.start("b")
    assert (error["type"], error["code"], error["retryable"]) == ("error", "busy", True)
    first.until("done")
    assert first.ids == list(range(16))
    assert second.start("b", seconds=0.25)["type"] == "accepted"  # the same connection, later
    second.until("done")


def test_no_memory_for_another_session(serving: Serving) -> None:
    studio = FakeStudio()
    served = serving(studio)
    studio.room = False
    first, second = served.client(), served.client()
    assert first.start("a")["type"] == "accepted"  # one is always let in
    assert second.start("b")["code"] == "busy"


def test_an_exception_is_one_error_for_one_viewer(serving: Serving) -> None:
    """Krea's loop logs the same error for ever."""
    studio = FakeStudio()
    studio.broken = {"bad": (2, RuntimeError("secret /etc/path")), "worse": (-1, MemoryError())}
    # As torch's allocator for CPUs raises it.
    studio.broken["worst"] = (
        -1,
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    )
    served = serving(studio)
    good, bad, worse = served.client(), served.client(), served.client()
    good.start("good", fps=60)
    bad.start("bad", fps=120)
    error = bad.until("error")
    assert (error["code"], error["fatal"]) == ("generation_failed", True)
    assert "secret" not in error["message"]
    assert bad.ids == list(range(2 * BLOCK))  # what was made was sent first
    assert bad.silent(0.2)
    assert sum(message["type"] == "error" for message in bad.messages) == 1
    for prompt in ("worse", "worst"):
        worse.start(prompt)
        assert worse.until("error")["code"] == "out_of_memory"
    good.until_frame(good.ids[-1] + 30 if good.ids else 30)
    assert studio.open_takes == 1
    bad.frames.clear()
    bad.start("fine", seconds=0.5, fps=120)  # the next session works, on the same connection
    bad.until("done")
    assert bad.ids == list(range(8))


def test_what_a_slow_encoder_still_holds_is_sent_before_the_error(serving: Serving, monkeypatch) -> None:
    encode = Session.encode

    def slowly(session: Session, frames):
        time.sleep(0.1)
        return encode(session, frames)

    monkeypatch.setattr(Session, "encode", slowly)
    studio = FakeStudio(block_seconds=0)
    studio.broken = {"bad": (2, RuntimeError("gone"))}
    client = serving(studio).client()
    client.start("bad", fps=120)
    client.until("error")
    assert client.ids == list(range(2 * BLOCK))


def test_a_hundred_sessions_leave_memory_where_it_was(serving: Serving) -> None:
    """vllm#50860: memory grows a little with every session."""
    studio = FakeStudio(block_seconds=0, take_bytes=4_000_000)
    served = serving(studio, max_sessions=2)
    process = psutil.Process()

    def one(i: int) -> None:
        client = served.client()
        client.start(f"video {i}", seconds=0.25, fps=120)
        if i % 3 == 0:
            client.until("done")
            client.close()
        elif i % 3 == 1:
            client.until_frame(2)
            client.send("event", event_id="s", kind="stop")
            client.until("done")
            client.close()
        else:
            client.until("done")
            client.vanish()
        eventually(lambda: studio.open_takes == 0)

    for i in range(20):
        one(i)
    gc.collect()
    before = process.memory_info().rss
    for i in range(80):
        one(i)
    gc.collect()
    grown = process.memory_info().rss - before
    assert grown < 12_000_000, f"{grown} bytes more after 80 sessions of 4 MB"
    assert served.engine.telemetry.started == 100
    assert len(served.engine.sessions) <= 17


def test_shutting_down_is_told_and_frees_everything() -> None:
    studio = FakeStudio(block_seconds=0.5)
    with LocalServer(studio) as server:
        client = Client(server.url)
        client.start("a")
        idle = Client(server.url)
        time.sleep(0.1)
    error = client.until("error")
    assert (error["code"], error["retryable"], error["fatal"]) == ("shutting_down", True, True)
    assert client.until_closed() == 1012
    assert idle.until_closed() == 1012
    assert studio.open_takes == 0
