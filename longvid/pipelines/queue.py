"""The latents of a FIFO roll and what one pass does to them.

A pass, in the order of the calls (FIFO-Diffusion, Algorithm 1; Ouroboros-Diffusion, Eq. 3):

    windows = queue.windows()              what the model has to see this pass, independent of each other
    x, t    = queue.read(window)           latents and per-frame timesteps of one of them
    queue.denoise({window: prediction})    every frame one level down; all windows read the state before the pass
    leaving = queue.shift(fresh)           the cleanest frame leaves, noise enters at the end

Latents are kept in float32 (or float64, for comparisons) whatever the model computes in: a frame takes ``f * n``
small steps, which bfloat16 would round away.

Shape letters: B batch, C channels, F latent frames, Q queue slots, h w latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from longvid.errors import InputError
from longvid.pipelines.schedules.fifo import FifoSchedule, Window


class QueueSolver(Protocol):
    """What a queue asks of a solver (``FlowSolver``, ``DDIMSolver``)."""

    @property
    def multistep(self) -> bool: ...

    def timesteps(self) -> Tensor: ...

    def add_noise(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor: ...

    def step(
        self,
        x: Tensor,
        v: Tensor,
        levels: Tensor,
        *,
        v_before: Tensor | None = None,
        has_before: Tensor | None = None,
        noise: Tensor | None = None,
        score: Tensor | None = None,
        guidance: float = 0.0,
        exact: bool = False,
    ) -> Tensor: ...


class LatentQueue:
    """Queue of ``schedule.slots`` latent frames.

    Args:
        schedule: index rules.
        solver: one step of a frame.
        shape: ``(B, C, h, w)`` of one latent frame.
        dtype, device: of the stored latents.

    Attributes:
        latents_BCQhw: the queue.
        velocity_BCQhw: each frame's prediction of the pass before (multistep solvers only, else None).
        has_velocity_Q: bool, whether there was one.
        pass_index: passes begun and shifted so far.
    """

    def __init__(
        self,
        schedule: FifoSchedule,
        solver: QueueSolver,
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        batch, channels, height, width = shape
        size = (batch, channels, schedule.slots, height, width)
        self.schedule = schedule
        self.solver = solver
        self.latents_BCQhw = torch.zeros(size, dtype=dtype, device=device)
        self.velocity_BCQhw = torch.zeros(size, dtype=dtype, device=device) if solver.multistep else None
        self.has_velocity_Q = torch.zeros(schedule.slots, dtype=torch.bool)
        self.pass_index = 0
        self._levels_Q = torch.tensor(schedule.slot_levels)
        self.timesteps_Q = solver.timesteps()
        self._denoised = False

    @property
    def nbytes(self) -> int:
        """Bytes of the frames, and of their predictions."""
        return self.latents_BCQhw.nbytes + (0 if self.velocity_BCQhw is None else self.velocity_BCQhw.nbytes)

    # -- filling -------------------------------------------------------------------------------------------------

    def fill(self, clip: Tensor, noise: Tensor) -> None:
        """Fill from a finished clip, re-noised to each slot's level (``init="renoise"`` and ``"uniform"``).

        Args:
            clip: clean latents ``[B, C, K, h, w]``: ``f`` frames, placed as ``schedule.source_frame`` says; another
                number fill the last slots in order, the first of them standing in for any that are missing in front.
            noise: ``[B, C, Q, h, w]`` standard normal, or ``[B, C, T, h, w]`` when context frames are to stay clean.
        """
        schedule, top, context = self.schedule, self.schedule.levels, self.schedule.context_slots
        levels = torch.arange(1, top + 1)
        count = clip.shape[2]
        ahead = [0] * context
        if count == schedule.window_frames:
            source = [schedule.source_frame(int(level)) for level in levels]
        else:
            source = [max(0, count - top + int(level) - 1) for level in levels]
            ahead = [max(0, count - top - context + slot) for slot in range(context)]
        clip = clip.to(self.latents_BCQhw)
        noise = noise.to(self.latents_BCQhw)
        self.latents_BCQhw[:, :, context:] = self.solver.add_noise(clip[:, :, source], noise[:, :, -top:], levels)
        front = clip[:, :, ahead]
        if context and noise.shape[2] > top:
            front = self.solver.add_noise(front, noise[:, :, :context], torch.zeros(context, dtype=torch.long))
        self.latents_BCQhw[:, :, :context] = front
        self.has_velocity_Q.zero_()
        self.pass_index = 0

    def fill_slot(self, level: int, latents: Tensor) -> None:
        """Put a state ``[B, C, h, w]`` that the first clip passed through into the slot of ``level``."""
        self.latents_BCQhw[:, :, self.schedule.context_slots + level - 1] = latents.to(self.latents_BCQhw)

    # -- one pass ------------------------------------------------------------------------------------------------

    def windows(self) -> tuple[Window, ...]:
        """Windows of the coming pass, cleanest first; their order does not matter."""
        return self.schedule.windows(self.pass_index)

    def read(self, window: Window) -> tuple[Tensor, Tensor]:
        """Latents ``[B, C, f, h, w]`` (a view) and float64 timesteps ``[f]`` that the model sees in a window."""
        return self.latents_BCQhw[:, :, window.start : window.end], self.timesteps_Q[window.start : window.end]

    def levels(self, window: Window) -> Tensor:
        """Integer levels ``[f]`` of a window's slots (0 for context)."""
        return self._levels_Q[window.start : window.end]

    def denoise(
        self,
        predictions: Mapping[Window, Tensor],
        *,
        noise: Tensor | None = None,
        scores: Mapping[Window, Tensor] | None = None,
        guidance: float = 0.0,
        exact: bool = False,
    ) -> None:
        """Take every kept frame one level down.

        Args:
            predictions: for each of ``windows()``, the model's output ``[B, C, f, h, w]``.
            noise: ``[B, C, Q, h, w]`` for stochastic steps.
            scores: gradient of the guidance loss for some of the windows, shaped as predictions.
            guidance, exact: scale and form of the guidance.

        Raises:
            RuntimeError: called twice without ``shift`` between, or a window is missing.
        """
        if self._denoised:
            raise RuntimeError("denoise() was called twice: call shift() in between")
        windows = self.windows()
        missing = [w for w in windows if w not in predictions]
        if missing:
            raise RuntimeError(f"predictions: window {missing[0]} of pass {self.pass_index} is missing")
        first, last = windows[0].keep, windows[-1].end_keep  # kept ranges follow each other without a gap
        velocity = torch.cat([self._kept(predictions[w], w) for w in windows], dim=2).to(self.latents_BCQhw)
        score = None
        if scores:
            score = torch.zeros_like(velocity)
            for window, value in scores.items():
                score[:, :, window.keep - first : window.end_keep - first] = self._kept(value, window).to(score)
        span = slice(first, last)
        self.latents_BCQhw[:, :, span] = self.solver.step(
            self.latents_BCQhw[:, :, span],
            velocity,
            self._levels_Q[span],
            v_before=None if self.velocity_BCQhw is None else self.velocity_BCQhw[:, :, span],
            has_before=self.has_velocity_Q[span],
            noise=None if noise is None else noise[:, :, span].to(self.latents_BCQhw),
            score=score,
            guidance=guidance,
            exact=exact,
        )
        if self.velocity_BCQhw is not None:
            self.velocity_BCQhw[:, :, span] = velocity
            self.has_velocity_Q[span] = True
        self._denoised = True

    @staticmethod
    def _kept(value: Tensor, window: Window) -> Tensor:
        return value[:, :, window.keep - window.start : window.end_keep - window.start]

    @property
    def tail(self) -> Tensor:
        """The queue's last frame ``[B, C, h, w]``, after ``denoise`` the source of a coherent tail."""
        return self.latents_BCQhw[:, :, -1]

    def shift(self, fresh: Tensor) -> Tensor:
        """Let the cleanest frame go, move all others one slot on, put ``fresh`` ``[B, C, h, w]`` at the end.

        The frame that leaves stays in the context for ``P`` more passes. Returns it, ``[B, C, 1, h, w]``.

        Raises:
            RuntimeError: the pass has not been denoised.
        """
        if not self._denoised:
            raise RuntimeError("shift() before denoise(): the frames of this pass have not moved down a level")
        exit_slot = self.schedule.context_slots
        leaving = self.latents_BCQhw[:, :, exit_slot : exit_slot + 1].clone()
        self.latents_BCQhw = torch.cat([self.latents_BCQhw[:, :, 1:], fresh[:, :, None].to(self.latents_BCQhw)], dim=2)
        if self.velocity_BCQhw is not None:
            self.velocity_BCQhw = torch.cat(
                [self.velocity_BCQhw[:, :, 1:], torch.zeros_like(self.velocity_BCQhw[:, :, :1])], dim=2
            )
        self.has_velocity_Q = torch.cat([self.has_velocity_Q[1:], torch.zeros(1, dtype=torch.bool)])
        self.pass_index += 1
        self._denoised = False
        return leaving

    # -- continuation --------------------------------------------------------------------------------------------

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a continuation needs, between passes: tensors and JSON-able facts."""
        if self._denoised:
            raise RuntimeError("state_dict() in the middle of a pass: call shift() first")
        tensors = {"latents": self.latents_BCQhw.clone(), "has_velocity": self.has_velocity_Q.clone()}
        if self.velocity_BCQhw is not None:
            tensors["velocity"] = self.velocity_BCQhw.clone()
        return tensors, {"pass_index": self.pass_index}

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``.

        Raises:
            InputError: the state is of a queue of another shape or solver.
        """
        if tensors["latents"].shape != self.latents_BCQhw.shape:
            raise InputError(
                f"state: latents of shape {tuple(tensors['latents'].shape)}, this queue has"
                f" {tuple(self.latents_BCQhw.shape)}; resume with the configuration it was saved under"
            )
        if ("velocity" in tensors) != (self.velocity_BCQhw is not None):
            raise InputError("state: saved under another solver; resume with the configuration it was saved under")
        self.latents_BCQhw = tensors["latents"].to(self.latents_BCQhw).clone()
        if self.velocity_BCQhw is not None:
            self.velocity_BCQhw = tensors["velocity"].to(self.velocity_BCQhw).clone()
        self.has_velocity_Q = tensors["has_velocity"].to(torch.bool).cpu().clone()
        self.pass_index = int(meta["pass_index"])
        self._denoised = False


def run_first_clip(
    queue: LatentQueue,
    noise: Tensor,
    predict: Callable[[Tensor, Tensor], Tensor],
    draw: Callable[[int], Tensor] | None,
    on_step: Callable[[int, Tensor], Tensor | None] | None = None,
) -> Tensor:
    """Denoise a clip of ``f`` frames, all at the same level, and put its states into a trajectory queue.

    ``x^(l)``, the clip before its step from level ``l``, gives the slot of level ``l`` its frame
    ``m = source_frame(l)``: no re-noising, and the queue's frames go on exactly as the clip's did.

    Args:
        noise: ``[B, C, f, h, w]`` standard normal.
        predict: (latents ``[B, C, f, h, w]``, timesteps ``[f]``) to the model's output.
        draw: level to step noise like ``noise``; only for stochastic solvers.
        on_step: (level before the step, latents after it) to latents to go on with, or None.

    Returns:
        The finished clip ``[B, C, f, h, w]``.
    """
    schedule = queue.schedule
    timesteps = queue.timesteps_Q[schedule.context_slots :]
    x = noise.to(queue.latents_BCQhw)
    before: Tensor | None = None
    for level in range(schedule.levels, 0, -1):
        queue.fill_slot(level, x[:, :, schedule.source_frame(level)])
        v = predict(x, timesteps[level - 1].expand(schedule.window_frames)).to(x)
        x = queue.solver.step(
            x,
            v,
            torch.full((schedule.window_frames,), level),
            v_before=before,
            has_before=None if before is None else torch.ones(schedule.window_frames, dtype=torch.bool),
            noise=None if draw is None else draw(level).to(x),
        )
        before = v
        changed = None if on_step is None else on_step(level, x)
        if changed is not None:
            x = changed.to(x)
    return x
