"""FIFO-Diffusion's diagonal queue (Kim et al., 2024, arXiv 2405.11473), as integers.

A queue of ``T = f * n`` latent frames holds every noise level once. A *pass* denoises each frame by one level; the
cleanest frame leaves, all others move one slot towards the exit, and a new frame of noise enters at the end:

    slot    0 .. P-1 | P   P+1  ...  P+T-1
    level   0 ..  0  | 1    2   ...    T        before a pass (0 = clean, T = pure noise)
            context  | queue: slot P+i goes from level i+1 to level i, then to slot P+i-1

The model takes ``f`` frames, so a pass is cut into windows. Without lookahead there are ``n`` of them, side by side.
With lookahead (section 4.3 of the paper) there are ``2n``, half overlapping, and each keeps only its noisier half:
every frame is predicted beside cleaner predecessors. The ``P`` context slots are frames that have already left.

Everything here is pure arithmetic: no torch, nothing stateful.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from longvid.errors import InputError

CONTEXT_LEVELS = ("lowest", "clean")
INITS = ("trajectory", "renoise", "uniform")


class Window(NamedTuple):
    """One model call of a pass: it sees slots ``start .. end-1`` and updates ``keep .. end_keep-1``."""

    start: int
    keep: int
    end_keep: int
    end: int


def shifted_sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """Sigmas of levels ``0 .. steps``, ascending: ``s_l = k u / (1 + (k - 1) u)`` with ``u = l / steps``.

    They equal UniPC's flow sigmas; diffusers' FlowMatchEuler shifts its smallest sigma a second time and ends on a
    tiny step instead.
    """
    return tuple(shift * level / (steps + (shift - 1.0) * level) for level in range(steps + 1))


@dataclass(frozen=True, kw_only=True)
class FifoSchedule:
    """The queue of one FIFO roll.

    Args:
        window_frames: ``f``, the latent frames of one model call.
        num_partitions: ``n``; the queue has ``f * n`` levels, and so each frame that many steps.
        lookahead: half-overlapping windows, each keeping its noisier part.
        shift: Wan's timestep shift ``k``, applied to the levels.
        context: sigma that context frames are announced with: ``"lowest"`` (level 1's, the reference; for models that
            never saw clean frames beside noisy ones) or ``"clean"`` (0; for diffusion-forcing models).
        init: how the first ``T`` slots are filled from a clip of ``f`` frames: ``"trajectory"`` keeps the states that
            the clip passes through and warms up with windows that begin at its first frame; ``"renoise"`` re-noises
            the finished clip behind ``T - f`` frozen copies of its first frame (the reference); ``"uniform"``
            re-noises each frame of the clip ``n`` times.

    Raises:
        InputError: a value that no queue can have.
    """

    window_frames: int
    num_partitions: int
    lookahead: bool = True
    shift: float = 1.0
    context: str = "lowest"
    init: str = "trajectory"

    def __post_init__(self) -> None:
        f, n = self.window_frames, self.num_partitions
        if isinstance(f, bool) or not isinstance(f, int) or f < 1:
            raise InputError(f"window_frames={f!r}: must be a whole number of latent frames, 1 or more")
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InputError(f"num_partitions={n!r}: must be a whole number, 1 or more")
        if self.lookahead and f < 2:
            raise InputError("window_frames=1: lookahead needs windows of 2 frames or more; pass lookahead=False")
        if f * n < 2:
            raise InputError(
                f"window_frames={f} x num_partitions={n}: a queue needs 2 levels or more; raise num_partitions"
            )
        if not 0.0 < self.shift < float("inf"):
            raise InputError(f"shift={self.shift!r}: must be a positive number (1 = none, 3 = Wan at 480p)")
        if self.context not in CONTEXT_LEVELS:
            raise InputError(f"context={self.context!r}: must be one of {', '.join(CONTEXT_LEVELS)}")
        if self.init not in INITS:
            raise InputError(f"init={self.init!r}: must be one of {', '.join(INITS)}")

    # -- sizes ---------------------------------------------------------------------------------------------------

    @property
    def levels(self) -> int:
        """``T``: noise levels, queue length and denoising steps of every frame."""
        return self.window_frames * self.num_partitions

    @property
    def context_slots(self) -> int:
        """``P``: finished frames kept in front of the queue."""
        return self.window_frames // 2 if self.lookahead else 0

    @property
    def slots(self) -> int:
        """``Q = P + T``."""
        return self.context_slots + self.levels

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """Sigma of level ``0 .. T``, ascending from 0 to 1."""
        return shifted_sigmas(self.levels, self.shift)

    @cached_property
    def slot_levels(self) -> tuple[int, ...]:
        """Level of every slot before a pass."""
        return (0,) * self.context_slots + tuple(range(1, self.levels + 1))

    @cached_property
    def slot_sigmas(self) -> tuple[float, ...]:
        """Sigma that every slot is announced to the model with (context slots: see ``context``)."""
        context = self.sigmas[1] if self.context == "lowest" else self.sigmas[0]
        return tuple(self.sigmas[level] if level else context for level in self.slot_levels)

    # -- counting ------------------------------------------------------------------------------------------------

    @property
    def warmup_passes(self) -> int:
        """Passes before the first frame of the video leaves: ``T - f``."""
        return self.levels - self.window_frames

    def passes(self, num_frames: int) -> int:
        """Passes for a video of ``num_frames`` latent frames: ``N + T - f`` (section 4.1)."""
        if num_frames < 1:
            raise InputError(f"num_frames={num_frames}: must be 1 latent frame or more")
        return num_frames + self.warmup_passes

    def exit_frame(self, pass_index: int) -> int | None:
        """Number of the video's latent frame that leaves after this pass; None while warming up."""
        frame = pass_index - self.warmup_passes
        return frame if frame >= 0 else None

    def entry(self, pass_index: int, slot: int) -> int:
        """Which frame is in ``slot`` before ``pass_index``, counted as the video's frames (negative: warm-up)."""
        return pass_index - self.warmup_passes + slot - self.context_slots

    def source_frame(self, level: int) -> int:
        """Frame of the first clip that fills the slot of ``level``: ``m = max(0, level - 1 - (T - f))``."""
        if self.init == "uniform":
            return (level - 1) // self.num_partitions
        return max(0, level - 1 - self.warmup_passes)

    def first_slot(self, pass_index: int) -> int:
        """First slot that holds a frame worth denoising before this pass (0 once the context is full).

        Trajectory queues begin with the clip in the last ``f`` slots; nothing is in front of it.
        """
        if self.init != "trajectory":
            return 0
        return max(0, self.slots - self.window_frames - pass_index)

    # -- windows -------------------------------------------------------------------------------------------------

    @cached_property
    def steady_windows(self) -> tuple[Window, ...]:
        """Windows of a pass over a full queue, cleanest first.

        Together they keep every slot from ``P`` on exactly once. Valid for odd ``f`` too, where the halves differ.
        """
        f, half = self.window_frames, self.window_frames // 2
        if not self.lookahead:
            return tuple(Window(r * f, r * f, (r + 1) * f, (r + 1) * f) for r in range(self.num_partitions))
        windows = []
        for k in range(self.num_partitions):
            windows.append(Window(k * f, k * f + half, (k + 1) * f, (k + 1) * f))
            windows.append(Window(k * f + half, (k + 1) * f, (k + 1) * f + half, (k + 1) * f + half))
        return tuple(windows)

    def windows(self, pass_index: int) -> tuple[Window, ...]:
        """Windows of ``pass_index``, cleanest first.

        While a trajectory queue warms up, slots before ``first_slot`` are empty: windows that lie wholly among them
        are left out, and the one at the border begins at the border and also keeps what lies before its middle.
        """
        border = self.first_slot(pass_index)
        if border == 0:
            return self.steady_windows
        kept = []
        steady = self.steady_windows
        for index, window in enumerate(steady):
            following = steady[index + 1].start if index + 1 < len(steady) else None
            if following is not None and following <= border:
                continue
            if window.start <= border:
                keep = max(self.context_slots, border)
                window = Window(border, keep, window.end_keep, border + self.window_frames)
            kept.append(window)
        return tuple(kept)


def check_steps(schedule: FifoSchedule, num_inference_steps: int | None) -> None:
    """A FIFO queue has ``f * n`` steps and no other number.

    Raises:
        InputError: another number was asked for; names the partitions that come nearest.
    """
    if num_inference_steps is None or num_inference_steps == schedule.levels:
        return
    f = schedule.window_frames
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int) or num_inference_steps < 1:
        raise InputError(f"num_inference_steps={num_inference_steps!r}: must be a whole number, a multiple of {f}")
    nearest = max(1, round(num_inference_steps / f))
    raise InputError(
        f"num_inference_steps={num_inference_steps}: a queue of {f}-frame windows takes a multiple of {f}"
        f" (window_frames x num_partitions = {schedule.levels}); num_partitions={nearest} gives {f * nearest}"
    )
