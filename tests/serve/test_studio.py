"""The real pipeline behind the server: the frames of pipe.stream, several methods on one model, nothing left behind."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from longvid.serve.encoder import make_encoder
from longvid.serve.protocol import ProtocolError
from longvid.serve.studio import Cancelled, PipelineStudio

from .conftest import Served, eventually

Serving = Callable[..., Served]
SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "protocol"


@pytest.fixture
def studio(make_tiny_pipe: Any) -> PipelineStudio:
    return PipelineStudio(make_tiny_pipe("streaming-llm", steps=[1000, 500], shift=3.0, train_frames=6), model="tiny")


def test_offers_every_method_that_the_model_can_run(studio: PipelineStudio) -> None:
    names = [entry.name for entry in studio.methods]
    assert names[0] == studio.method == "streaming-llm"
    assert {"self-forcing", "deep-forcing", "rolling-forcing", "reward-forcing", "fifo"} <= set(names)
    assert (studio.fps, studio.width, studio.height) == (16.0, 64, 64)


def test_methods_can_be_restricted(make_tiny_pipe: Any) -> None:
    pipe = make_tiny_pipe("self-forcing", steps=[1000, 500], shift=3.0)
    assert [entry.name for entry in PipelineStudio(pipe, methods=("self-forcing",)).methods] == ["self-forcing"]


@pytest.mark.parametrize("seconds", [None, 1.0])
@pytest.mark.parametrize("method", ["streaming-llm", "deep-forcing", "rolling-forcing", "fifo"])
def test_a_take_makes_what_stream_makes(studio: PipelineStudio, method: str, seconds: float | None) -> None:
    order = studio.check("a red ball", seconds, 5, method, None)
    take = studio.open(order)
    expected = studio._pipe(method).stream("a red ball", seconds=seconds, seed=5)
    for _ in range(3):
        made, chunk = take.make(), next(expected, None)
        if chunk is None:
            assert made is None
            break
        assert made is not None
        assert made.index == chunk.index
        assert np.array_equal(made.frames, chunk.frames)
    take.close()


def test_takes_of_different_methods_interleave_without_touching_each_other(studio: PipelineStudio) -> None:
    methods = ["streaming-llm", "deep-forcing", "rolling-forcing", "reward-forcing"]
    alone = {}
    for method in methods:
        take = studio.open(studio.check("a blue star", None, 1, method, None))
        alone[method] = [take.make().frames for _ in range(5)]  # type: ignore[union-attr]
        take.close()
    takes = {method: studio.open(studio.check("a blue star", None, 1, method, None)) for method in methods}
    for i in range(5):
        for method in methods:
            made = takes[method].make()
            assert made is not None
            assert np.array_equal(made.frames, alone[method][i]), (method, i)
    for take in takes.values():
        take.close()


@pytest.mark.parametrize("hard_cut", [False, True], ids=["soft", "cut"])
@pytest.mark.parametrize("method", ["streaming-llm", "deep-forcing", "rolling-forcing", "fifo"])
def test_a_prompt_switch_names_the_block_that_shows_it(studio: PipelineStudio, method: str, hard_cut: bool) -> None:
    """LongLive#12: after a switch the old prompt was used on."""

    def shoot(switch_to: str | None) -> list[Any]:
        take = studio.open(studio.check("a red ball over the sea", None, 2, method, None))
        made = [take.make(), take.make()]
        if switch_to is not None:
            assert take.set_prompt(switch_to, hard_cut) is None
        made += [take.make() for _ in range(8)]
        take.close()
        return made

    plain, switched = shoot(None), shoot("a green heart in the desert")
    first = next(i for i, made in enumerate(switched) if made.switched)
    assert first >= 2
    assert sum(made.switched for made in switched) == 1
    # Rolling Forcing denoises blocks together: those that drain before a cut lack the company of the blocks behind it.
    drains = method == "rolling-forcing" and hard_cut
    for i in range(first):
        assert np.abs(plain[i].frames.astype(int) - switched[i].frames).max() <= (8 if drains and i >= 2 else 0), i
    assert not np.array_equal(plain[first].frames, switched[first].frames)


def test_what_the_model_does_not_understand_is_said(studio: PipelineStudio) -> None:
    order = studio.check("a red ball | x"[:10], None, 0, None, None)
    assert order.notice is None
    assert "zorg" in (studio.check("a red zorg", None, 0, None, None).notice or "")
    take = studio.open(order)
    assert "fnord" in (take.set_prompt("a fnord", False) or "")
    with pytest.raises(ValueError, match="a switch takes one prompt"):
        take.set_prompt("a[5s] | b", False)
    assert "fnord" in (take.set_prompt(r"a red \[fnord ball", False) or "")  # a bracket in the text is no length
    assert next(made for _ in range(9) if (made := take.make())).switched
    take.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a", None, 0, "nope", None), "must be one of"),
        (("a[", None, 0, None, None), "character 2"),
        (("a[5s] | b", 3.0, 0, None, None), "would never be shown"),
    ],
)
def test_bad_requests(studio: PipelineStudio, arguments: Any, says: str) -> None:
    with pytest.raises(ProtocolError, match=says) as caught:
        studio.check(*arguments)
    assert caught.value.code == "bad_request"


def test_a_take_is_cancelled_inside_a_block(studio: PipelineStudio) -> None:
    take = studio.open(studio.check("a red ball", None, 0, None, None))
    take.make()
    calls = []
    original = take._rollout.on_step

    def step(*arguments: Any) -> Any:
        calls.append(arguments)
        take.cancel()
        return original(*arguments)

    take._rollout.on_step = step
    with pytest.raises(Cancelled):
        take.make()
    assert len(calls) == 1  # of two steps
    take.close()


@pytest.mark.parametrize("method", ["streaming-llm", "deep-forcing", "rolling-forcing"])
def test_closing_a_take_frees_its_cache_at_once(studio: PipelineStudio, method: str) -> None:
    """sglang#36475: a client that left kept its cache."""
    take = studio.open(studio.check("a red ball", None, 0, method, None))
    take.make()
    take.make()
    assert take.memory_bytes > 0
    cache = weakref.ref(take._rollout.cache)
    keys = weakref.ref(take._rollout.cache._keys)
    gc.disable()
    try:
        take.close()
        assert cache() is None
        assert keys() is None
    finally:
        gc.enable()
    assert take.memory_bytes == 0
    take.close()


@pytest.mark.parametrize("method", ["deep-forcing", "rolling-forcing", "fifo"])
@pytest.mark.parametrize("how", ["finished", "stopped", "vanished", "failed"])
def test_a_session_frees_its_take_without_the_collector(
    serving: Serving, studio: PipelineStudio, monkeypatch: Any, caplog: Any, how: str, method: str
) -> None:
    """And without an automatic collection, which may come late: a full one holds up every viewer."""
    caplog.set_level(
        logging.CRITICAL, "longvid.serve"
    )  # pytest keeps records, they the traceback, and that the rollout
    opened: list[weakref.ref[Any]] = []
    original = studio.open

    def opening(order: Any) -> Any:
        take = original(order)
        opened.extend(weakref.ref(part) for part in (take, take._rollout, take._decoder))
        if how == "failed":
            take._rollout.on_step = lambda *_: 1 / 0
        return take

    monkeypatch.setattr(studio, "open", opening)
    served = serving(studio)
    client = served.client()
    gc.collect()
    gc.disable()
    try:
        client.start("a red ball", seconds=1.0 if how == "finished" else None, method=method, fps=120)
        if how == "failed":
            assert client.until("error")["code"] == "generation_failed"
        elif how == "finished":
            client.until("done")
        else:
            client.until_frame(12)
            if how == "stopped":
                client.send("event", event_id="s", kind="stop")
                client.until("done")
            else:
                client.vanish()
                eventually(lambda: served.engine.sessions[0].viewer is None)
                served.engine.sessions[0].detached_at -= served.engine.limits.grace
        eventually(lambda: not any(part() is not None for part in opened))
    finally:
        gc.enable()
    assert len(opened) == 3


def test_warm_up_leaves_nothing(studio: PipelineStudio) -> None:
    assert studio.warm_up() > 0
    assert studio.room_for(studio.check("a", None, 0, None, None))


@pytest.mark.parametrize("method", ["reward-forcing", "fifo"])
def test_there_is_room_for_what_a_take_came_to_hold(
    studio: PipelineStudio, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """With the state of the decoder and a queue, which are not there before the first block."""
    order, free = studio.check("a", None, 0, method, None), 0
    monkeypatch.setattr("longvid.serve.studio.free_memory", lambda pipe: free)
    take = studio.open(order)
    before = take.memory_bytes
    for _ in range(4):
        take.make()
    held = take.memory_bytes
    take.close()
    assert held > before
    free = int(held * 1.25) + 1
    assert studio.room_for(order)
    free = int(held * 1.25) - 1
    assert not studio.room_for(order)


def test_served_frames_are_those_of_stream(serving: Serving, studio: PipelineStudio) -> None:
    """stream == served, bit for bit: the header's hash is that of the same pixels, encoded here."""
    served = serving(studio)
    requests = [("a red ball", 3, "streaming-llm"), ("a blue star", 4, "deep-forcing")]
    clients = [served.client() for _ in requests]
    for client, (prompt, seed, method) in zip(clients, requests, strict=True):
        client.start(prompt, seconds=2.0, seed=seed, method=method, fps=120)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda client: client.until("done", timeout=30), clients))
    for client, (prompt, seed, method) in zip(clients, requests, strict=True):
        encoder = make_encoder("jpeg", 64, 64, 16.0)
        expected = []
        for chunk in studio._pipe(method).stream(prompt, seconds=2.0, seed=seed):
            expected += [hashlib.sha256(picture.data).hexdigest() for picture in encoder.encode(chunk.frames)]
        assert [header.sha for header, _ in client.frames] == expected
        assert [hashlib.sha256(data).hexdigest() for _, data in client.frames] == expected


def test_every_message_fits_its_schema(serving: Serving, studio: PipelineStudio) -> None:
    client = serving(studio).client()
    client.send_raw("nonsense")
    client.start("a zorg", seconds=3.0, fps=60)
    client.until_frame(12)
    client.send("event", event_id="e", kind="prompt", prompt="a blue star")
    client.until("event.ack")
    client.send("ping")
    client.until("done")
    checked = set()
    for message in [*client.messages, *(header.model_dump() for header, _ in client.frames)]:
        schema = json.loads((SCHEMAS / f"{message['type']}.schema.json").read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator(schema).validate(message)
        checked.add(message["type"])
    assert checked == {"hello", "error", "accepted", "stats", "event.ack", "pong", "done", "frame"}
