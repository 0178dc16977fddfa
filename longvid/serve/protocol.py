"""Messages to bytes and back, and what is wrong with those that cannot be.

Text messages are JSON objects with a ``type``; frames are binary: a 4-byte big-endian length, a JSON header of that
length, the encoded picture.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from longvid.errors import InputError, nearest

from .messages import (
    CLIENT_MESSAGES,
    SERVER_MESSAGES,
    Ack,
    ClientMessage,
    ErrorCode,
    Event,
    FrameHeader,
    Id,
    Message,
    Ping,
    Resume,
    Start,
)


class ProtocolError(InputError):
    """What a client did that the protocol does not allow, or what the server cannot do for it now.

    code: one of ``ErrorCode``. retryable: the same message may succeed later.
    """

    def __init__(self, code: ErrorCode, message: str, *, retryable: bool = False, event_id: str | None = None) -> None:
        self.code, self.retryable, self.event_id = code, retryable, event_id
        super().__init__(message)


_CLIENT: TypeAdapter[Start | Event | Ack | Resume | Ping] = TypeAdapter(ClientMessage)
_ID: TypeAdapter[str] = TypeAdapter(Id)
_LENGTH = struct.Struct(">I")
_MAX_HEADER = 4096


def parse_message(text: str, *, start_bytes: int, control_bytes: int) -> Start | Event | Ack | Resume | Ping:
    """A client's message.

    Raises ProtocolError: "too_large", or "bad_message" with what is wrong, and where. It names the event_id that the
    message has, if any: whoever sent it waits for an answer.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > max(start_bytes, control_bytes):
        raise ProtocolError("too_large", f"message of {size} bytes: at most {start_bytes} for start")
    try:
        message = _CLIENT.validate_json(text)
    except ValidationError as error:
        raise ProtocolError("bad_message", _explain(error), event_id=_event_id(text)) from None
    except ValueError as error:  # lone surrogates and the like never reach the validator
        raise ProtocolError("bad_message", f"message: is no JSON text ({error})") from None
    if size > control_bytes and not isinstance(message, Start):
        event_id = message.event_id if isinstance(message, Event) else None
        raise ProtocolError("too_large", f"{message.type} of {size} bytes: at most {control_bytes}", event_id=event_id)
    return message


def _event_id(text: str) -> str | None:
    """The event_id of a text that is no message; None when it has none that would do."""
    try:
        message = from_json(text)
        return _ID.validate_python(message.get("event_id"), strict=True) if isinstance(message, dict) else None
    except ValueError:
        return None


def _explain(error: ValidationError) -> str:
    """The first complaint on one line: field, value, rule."""
    first = error.errors(include_url=False)[0]
    kind, where = first["type"], [str(part) for part in first["loc"]]
    if kind == "json_invalid":
        return f"message: is no JSON ({first['ctx']['error']})"
    if kind == "union_tag_not_found":
        return "type: is missing; every message is a JSON object with a type"
    tags = [str(cls.model_fields["type"].default) for cls in CLIENT_MESSAGES]
    if kind == "union_tag_invalid":
        return f"type={_shown(first['ctx']['tag'])}: must be one of {', '.join(tags)}"
    if not where or where[0] not in tags:
        return f"message: {first['msg']}"
    field = ".".join(where[1:]) or "message"
    if kind == "extra_forbidden":
        known = next(cls for cls in CLIENT_MESSAGES if cls.model_fields["type"].default == where[0]).model_fields
        near = nearest(field, known)
        return f"{_shown(field)}: {where[0]} has no such field" + (f"; did you mean {near!r}?" if near else "")
    if kind == "missing":
        return f"{field}: is missing in {where[0]}"
    return f"{field}={_shown(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _shown(value: Any, limit: int = 60) -> str:
    text = ascii(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def dump_message(message: Message) -> str:
    """JSON text of a server's message."""
    return message.model_dump_json()


def pack_frame(header: FrameHeader, picture: bytes) -> bytes:
    """The binary message of a frame."""
    head = header.model_dump_json().encode()
    return _LENGTH.pack(len(head)) + head + picture


def unpack_frame(data: bytes) -> tuple[FrameHeader, bytes]:
    """Header and picture of a binary message. Raises ProtocolError when it is none."""
    if len(data) < _LENGTH.size:
        raise ProtocolError("bad_message", f"frame of {len(data)} bytes: has no header")
    length = _LENGTH.unpack_from(data)[0]
    if length > min(_MAX_HEADER, len(data) - _LENGTH.size):
        raise ProtocolError("bad_message", f"frame of {len(data)} bytes: its header claims {length}")
    try:
        header = FrameHeader.model_validate_json(data[_LENGTH.size : _LENGTH.size + length])
    except ValidationError as error:
        raise ProtocolError("bad_message", f"frame header: {error.errors(include_url=False)[0]['msg']}") from None
    return header, data[_LENGTH.size + length :]


def schema_of(message: type[Message]) -> dict[str, Any]:
    """JSON schema of a message, as docs/protocol/ has it."""
    schema = message.model_json_schema(mode="serialization" if message in SERVER_MESSAGES else "validation")
    schema["required"] = ["type", *(name for name in schema.get("required", []) if name != "type")]
    tag = message.model_fields["type"].default
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"longvid/{tag}.schema.json", **schema}


def schema_text(message: type[Message]) -> str:
    """`schema_of` as the file's text."""
    return json.dumps(schema_of(message), indent=2, ensure_ascii=False) + "\n"
