"""Where the subject is in each slot of a FIFO queue.

Each pass measures, beside its predictions, how much of every token's text attention goes to the subject's words
(``models/taps.py``). The next pass uses that as its mask, one slot further on: no forward is spent on it.

Shape letters: B samples, Q queue slots, F frames of a window, S tokens in a frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from longvid.errors import InputError
from longvid.models.subject_mask import binary_mask
from longvid.pipelines.schedules.fifo import FifoSchedule, Window

SUBJECT_MODES = ("none", "boost", "bridge")


@dataclass(frozen=True, kw_only=True)
class SubjectAttention:
    """Subject-aware cross-frame attention (Ouroboros-Diffusion, Eq. 4) on a joint-attention transformer.

    Args:
        mode: ``none``; ``boost`` shows a window its own subject tokens twice (what the published layer amounts to
            here); ``bridge`` shows it the subject of finished frames, which it no longer sees.
        sink, recent: bridge: first and newest finished frames that are remembered.
        layers: self-attention layers; None is the last third.
        limit: tokens that a layer is given at most.
        max_sigma: above, where masks are poor, a slot takes the mask of its cleaner neighbour.

    Raises:
        InputError: a value that cannot be.
    """

    mode: str = "none"
    sink: int = 1
    recent: int = 3
    layers: tuple[int, ...] | None = None
    limit: int = 1024
    max_sigma: float = 0.9

    def __post_init__(self) -> None:
        if self.mode not in SUBJECT_MODES:
            raise InputError(f"subject_attention={self.mode!r}: must be one of {', '.join(SUBJECT_MODES)}")
        if self.sink < 0 or self.recent < 0 or (self.mode == "bridge" and self.sink + self.recent < 1):
            raise InputError(
                f"subject_attention.sink={self.sink}, recent={self.recent}: bridge remembers 1 frame or more"
            )
        if self.limit < 1:
            raise InputError(f"subject_attention.limit={self.limit}: must be 1 token or more")
        if not 0.0 < self.max_sigma <= 1.0:
            raise InputError(f"subject_attention.max_sigma={self.max_sigma!r}: must be above 0 and at most 1")


def check_bank(attention: SubjectAttention, schedule: FifoSchedule) -> None:
    """A bank may not reach further back than a window is long: no such distance was ever trained.

    Raises:
        InputError: it does.
    """
    if attention.mode == "bridge" and attention.sink + attention.recent >= schedule.window_frames:
        raise InputError(
            f"subject_attention: subject_sink={attention.sink} + subject_recent={attention.recent} must be below"
            f" window_frames={schedule.window_frames}"
        )


class SubjectTracker:
    """The subject's share of the text attention in every slot, as the last pass measured it."""

    def __init__(
        self, schedule: FifoSchedule, *, batch: int, tokens: int, max_sigma: float, device: torch.device | str = "cpu"
    ) -> None:
        self.schedule, self.max_sigma = schedule, max_sigma
        self.share_BQS = torch.zeros(batch, schedule.slots, tokens, device=device)
        self.known_Q = torch.zeros(schedule.slots, dtype=torch.bool)
        self._masks: Tensor | None = None

    def record(self, window: Window, share_BL: Tensor, first: int, last: int) -> None:
        """Take in the share of slots ``first .. last-1``, measured on a window's ``[B, L]``."""
        share_BFS = share_BL.reshape(share_BL.shape[0], window.end - window.start, -1)
        self.share_BQS[:, first:last] = share_BFS[:, first - window.start : last - window.start]
        self.known_Q[first:last] = True
        self._masks = None

    def masks(self) -> Tensor:
        """Subject mask, bool ``[B, Q, S]``; empty where nothing is known."""
        if self._masks is None:
            masks = binary_mask(self.share_BQS)
            source: int | None = None
            for slot, sigma in enumerate(self.schedule.slot_sigmas):
                if bool(self.known_Q[slot]) and sigma <= self.max_sigma:
                    source = slot
                elif source is not None:
                    masks[:, slot] = masks[:, source]
                else:
                    masks[:, slot] = False
            self._masks = masks
        return self._masks

    def window_masks(self, window: Window) -> Tensor:
        """Bool ``[B, F, S]``."""
        return self.masks()[:, window.start : window.end]

    def shift(self) -> None:
        """All frames move one slot towards the exit; nothing is known of the one that enters."""
        self.share_BQS = torch.cat([self.share_BQS[:, 1:], torch.zeros_like(self.share_BQS[:, :1])], dim=1)
        self.known_Q = torch.cat([self.known_Q[1:], torch.zeros(1, dtype=torch.bool)])
        self._masks = None

    def forget(self) -> None:
        """Another subject: what was measured is of no use."""
        self.known_Q.zero_()
        self._masks = None

    def state_dict(self) -> dict[str, Tensor]:
        return {"share": self.share_BQS.clone(), "known": self.known_Q.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.share_BQS = state["share"].to(self.share_BQS).clone()
        self.known_Q = state["known"].to(torch.bool).cpu().clone()
        self._masks = None
