"""Events that a session has taken, and the answers that it owes for them.

Every copy of an event gets an answer: its sender may wait for each, or be a new connection that does not know of the
copy before.
"""

from __future__ import annotations

from dataclasses import dataclass

from .messages import Event, EventAck
from .protocol import ProtocolError

_REMEMBERED = 64


@dataclass(slots=True)
class TakenEvent:
    """repeats: how often it came again before its acknowledgement, which is then sent for each."""

    event: Event
    ack: EventAck | None = None
    repeats: int = 0


class EventBook:
    """The newest events by their ids; those that wait for their acknowledgement are never forgotten."""

    def __init__(self) -> None:
        self._taken: dict[str, TakenEvent] = {}

    @property
    def repeats(self) -> int:
        """Copies that wait for an acknowledgement, beside the events themselves."""
        return sum(taken.repeats for taken in self._taken.values())

    def find(self, event: Event) -> TakenEvent | None:
        """The event, if it came before. Raises ProtocolError when another one had its id."""
        taken = self._taken.get(event.event_id)
        if taken is not None and taken.event != event:
            raise ProtocolError(
                "conflict", f"event_id={event.event_id!r}: was used for another event", event_id=event.event_id
            )
        return taken

    def add(self, event: Event) -> None:
        self._taken[event.event_id] = TakenEvent(event)
        answered = [name for name, taken in self._taken.items() if taken.ack is not None]
        for name in answered[: max(0, len(self._taken) - _REMEMBERED)]:
            del self._taken[name]

    def acknowledge(self, ack: EventAck) -> int:
        """Note an acknowledgement; how many times it has to be sent."""
        taken = self._taken[ack.event_id]
        copies = 1 + taken.repeats
        taken.ack, taken.repeats = ack, 0
        return copies

    def amend(self, ack: EventAck) -> None:
        """Another acknowledgement for an event that has one."""
        if ack.event_id in self._taken:
            self._taken[ack.event_id].ack = ack

    def refuse(self, event: Event) -> int:
        """Forget an event that cannot be, so that it may come again, mended; how many times that has to be said."""
        return 1 + self._taken.pop(event.event_id).repeats


def check_event(event: Event, prompt_characters: int) -> None:
    """Raise ProtocolError for an event with a prompt where none belongs, without one, or with too long a one."""
    if event.kind == "prompt":
        if event.prompt is None:
            raise ProtocolError("bad_request", "prompt: is missing", event_id=event.event_id)
        if len(event.prompt) > prompt_characters:
            raise ProtocolError(
                "bad_request",
                f"prompt: {len(event.prompt)} characters; at most {prompt_characters}",
                event_id=event.event_id,
            )
    elif event.prompt is not None:
        raise ProtocolError("bad_request", f"prompt: not allowed in kind {event.kind!r}", event_id=event.event_id)
