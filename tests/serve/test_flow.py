"""Flow control: what a slow, pausing or steering viewer does to generation. Named after what went wrong elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from longvid.serve.limits import Limits
from longvid.serve.messages import Event, EventAck
from longvid.serve.session import Session
from longvid.serve.studio import MadeBlock

from .conftest import BLOCK, SIDE, FakeStudio, Served, colour_of, eventually
from .pictures import colours

Serving = Callable[..., Served]


def test_a_whole_video(serving: Serving) -> None:
    client = serving().client()
    accepted = client.start("a", seconds=1.0, seed=7)
    assert (accepted["frames"], accepted["seed"], accepted["replay_from"]) == (16, 7, 0)
    done = client.until("done")
    assert (done["reason"], done["frames"]) == ("finished", 16)
    assert client.ids == list(range(16))
    assert [header.block for header, _ in client.frames] == [i // BLOCK for i in range(16)]
    assert [header.pts for header, _ in client.frames] == [i / 16 for i in range(16)]
    shown = colours(client)
    assert np.abs(shown[:, :2] - colour_of("a", 7)).max() <= 4
    assert np.abs(shown[:, 2] - np.arange(16)).max() <= 4


def test_a_slow_viewer_stalls_generation_and_loses_no_frame(serving: Serving) -> None:
    """Scope drops frames that its queue has no room for; Krea and StreamDiffusionV2 queue without a bound."""
    studio = FakeStudio()
    served = serving(studio, ahead_blocks=3)
    client = served.client()
    client.ack = False
    client.start(fps=120)
    eventually(lambda: len(studio.log) == 3)
    assert client.until_frame(3 * BLOCK - 1).id == 11
    assert client.silent(0.5)
    assert len(studio.log) == 3
    session = served.engine.sessions[0]
    assert (session.unsent, session.ring.unacked) == (0, 12)
    client.ack = True
    client.send("ack", last_id=11)
    client.until_frame(40)
    assert client.ids == list(range(len(client.ids)))


def test_a_viewer_that_does_not_read_its_socket_costs_a_bounded_amount(serving: Serving) -> None:
    studio = FakeStudio(block_seconds=0)
    served = serving(studio)
    deaf, other = served.client(), served.client()
    deaf.send("start", prompt="deaf", seed=0, seconds=None, fps=120)
    other.start("other", fps=120)
    other.until_frame(60)
    assert sum(prompt == "deaf" for prompt, _, _ in studio.log) == 3


def test_generation_keeps_the_pace_of_the_video(serving: Serving) -> None:
    studio = FakeStudio(block_seconds=0)
    client = serving(studio, ahead_blocks=2).client()
    client.start(fps=40)
    client.until_frame(40)
    times = [at for _, _, at in studio.log]
    for block, at in enumerate(times):
        due = max(0, block + 1 - 2) * BLOCK / 40  # when it may begin to be made, seconds after the first
        assert at - times[0] >= due - 0.02


def test_pause_stops_the_model_and_resume_goes_on(serving: Serving) -> None:
    studio = FakeStudio()
    client = serving(studio).client()
    client.start(fps=120)
    client.until_frame(10)
    client.send("event", event_id="p", kind="pause")
    ack = client.until("event.ack", event_id="p")
    blocks = len(studio.log)
    assert ack["applied_at_frame"] == blocks * BLOCK
    assert client.silent(0.3)
    assert len(studio.log) == blocks
    client.send("event", event_id="r", kind="resume")
    assert client.until("event.ack", event_id="r")["applied_at_frame"] == ack["applied_at_frame"]
    client.until_frame(ack["applied_at_frame"] + 8)
    assert client.ids == list(range(len(client.ids)))


def test_no_race_after_a_pause(serving: Serving) -> None:
    studio = FakeStudio(block_seconds=0)
    client = serving(studio, ahead_blocks=2).client()
    client.start(fps=40)
    client.until_frame(8)
    client.send("event", event_id="p", kind="pause")
    client.until("event.ack")
    time.sleep(0.6)
    before, resumed = len(studio.log), time.monotonic()
    client.send("event", event_id="r", kind="resume")
    client.until_frame((before + 8) * BLOCK)
    for block, (_, _, at) in enumerate(studio.log[before:]):  # two in advance; a clock that ran on would want six more
        assert at - resumed >= (block - 2) * BLOCK / 40 - 0.02


def test_prompt_takes_effect_at_the_next_block_and_the_ack_names_it(serving: Serving) -> None:
    client = serving(FakeStudio(block_seconds=0.01)).client()
    client.start("a", fps=60)
    client.until_frame(9)
    client.send("event", event_id="e", kind="prompt", prompt="b")
    ack = client.until("event.ack")
    first = ack["applied_at_frame"]
    assert (ack["event_id"], ack["kind"]) == ("e", "prompt")
    assert client.receive().id == first  # comes right before the frame that it names
    client.until_frame(first + 8)
    shown = colours(client)
    assert np.abs(shown[:first, :2] - colour_of("a", 0)).max() <= 4
    assert np.abs(shown[first:, :2] - colour_of("b", 0)).max() <= 4
    assert client.frames[first][0].block == ack["applied_at_block"]
    assert client.ids == list(range(len(client.ids)))


def test_stale_frames_are_flushed_and_ids_stay_contiguous(serving: Serving) -> None:
    """Scope#559: the old prompt's queue was played to its end."""
    served = serving(FakeStudio(block_seconds=0.05))
    client = served.client()
    client.start("a", fps=120)
    client.until_frame(9)
    session = served.engine.sessions[0]
    # A connection that is gone leaves frames unsent; the prompt arrives on the next one.
    client.vanish()
    eventually(lambda: session.viewer is None and not session.making and not session.posting)
    unsent = session.unsent
    seen = session.ring.next_id - 1
    again = served.client()
    again.send("resume", resume_token=session.token, last_id=seen)
    again.until("accepted")
    again.send("event", event_id="e", kind="prompt", prompt="b", hard_cut=True)
    ack = again.until("event.ack")
    again.until_frame(ack["applied_at_frame"] + 6)
    assert ack["notice"] == "cut"
    assert again.ids == list(range(seen + 1, again.ids[-1] + 1))
    assert ack["flushed"] <= unsent + 4 * BLOCK
    shown = colours(again)[ack["applied_at_frame"] - seen - 1 :]
    assert np.abs(shown[:, :2] - colour_of("b", 0)).max() <= 4


def test_two_prompts_before_one_block_are_both_acknowledged_and_the_last_wins(serving: Serving) -> None:
    client = serving(FakeStudio(block_seconds=0.1)).client()
    client.start("a", fps=60)
    client.until_frame(3)
    client.send("event", event_id="1", kind="prompt", prompt="b")
    client.send("event", event_id="2", kind="prompt", prompt="c")
    acks = [client.until("event.ack"), client.until("event.ack")]
    assert [ack["event_id"] for ack in acks] == ["1", "2"]
    last = acks[-1]["applied_at_frame"]
    client.until_frame(last + 4)
    assert np.abs(colours(client)[last:, :2] - colour_of("c", 0)).max() <= 4


def test_a_prompt_the_model_refuses_is_an_error_about_that_event(serving: Serving) -> None:
    client = serving().client()
    client.start("a", fps=60)
    client.until_frame(3)
    client.send("event", event_id="e", kind="prompt", prompt="b[5s] | c")
    error = client.until("error")
    assert (error["code"], error["event_id"], error["fatal"]) == ("bad_request", "e", False)
    client.until_frame(client.ids[-1] + 8)


def test_the_same_event_twice_is_acknowledged_twice_and_happens_once(serving: Serving) -> None:
    client = serving().client()
    client.start("a", fps=60)
    client.until_frame(3)
    event = {"event_id": "e", "kind": "prompt", "prompt": "b"}
    client.send("event", **event)
    first = client.until("event.ack")
    client.send("event", **event)
    assert client.until("event.ack") == first
    client.send("event", **event | {"prompt": "c"})
    assert client.until("error")["code"] == "conflict"


def test_each_copy_of_a_pending_event_is_answered_also_after_a_reconnect(serving: Serving) -> None:
    served = serving()
    client = served.client()
    client.start("a", fps=60)
    client.until_frame(3)
    client.send("event", event_id="p", kind="pause")  # no block is made, so prompts wait
    client.until("event.ack")
    good = {"event_id": "good", "kind": "prompt", "prompt": "b"}
    bad = {"event_id": "bad", "kind": "prompt", "prompt": "b[5s] | c"}
    for event in (good, good, bad, bad):
        client.send("event", **event)
    client.send("ping")
    client.until("pong")
    session, seen = served.engine.sessions[0], client.ids[-1]
    client.vanish()
    again = served.client()
    again.send("resume", resume_token=session.token, last_id=seen)
    again.send("event", **good)
    again.send("event", event_id="r", kind="resume")
    acks = [again.until("event.ack", event_id="good") for _ in range(3)]
    assert acks[0] == acks[1] == acks[2]
    assert again.receive().id == acks[0]["applied_at_frame"]
    assert [m["event_id"] for m in again.messages if m["type"] == "error"] == ["bad", "bad"]
    again.until_frame(again.ids[-1] + 8)
    assert sum(m["type"] == "event.ack" and m["event_id"] == "good" for m in again.messages) == 3


def test_copies_of_a_pending_event_are_bounded(serving: Serving) -> None:
    client = serving(FakeStudio(block_seconds=3600), pending_events=3).client()
    client.start("a")
    for _ in range(4):
        client.send("event", event_id="e", kind="prompt", prompt="b")
    error = client.until("error")
    assert (error["code"], error["event_id"], error["retryable"]) == ("rate_limited", "e", True)


def test_a_copy_whose_acknowledgement_is_not_sent_yet_keeps_its_place_behind_the_frames() -> None:
    session = Session(FakeStudio().check("a", None, 0, None, None), "jpeg", Limits())
    session.state = "running"
    made = MadeBlock(np.zeros((BLOCK, SIDE, SIDE, 3), np.uint8), 0, 0.0, False, None, 0)
    session.add_block(made, session.encode(made.frames))
    pause = Event(event_id="p", kind="pause")
    assert session.take_event(pause) is None
    assert session.take_event(pause) is None
    sent = list(iter(session.pop, None))
    assert [type(item) for item in sent] == [bytes] * BLOCK + [str] * 2
    assert session.take_event(pause) == EventAck.model_validate_json(sent[-1])


def test_an_event_that_waits_is_not_forgotten_for_later_ones() -> None:
    session = Session(FakeStudio().check("a", None, 0, None, None), "jpeg", Limits())
    session.state = "running"
    prompt = Event(event_id="e", kind="prompt", prompt="b")
    for event in (prompt, *(Event(event_id=f"p{i}", kind="pause") for i in range(200)), prompt):
        session.take_event(event)
    assert list(session.prompts) == [prompt]
    session.finish("finished")
    assert sum(isinstance(item, str) and '"e"' in item for item in iter(session.pop, None)) == 2


def test_stop_ends_at_once(serving: Serving) -> None:
    studio = FakeStudio(block_seconds=3600)  # nobody waits for the block to end
    client = serving(studio).client()
    client.start("a")
    client.send("event", event_id="s", kind="stop")
    assert client.until("event.ack")["applied_at_frame"] == 0
    assert client.until("done") == {"type": "done", "reason": "stopped", "frames": 0}
    eventually(lambda: studio.open_takes == 0)


def test_another_video_may_follow_on_the_same_connection(serving: Serving) -> None:
    client = serving().client()
    client.start("a", seconds=0.5, fps=120)
    client.until("done")
    client.frames.clear()
    client.start("b", seconds=0.5, fps=120)
    client.until("done")
    assert client.ids == list(range(8))


@pytest.mark.parametrize("kind", ["jpeg", "webp", "h264"])
def test_stats_tell_how_it_goes(serving: Serving, kind: str) -> None:
    client = serving().client()
    client.start("a", seconds=1.0, fps=120, format=kind)
    client.until("done")
    stats = [message for message in client.messages if message["type"] == "stats"]
    last = stats[-1]
    assert last["frames"] == 16
    assert last["fps"] > 0
    assert last["time_to_first_frame"] > 0
    assert last["block_ms"]["median"] <= last["block_ms"]["p95"]
    assert [slot["role"] for slot in last["cache"]["slots"]] == ["sink", "recent", "recent"]
    assert {"brightness", "contrast", "saturation", "sharpness"} <= set(last["drift"])
    assert {header.format for header, _ in client.frames} == {kind}
