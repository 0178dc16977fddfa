"""The frames of a session that a viewer may still ask for: what was sent and not acknowledged, and some history."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple


class SentFrame(NamedTuple):
    """A frame on the wire: its id, its block, whether it is a key, and the whole binary message."""

    id: int
    block: int
    key: bool
    data: bytes


class FrameRing:
    """Sent frames by contiguous id, oldest first.

    Unacknowledged frames always stay: their number is bounded by flow control, not here. Acknowledged ones stay while
    they are among the last `history`, and further back to the key frame that these need.
    """

    def __init__(self, history: int) -> None:
        self._history = history
        self._frames: deque[SentFrame] = deque()
        self.next_id = 0
        """Id of the next frame that is sent."""
        self.acked = -1
        """Last id that the viewer has acknowledged."""
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def oldest(self) -> int:
        """Id of the oldest frame that is kept, or `next_id` when none is."""
        return self._frames[0].id if self._frames else self.next_id

    @property
    def unacked(self) -> int:
        """Frames sent and not acknowledged."""
        return self.next_id - 1 - self.acked

    def unacked_blocks(self) -> set[int]:
        """Blocks of the unacknowledged frames."""
        return {frame.block for frame in reversed(self._frames) if frame.id > self.acked}

    def append(self, frame: SentFrame) -> None:
        """Keep a frame that is being sent. Raises ValueError when its id does not follow."""
        if frame.id != self.next_id:
            raise ValueError(f"id={frame.id}: must be {self.next_id}")
        self._frames.append(frame)
        self.bytes += len(frame.data)
        self.next_id += 1
        self._trim()

    def acknowledge(self, last_id: int) -> None:
        """Frames up to last_id were shown. Going back changes nothing. Raises ValueError for a frame never sent."""
        if last_id >= self.next_id:
            raise ValueError(f"last_id={last_id}: the last frame sent is {self.next_id - 1}")
        self.acked = max(self.acked, last_id)
        self._trim()

    def get(self, frame_id: int) -> SentFrame:
        """A frame that is kept. Raises KeyError."""
        index = frame_id - self.oldest
        if not 0 <= index < len(self._frames):
            raise KeyError(frame_id)
        return self._frames[index]

    def replay_from(self, last_id: int) -> int:
        """Where to begin for a viewer that saw up to last_id: the last key frame at or before the next one."""
        wanted = min(max(last_id + 1, self.oldest), self.next_id)
        start = wanted
        while start > self.oldest and start < self.next_id and not self.get(start).key:
            start -= 1
        return start

    def __iter__(self) -> Iterator[SentFrame]:
        return iter(self._frames)

    def _trim(self) -> None:
        keep = self.acked + 1 - self._history
        while self._frames and self._frames[0].id < keep:
            # Drop a whole group: a frame may go when the one behind the group's end, a key, is not needed either.
            group = 1
            while group < len(self._frames) and not self._frames[group].key:
                group += 1
            if group == len(self._frames) or self._frames[group].id > keep:
                return
            for _ in range(group):
                self.bytes -= len(self._frames.popleft().data)
