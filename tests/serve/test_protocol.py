"""Messages and bytes: what is accepted, what is refused and how, and the documents that describe it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid.serve.messages import CLIENT_MESSAGES, SERVER_MESSAGES, FrameHeader, Ping, Start
from longvid.serve.protocol import ProtocolError, pack_frame, parse_message, schema_text, unpack_frame

DOCS = Path(__file__).resolve().parents[2] / "docs"
SIZES = {"start_bytes": 65536, "control_bytes": 16384}


def refused(text: str) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        parse_message(text, **SIZES)
    return caught.value


def test_start_in_full() -> None:
    text = (
        '{"type":"start","prompt":"a","seconds":3,"seed":9007199254740991,"method":"fifo","format":"webp","fps":12.5}'
    )
    message = parse_message(text, **SIZES)
    assert message == Start(prompt="a", seconds=3.0, seed=2**53 - 1, method="fifo", format="webp", fps=12.5)


def test_nulls_are_defaults() -> None:
    text = '{"type":"start","prompt":"a","seconds":null,"seed":null,"method":null,"format":"jpeg","fps":null}'
    assert parse_message(text, **SIZES) == Start(prompt="a")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no JSON"),
        ("[]", "object"),
        ("null", "object"),
        ("{}", "type: is missing"),
        ('{"type":"nope"}', "type='nope': must be one of start, event, ack, resume, ping"),
        ('{"type":7}', "must be one of"),
        ('{"type":"start"}', "prompt: is missing in start"),
        ('{"type":"start","prompt":""}', "prompt=''"),
        ('{"type":"start","prompt":"a","sedons":3}', "did you mean 'seconds'?"),
        ('{"type":"start","prompt":"a","seconds":NaN}', "seconds=nan: input should be a finite number"),
        ('{"type":"start","prompt":"a","seconds":1e999}', "seconds=inf"),
        ('{"type":"start","prompt":"a","seconds":-1}', "seconds=-1"),
        ('{"type":"start","prompt":"a","seconds":0}', "seconds=0"),
        ('{"type":"start","prompt":"a","seconds":1e300}', "seconds=1e+300"),
        ('{"type":"start","prompt":"a","seconds":"3"}', "seconds='3'"),
        ('{"type":"start","prompt":"a","seed":-1}', "seed=-1"),
        ('{"type":"start","prompt":"a","seed":1.5}', "seed=1.5"),
        ('{"type":"start","prompt":"a","seed":true}', "seed=True"),
        ('{"type":"start","prompt":"a","seed":9007199254740992}', "seed="),
        ('{"type":"start","prompt":"a","seed":' + "9" * 5000 + "}", "out of range"),
        ('{"type":"start","prompt":"a","format":"gif"}', "format='gif'"),
        ('{"type":"start","prompt":"a","fps":0}', "fps=0"),
        ('{"type":"start","prompt":"\\ud800"}', "no JSON"),
        ('{"type":"event","event_id":"","kind":"stop"}', "event_id=''"),
        ('{"type":"event","event_id":"a b","kind":"stop"}', "event_id='a b'"),
        ('{"type":"event","event_id":"e","kind":"jump"}', "kind='jump'"),
        ('{"type":"ack","last_id":-2}', "last_id=-2"),
        ('{"type":"ack","last_id":1.0}', "last_id"),
        ("[" * 10_000, "recursion"),
        ('{"type":"ping","more":1}', "'more': ping has no such field"),
    ],
)
def test_refusals_name_what_is_wrong(text: str, says: str) -> None:
    error = refused(text)
    assert error.code == "bad_message"
    assert says in str(error)
    assert len(str(error)) < 400


@pytest.mark.parametrize(
    ("text", "event_id"),
    [
        ('{"type":"event","event_id":"e4","kind":"prompt","prompt":""}', "e4"),
        ('{"type":"event","event_id":"e4","kind":"seek"}', "e4"),
        ('{"type":"evnt","event_id":"e4"}', "e4"),
        ('{"event_id":"e4","seconds":NaN}', "e4"),
        ('{"type":"event","event_id":"e4","kind":"prompt","prompt":"' + "x" * 20_000 + '"}', "e4"),
        ('{"type":"event","event_id":"' + "e" * 65 + '","kind":"stop"}', None),
        ('{"type":"event","event_id":4,"kind":"stop"}', None),
        ('{"type":"event","event_id":"a b","kind":"stop"}', None),
        ('{"type":"event","event_id":"e4"', None),
        ('["event_id"]', None),
        ("[" * 10_000, None),
    ],
    ids=range(11),
)
def test_what_is_refused_names_its_event(text: str, event_id: str | None) -> None:
    assert refused(text).event_id == event_id


def test_sizes() -> None:
    assert refused('{"type":"start","prompt":"' + "é" * 40_000 + '"}').code == "too_large"
    assert refused('{"type":"ping"' + " " * 17_000 + "}").code == "too_large"
    big = parse_message('{"type":"start","prompt":"' + "x" * 60_000 + '"}', **SIZES)
    assert isinstance(big, Start)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from(
    ["type", "prompt", "seconds", "seed", "method", "format", "fps", "event_id", "kind", "last_id", "resume_token"]
)
types = st.sampled_from(["start", "event", "ack", "resume", "ping", "hello"])


def answered(text: str) -> str:
    """The type of the message, or the code of the error, which is fit to be sent."""
    try:
        message = parse_message(text, **SIZES)
    except ProtocolError as error:
        str(error).encode()
        return error.code
    message.model_dump_json()
    return message.type


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200) | st.builds(json.dumps, anything))
def test_any_text_gives_a_message_or_a_typed_error(text: str) -> None:
    answer = answered(text)
    assert answer in ("bad_message", "too_large", "start", "event", "ack", "resume", "ping")


@settings(max_examples=100, deadline=None)
@given(types, st.dictionaries(fields, anything, max_size=6))
def test_any_object_gives_a_message_or_a_typed_error(kind: str, rest: dict[str, object]) -> None:
    assert answered(json.dumps({**rest, "type": kind})) in ("bad_message", "too_large", kind)


HEADER = FrameHeader(id=3, pts=0.1875, block=0, format="jpeg", width=4, height=2, sha="0" * 64, key=True)


def test_frame_round_trip() -> None:
    data = pack_frame(HEADER, b"picture")
    length = int.from_bytes(data[:4], "big")
    assert json.loads(data[4 : 4 + length])["type"] == "frame"
    assert unpack_frame(data) == (HEADER, b"picture")


@given(st.binary(max_size=300))
def test_any_bytes_give_a_frame_or_a_typed_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack_frame(data)


@pytest.mark.parametrize("message", [*CLIENT_MESSAGES, *SERVER_MESSAGES], ids=lambda m: m.__name__)
def test_schemas_in_docs_are_current(message: type[Ping]) -> None:
    tag = message.model_fields["type"].default
    assert (DOCS / "protocol" / f"{tag}.schema.json").read_text(encoding="utf-8") == schema_text(message)
    assert f"`{tag}`" in (DOCS / "protocol.md").read_text(encoding="utf-8")


def test_no_schema_is_left_over() -> None:
    tags = {f"{m.model_fields['type'].default}.schema.json" for m in (*CLIENT_MESSAGES, *SERVER_MESSAGES)}
    assert {path.name for path in (DOCS / "protocol").iterdir()} == tags
