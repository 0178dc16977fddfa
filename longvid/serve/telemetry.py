"""Numbers for operators, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

BLOCK_BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
FIRST_FRAME_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """Cumulative buckets, sum and count."""

    def __init__(self, name: str, text: str, buckets: tuple[float, ...]) -> None:
        self.name, self.text, self._bounds = name, text, buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self) -> Iterable[str]:
        yield f"# HELP {self.name} {self.text}"
        yield f"# TYPE {self.name} histogram"
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{self.name}_bucket{{le="{bound}"}} {total}'
        yield f"{self.name}_sum {self._sum:.6f}"
        yield f"{self.name}_count {total}"


class Telemetry:
    """Counters and histograms of a server's whole life; gauges are given at the time of asking."""

    def __init__(self) -> None:
        self.sessions = Counter[str]()
        """Sessions by how they ended: finished, stopped, failed, reaped."""
        self.started = self.resumed = self.blocks = self.frames = self.bytes = self.flushed = 0
        self.refused = Counter[str]()
        """Connections refused before they were accepted, by reason."""
        self.errors = Counter[str]()
        """Errors sent to clients, by code."""
        self.block_seconds = Histogram("longvid_block_seconds", "Model and decoder time of a block.", BLOCK_BUCKETS)
        self.first_frame = Histogram(
            "longvid_first_frame_seconds", "From start to the first frame on the wire.", FIRST_FRAME_BUCKETS
        )

    def text(self, gauges: dict[str, tuple[str, float]]) -> str:
        """The exposition. gauges: name -> (help, value)."""
        lines: list[str] = []
        for name, (text, value) in gauges.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {value:g}"]
        plain = (
            ("longvid_sessions_started_total", "Sessions begun.", self.started),
            ("longvid_sessions_resumed_total", "Sessions taken up again.", self.resumed),
            ("longvid_blocks_total", "Blocks made.", self.blocks),
            ("longvid_frames_sent_total", "Frames sent.", self.frames),
            ("longvid_bytes_sent_total", "Bytes of frames sent.", self.bytes),
            ("longvid_frames_flushed_total", "Frames dropped because an event made them stale.", self.flushed),
        )
        for name, text, number in plain:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} counter", f"{name} {number}"]
        by_label = (
            ("longvid_sessions_ended_total", "Sessions by how they ended.", "how", self.sessions),
            ("longvid_connections_refused_total", "Connections refused.", "reason", self.refused),
            ("longvid_errors_total", "Errors told to clients.", "code", self.errors),
        )
        for name, text, label, counter in by_label:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} counter"]
            lines += [f'{name}{{{label}="{key}"}} {count}' for key, count in sorted(counter.items())]
        lines += [*self.block_seconds.lines(), *self.first_frame.lines()]
        return "\n".join(lines) + "\n"
