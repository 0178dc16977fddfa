"""Self-recurrent guidance (Ouroboros-Diffusion, arXiv 2501.09019, Eq. 5-6): the subject that was pulls on what comes.

A memory of the subject's keys is averaged over the cleanest window of every pass. In the other windows the distance of
the subject's keys to that memory is a loss, and its gradient with respect to the latents, taken through the
conditional pass alone, moves the step. The published code names the memory's moving average and the step but not the
distance; the distance here is ours:

    m_l(j) = mean over the subject's tokens of frame j of layer l's normed keys, before RoPE
    mbar_l <- decay mbar_l + (1 - decay) mean_j m_l(j)                   over the frames of the cleanest window
    L      = sum_l w_l mean_j || m_l(j) - mbar_l ||^2 / D

Shape letters: R rows (windows x samples), B samples, C channels, F latent frames, S tokens in a frame, L = F * S
tokens, D inner dim of the keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longvid.errors import InputError

FORMS = ("direction", "exact")


@dataclass(frozen=True, kw_only=True)
class SelfRecurrentGuidance:
    """How strongly, where and how often.

    Args:
        strength: of a step, after the gradient of each frame was brought to unit RMS; 0 is off. Costs about two more
            forwards a guided window, and activation memory (turn on the transformer's gradient checkpointing).
        decay: of the memory's moving average; 1 keeps the first window's subject for ever, 0 only the last pass's.
        layers: self-attention layers whose keys are compared; None is the last third.
        weights: one a layer; None weighs them equally.
        min_sigma, max_sigma: only windows with kept frames between them are guided: above, masks are poor; below, the
            subject is settled.
        every: only every so-manieth pass.
        form: ``direction`` is the published step, ``x' = x + (s' - s) v - g s' s grad L``; ``exact`` is the velocity of
            the law weighted by exp(-g L), ``v + g s / (1 - s) grad L``.

    Raises:
        InputError: a value that cannot be.
    """

    strength: float = 0.0
    decay: float = 0.9
    layers: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None
    min_sigma: float = 0.2
    max_sigma: float = 0.9
    every: int = 2
    form: str = "direction"

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength < math.inf:
            raise InputError(f"guidance.strength={self.strength!r}: must be 0 (off) or a positive number; try 0.03")
        if not 0.0 <= self.decay <= 1.0:
            raise InputError(f"guidance.decay={self.decay!r}: must be between 0 and 1")
        if not 0.0 <= self.min_sigma < self.max_sigma <= 1.0:
            raise InputError(
                f"guidance.min_sigma={self.min_sigma!r}, max_sigma={self.max_sigma!r}: must rise within 0 and 1"
            )
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise InputError(f"guidance.every={self.every!r}: must be a whole number of passes, 1 or more")
        if self.form not in FORMS:
            raise InputError(f"guidance.form={self.form!r}: must be one of {', '.join(FORMS)}")
        if self.layers is not None and self.weights is not None and len(self.layers) != len(self.weights):
            raise InputError(
                f"guidance.weights={self.weights}: must be one for each of the {len(self.layers)} guidance.layers"
            )

    def wants(self, pass_index: int, sigmas: Sequence[float]) -> bool:
        """Whether a window whose kept frames have ``sigmas`` is guided in this pass."""
        if not self.strength or pass_index % self.every:
            return False
        return any(self.min_sigma < sigma < self.max_sigma for sigma in sigmas)


def subject_vectors(key_RLD: Tensor, mask_RFS: Tensor) -> tuple[Tensor, Tensor]:
    """``m(j)``: mean key under the mask, ``[R, F, D]``, and which frames have a subject, bool ``[R, F]``."""
    rows, frames, tokens = mask_RFS.shape
    key_RFSD = key_RLD.reshape(rows, frames, tokens, -1)
    weight = mask_RFS.to(key_RFSD)
    mean = torch.einsum("rfsd,rfs->rfd", key_RFSD, weight) / weight.sum(-1).clamp_min(1.0)[..., None]
    return mean, mask_RFS.any(dim=-1)


class SubjectMemory:
    """``mbar_l``: moving average of the subject's mean key, a vector ``[B, D]`` for each layer."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.vectors: dict[int, Tensor] = {}

    def update(self, keys: Mapping[int, Tensor], mask_BFS: Tensor) -> None:
        """Average in the cleanest window's frames that have a subject; samples without one keep their memory.

        Args:
            keys: layer to ``[B, L, D]``.
            mask_BFS: subject mask, empty where a frame is not to count.
        """
        for layer, key in keys.items():
            mean_BFD, valid_BF = subject_vectors(key.detach().float(), mask_BFS)
            count = valid_BF.sum(1)
            now = (mean_BFD * valid_BF[..., None]).sum(1) / count.clamp_min(1)[:, None]
            before = self.vectors.get(layer)
            if before is None:
                # A first pass in which some sample shows no subject cannot start the memory of the others apart.
                if bool((count > 0).all()):
                    self.vectors[layer] = now
                continue
            mixed = self.decay * before + (1.0 - self.decay) * now
            self.vectors[layer] = torch.where((count > 0)[:, None], mixed, before)

    def loss(self, keys: Mapping[int, Tensor], mask_RFS: Tensor, weights: Mapping[int, float]) -> Tensor:
        """``L`` of each row, float32 ``[R]``, differentiable in the keys.

        Args:
            keys: layer to ``[R, L, D]``; ``R`` a multiple of the memory's samples, sample fastest.
            mask_RFS: subject mask (no gradient).
            weights: ``w_l``.

        Raises:
            RuntimeError: nothing is remembered of a layer.
        """
        total = torch.zeros(mask_RFS.shape[0], device=mask_RFS.device)
        for layer, key in keys.items():
            memory = self.vectors.get(layer)
            if memory is None:
                raise RuntimeError(f"layer {layer}: nothing is remembered yet; call update() first")
            mean_RFD, valid_RF = subject_vectors(key.float(), mask_RFS)
            memory_RD = memory.repeat(mask_RFS.shape[0] // memory.shape[0], 1)
            distance_RF = ((mean_RFD - memory_RD[:, None]) ** 2).mean(-1) * valid_RF
            total = total + weights[layer] * distance_RF.sum(1) / valid_RF.sum(1).clamp_min(1)
        return total

    def state_dict(self) -> dict[str, Tensor]:
        return {f"layer.{layer}": vector.clone() for layer, vector in self.vectors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        self.vectors = {int(name.removeprefix("layer.")): value.to(device) for name, value in state.items()}


def unit_rms(score_RCFhw: Tensor) -> Tensor:
    """Each frame's gradient at RMS 1, so that one strength serves every model and resolution; zeros stay zero."""
    rms = score_RCFhw.pow(2).mean(dim=(1, 3, 4), keepdim=True).sqrt()
    return score_RCFhw / (rms + 1e-8) * (rms > 0)
