"""Following the subject through a FIFO roll: finding it, showing it to the windows, holding on to it.

A pass, as the roll drives it:

    begin_pass -> guides? -> watch_cleanest( shown, measure ) -> score (guided windows) -> end_pass -> shift

Shape letters: B samples, R rows of a call (windows x prompts x samples), C channels, F frames of a window, Q slots,
S tokens in a frame, L = F * S tokens, N heads, D head dim, h w latent height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from longvid.errors import InputError
from longvid.models.denoiser import TextContext
from longvid.models.subject_bank import SubjectBank
from longvid.models.taps import SubjectShare, check_layers, last_third, middle_half, tap_keys, tap_subject
from longvid.models.window_denoiser import WindowDenoiser
from longvid.pipelines.guidance import SelfRecurrentGuidance, SubjectMemory, unit_rms
from longvid.pipelines.schedules.fifo import FifoSchedule, Window
from longvid.pipelines.subject import SubjectAttention, SubjectTracker, check_bank

Subject = tuple[str, ...]


class SubjectFollower:
    """What a roll knows of its subject.

    Args:
        denoiser: of the transformer; its ``subject_layers`` are the bank's.
        schedule: of the queue.
        attention, guidance: Ouroboros-Diffusion's second and third part.
        shape: ``(B, C, h, w)`` of a latent frame.

    Attributes:
        tracker: where the subject is in each slot.
        memory: what its keys were in the cleanest window.
        bank: its keys and values in finished frames (mode ``bridge``).

    Raises:
        InputError: layers that the model does not have; a bank longer than a window.
    """

    def __init__(
        self,
        denoiser: WindowDenoiser,
        schedule: FifoSchedule,
        attention: SubjectAttention,
        guidance: SelfRecurrentGuidance,
        shape: tuple[int, int, int, int],
    ) -> None:
        self.denoiser, self.schedule, self.attention, self.guidance = denoiser, schedule, attention, guidance
        self._batch = shape[0]
        self._mask_layers = middle_half(denoiser.layers)
        self._guided_layers = check_layers(
            guidance.layers or last_third(denoiser.layers), denoiser.layers, "guidance.layers"
        )
        weights = guidance.weights or (1.0,) * len(self._guided_layers)
        if len(weights) != len(self._guided_layers):
            raise InputError(f"guidance.weights={weights}: must be one for each of {len(self._guided_layers)} layers")
        self._weights = dict(zip(self._guided_layers, weights, strict=True))
        self.tracker = SubjectTracker(
            schedule,
            batch=shape[0],
            tokens=denoiser.rotary(*shape[2:]).tokens_per_frame,
            max_sigma=attention.max_sigma,
            device=denoiser.device,
        )
        self.memory = SubjectMemory(guidance.decay)
        self.bank: SubjectBank | None = None
        if attention.mode == "bridge":
            check_bank(attention, schedule)
            self.bank = SubjectBank(
                denoiser,
                denoiser.subject_layers,
                sink=attention.sink,
                recent=attention.recent,
                batch=shape[0],
                height=shape[2],
                width=shape[3],
                limit=attention.limit,
            )
        self._subject: Subject = ()
        self._cleanest: Window | None = None
        self._seen: dict[str, dict[int, Tensor]] = {}

    # -- a pass --------------------------------------------------------------------------------------------------

    def begin_pass(self, index: int, first: Window, subject: Subject) -> None:
        """Args: the pass, its cleanest window, the subject of that window's cleanest frame.

        What is remembered of another subject is forgotten.
        """
        self._seen = {}
        # While a queue warms up, its cleanest window does not hold a frame that is about to leave.
        self._cleanest = first if first.keep == self.schedule.context_slots else None
        if self._cleanest is None:
            return
        if self._subject and subject != self._subject:
            self.memory = SubjectMemory(self.guidance.decay)
            if self.bank is not None:
                self.bank.clear()
        self._subject = subject

    def guides(self, index: int, window: Window, subjects: Sequence[Subject]) -> bool:
        """Whether a window of this pass is guided: it has one prompt, the subject that is remembered, and a mask."""
        if self._cleanest is None or not self.memory.vectors or len(subjects) != 1:
            return False
        sigmas = self.schedule.slot_sigmas[window.keep : window.end_keep]
        return (
            self._is_shown(window, subjects[0])
            and self.guidance.wants(index, sigmas)
            and bool(self.tracker.window_masks(window).any())
        )

    def _is_shown(self, window: Window, subject: Subject) -> bool:
        """Every window but the cleanest, which sees finished frames anyway."""
        return window.keep > self.schedule.context_slots and subject == self._subject

    def shown(self, rows: Sequence[tuple[Window, Subject]]) -> dict[str, Any]:
        """What the windows of a call are shown of the subject, as keywords of ``WindowDenoiser.predict``."""
        device = self.denoiser.device
        shown = torch.tensor([self._is_shown(*row) for row in rows], device=device)
        shown_R = shown.repeat_interleave(self._batch)
        limit = self.attention.limit
        if self.attention.mode == "boost":
            mask_RL = torch.cat([self.tracker.window_masks(w).flatten(1) for w, _ in rows]) & shown_R[:, None]
            score_RL = torch.cat([self.tracker.share_BQS[:, w.start : w.end].flatten(1) for w, _ in rows])
            return {"boost": (mask_RL, score_RL) if bool(mask_RL.any()) else None, "limit": limit}
        if self.bank is None or not bool(shown.any()):
            return {}
        appended = {}
        for layer, subject in self.bank.tokens(self.schedule.window_frames).items():
            every = subject.repeat(len(rows))
            appended[layer] = every._replace(valid=every.valid & shown_R[:, None])
        return {"appended": appended, "limit": limit}

    def measure(self, text: TextContext, positions: Sequence[Sequence[int]]) -> AbstractContextManager[SubjectShare]:
        """Measure the subject's share of the text attention in the call inside ``with``."""
        return tap_subject(self.denoiser.transformer, self._mask_layers, text, positions)

    @contextmanager
    def watch_cleanest(self, branches: int) -> Iterator[None]:
        """Collect keys (and values) of the cleanest window's kept frames, ``[B, F', S, N*D]``, conditional rows only.

        That window must be the first row of the first call inside ``with``.
        """
        window = self._cleanest
        wanted: set[int] = set()
        if self.guidance.strength:
            wanted |= set(self._guided_layers)
        if self.bank is not None:
            wanted |= set(self.bank.layers)
        if window is None or not wanted:
            yield
            return
        frames = window.end - window.start
        kept = slice(window.keep - window.start, window.end_keep - window.start)

        def select(out: Tensor) -> Tensor:  # out: [branches * R * F, S, N*D]
            return out.reshape(branches, -1, frames, *out.shape[1:])[-1, : self._batch, kept].detach().clone()

        transformer, values = self.denoiser.transformer, self.bank is not None
        with tap_keys(transformer, sorted(wanted), select, values=values, first_only=True) as self._seen:
            yield

    def end_pass(self, index: int, subjects: Sequence[Subject]) -> None:
        """Take in what was seen of the cleanest window; ``subjects`` of its kept frames."""
        window = self._cleanest
        if window is None or not self._seen:
            return
        masks_BFS = self.tracker.masks()[:, window.keep : window.end_keep]
        # A window in the middle of a prompt change is not what either subject looks like.
        if self.guidance.strength and len(subjects) == 1:
            keys = {layer: self._seen["key"][layer].flatten(1, 2) for layer in self._guided_layers}
            self.memory.update(keys, masks_BFS)
        frame = self.schedule.exit_frame(index)
        if self.bank is not None and frame is not None:
            shape = (self._batch, -1, self.denoiser.heads, self.denoiser.head_dim)
            self.bank.commit(
                frame,
                {layer: self._seen["key"][layer][:, 0].reshape(shape) for layer in self.bank.layers},
                {layer: self._seen["value"][layer][:, 0].reshape(shape) for layer in self.bank.layers},
                masks_BFS[:, 0],
                self.tracker.share_BQS[:, window.keep],
            )
        self._seen = {}

    def shift(self) -> None:
        """All frames move one slot towards the exit."""
        self.tracker.shift()

    # -- self-recurrent guidance ---------------------------------------------------------------------------------

    def score(
        self,
        window: Window,
        latents: Tensor,
        timesteps: Tensor,
        conditional: TextContext,
        positions: Sequence[Sequence[int]],
        shown: Mapping[str, Any],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A guided window's conditional pass (Eq. 5).

        Args:
            latents: ``[B, C, F, h, w]``.
            timesteps: ``[B, F]``.
            conditional: the prompt alone.
            positions: of the subject's words.
            shown: see ``shown``.

        Returns:
            velocity ``[B, C, F, h, w]``; ``dL/dx`` of the subject's distance to the memory, each frame at RMS 1; the
            subject's measured share ``[B, L]``.
        """
        transformer = self.denoiser.transformer
        leaf = latents.detach().clone()
        with torch.enable_grad(), _frozen(transformer):
            leaf.requires_grad_(True)
            with (
                tap_keys(transformer, self._guided_layers, lambda out: out, first_only=True) as found,
                self.measure(conditional, positions) as share,
            ):
                velocity = self.denoiser.predict(leaf, timesteps, conditional, 1.0, **shown)
            keys = {layer: key.reshape(self._batch, -1, key.shape[-1]) for layer, key in found["key"].items()}
            loss = self.memory.loss(keys, self.tracker.window_masks(window), self._weights).sum()
            with self.denoiser.text_at_hand(conditional):
                (score,) = torch.autograd.grad(loss, leaf)
        return velocity.detach(), unit_rms(score.float()), share.mean

    @property
    def nbytes(self) -> int:
        """Bytes of masks, memory and bank."""
        held = [self.tracker.share_BQS, *self.memory.vectors.values()]
        bank = 0 if self.bank is None else self.bank.cache.nbytes
        return sum(tensor.numel() * tensor.element_size() for tensor in held) + bank

    # -- continuation --------------------------------------------------------------------------------------------

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Between passes: tensors and JSON-able facts."""
        tensors = {f"tracker.{name}": value for name, value in self.tracker.state_dict().items()}
        tensors |= {f"memory.{name}": value for name, value in self.memory.state_dict().items()}
        meta: dict[str, Any] = {"subject": list(self._subject)}
        if self.bank is not None:
            banked, meta["bank"] = self.bank.state_dict()
            tensors |= {f"bank.{name}": value for name, value in banked.items()}
        return tensors, meta

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``.

        Raises:
            InputError: the state is of another configuration.
        """

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        if ("bank" in meta) != (self.bank is not None):
            raise InputError("state: saved under another subject_attention; resume with the one it was saved under")
        self._subject = tuple(meta["subject"])
        self.tracker.load_state_dict(part("tracker."))
        self.memory.load_state_dict(part("memory."), self.denoiser.device)
        if self.bank is not None:
            self.bank.load_state_dict(part("bank."), meta["bank"])


@contextmanager
def _frozen(transformer: Any) -> Iterator[None]:
    """Parameters without gradient: only the latents' is wanted."""
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
