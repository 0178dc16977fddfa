"""Radial attention as a cache policy: what will never be read again is not kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longvid.kernels.radial import frame_stride

from .plan import Plan, RecachePlan, Rephase, View, require
from .sliding import Positions, check_commit_window, commit_view, gathered, recache_plan

HORIZON = 1 << 16
"""Frames that an endless history is allocated for, at most (4.5 hours of Wan video at 16 frames a second)."""


class RadialPolicy:
    """``[ sink | every 2^k-th frame of octave k | newest frames | current block ]``: memory grows with log(history).

    Radial Attention (arXiv 2506.19852, sec. 4) thins frames by distance: d < `dense` keeps all, then every 2nd, 4th,
    8th... frame an octave. There a frame stays if the *distance* divides; every query keeps another set, and nothing
    can be freed. Here a frame stays if its own *number* divides (our change; same density). The stride only grows with
    distance, so the kept sets are nested: a frame that is masked now is masked for ever, and leaves the cache.

        dense = 4, at frame 32:   0 . . . . . . . 8 . . . . . . . 16 . . . 20 . . . 24 . 26 . 28 29 30 31 | 32...
                                  sink                            every 4th         every 2nd  all

    window: how far back, in frames, a call may look at all, -1 = everything; sinks stay. dense: a power of two;
    16 is what the paper's rule gives at 480p (`tests/cache/test_radial_policy.py` has the proof). positions: as in
    `SlidingPolicy`. frames: length of the video, for which storage is made; None = endless. The policy alone decides
    which frames are read, in full; `attention="radial"` also narrows bands.
    """

    name = "radial"
    merged = 0

    def __init__(
        self,
        *,
        frames_per_block: int,
        window: int = -1,
        sink: int = 1,
        dense: int = 16,
        positions: Positions = "absolute",
        commit_window: int = 0,
        frames: int | None = None,
    ) -> None:
        require(positions in ("absolute", "window"), f"positions={positions!r}: must be 'absolute' or 'window'")
        require(sink >= 0, f"sink={sink}: must be 0 or more frames")
        near = 1 << max(0, dense.bit_length() - 1)
        require(
            dense >= 1 and dense & (dense - 1) == 0,
            f"recent={dense}: the radial policy thins by octaves, needs a power of two; nearest {near} or {2 * near}",
        )
        require(window == -1 or window >= 1, f"window={window}: must be 1 frame or more, or -1 for all")
        check_commit_window(commit_window, frames_per_block)
        length = HORIZON if frames is None else frames
        self.window = length if window == -1 else min(window, length)
        self.sink, self.dense, self.commit_window = sink, dense, commit_window
        self.positions: Positions = positions
        self.rephase: Rephase = "all" if positions == "window" else "none"
        self.frames_per_block, self.capacity = frames_per_block, self._most_kept() + frames_per_block
        # Frame `now` thins one frame at most, in the octave where `now` is an odd number of strides; a block takes the
        # slots of those that it thinned. Gaps come where more leave: for their age, or with octaves from distance 1 on.
        self._gaps = dense == 1 or self.window < length

    def gathered(self, window: int) -> int:
        most = gathered(self.capacity, self.frames_per_block, window, self.commit_window)
        return max(most, self.capacity) if self._gaps else most

    def keeps(self, frame: int, now: int) -> bool:
        """Whether a block that starts at `now` reads `frame`. Once False it stays False."""
        if frame < self.sink:
            return True
        distance = now - frame
        return distance <= self.window and frame % frame_stride(distance, self.dense) == 0

    def _most_kept(self) -> int:
        """The most frames that a block can find in the cache: octave by octave, a stride's multiples in its length."""
        total, distance = self.sink, 1
        while distance <= self.window:
            end = min(1 << distance.bit_length(), self.window + 1)
            total += -(-(end - distance) // frame_stride(distance, self.dense))
            distance = end
        return total

    def plan(self, resident: Sequence[int], start: int, frames: int, window: int, memory: Mapping[str, int]) -> Plan:
        kept = tuple(f for f in resident if self.keeps(f, start))
        evicted = tuple(f for f in resident if not self.keeps(f, start))
        if self.positions == "window":
            positions, own = tuple(range(len(kept))), tuple(range(len(kept), len(kept) + window))
        else:
            positions, own = kept, tuple(range(start, start + window))
        denoise = View(kept, positions, own)
        return Plan(evicted, denoise, commit_view(denoise, start, frames, self.commit_window), memory=dict(memory))

    def plan_recache(
        self, resident: Sequence[int], newest: Sequence[int], keep_sink: bool, memory: Mapping[str, int]
    ) -> RecachePlan:
        return recache_plan(
            resident, newest, self.sink if keep_sink else 0, window_positions=self.positions == "window", memory=memory
        )
