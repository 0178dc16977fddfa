"""The numbers that keep a server bounded. What a client must know of them is announced in ``hello``."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from longvid.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every bound of a server; all of them hold for each session or connection separately unless they say otherwise.

    Raises InputError for values that are not finite and positive.
    """

    max_sessions: int = 4
    """Sessions that hold a cache at the same time, vanished ones in their grace time included."""
    max_connections: int = 32
    """Open websockets, with or without a session."""
    start_bytes: int = 64 * 1024
    """Size of a start message."""
    control_bytes: int = 16 * 1024
    """Size of any other message."""
    prompt_characters: int = 4_000
    """Length of a prompt, schedule syntax included."""
    events_per_second: float = 5.0
    """Sustained rate of event messages; short bursts may reach ``event_burst``."""
    event_burst: int = 10
    messages_per_second: float = 200.0
    """Sustained rate of all messages; short bursts may reach ``message_burst``."""
    message_burst: int = 400
    pending_events: int = 16
    """Events that wait for their acknowledgement, copies of one included."""
    ahead_blocks: int = 3
    """Blocks that are made but neither acknowledged nor due for display: generation never runs further ahead."""
    history_frames: int = 96
    """Acknowledged frames that are kept for a viewer that comes back."""
    errors_per_connection: int = 100
    """Errors of a client's own making before it is disconnected."""
    start_timeout: float = 10.0
    """Seconds in which a new connection must start or resume a session."""
    idle_timeout: float = 60.0
    """Seconds without any message, pings included, before a connection is closed."""
    stall_timeout: float = 60.0
    """Seconds that generation may wait for a slow viewer's acknowledgements before the connection is closed."""
    pause_timeout: float = 600.0
    """Seconds that a session may stay paused before it ends."""
    grace: float = 30.0
    """Seconds that a session without a connection is kept for ``resume``."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            whole = item.type == "int"
            if not math.isfinite(value) or value <= 0 or (whole and not isinstance(value, int)):
                raise InputError(f"{item.name}={value!r}: must be a {'whole ' if whole else ''}number above 0")
