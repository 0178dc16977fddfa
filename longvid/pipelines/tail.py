"""Coherent tail sampling: the noise that enters a FIFO queue, low frequencies taken from the frame before it.

Ouroboros-Diffusion (Chen et al., 2025, arXiv 2501.09019), Eq. 3:  ``z_tail = F_low(zhat) + F_high(eta)``.

``zhat`` is the queue's last frame, re-noised; ``eta`` is new. Two traits look like slips and are what keeps the queue
stable: the low-pass never exceeds exp(-1/2) = 0.6065 (the published filter is three-dimensional with one frame in
time, whose coordinate is -1), and the mix is convex rather than variance-preserving. Per spatial frequency with
filter value L, successive tails obey ``n' = L (A n + sqrt(1 - A^2) xi) + (1 - L) eta``; their temporally constant
part then has power ``[L^2 (1 - A^2) + (1 - L)^2] / (1 - L A)^2``, exactly 1 at A = 1. A variance-preserving mix would
multiply it by (1 + L) / (1 - L) and a gain near 1 lets it explode.

Filters are those of FreeInit (Wu et al., 2023): gaussian, butterworth, ideal, box.

Shape letters: B batch, C channels, F frames, h w latent height and width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from longvid.errors import InputError

FILTERS = ("gaussian", "butterworth", "ideal", "box")
# exp(-1/2): what the published 3-D Gaussian is worth at zero spatial frequency for a single frame.
PUBLISHED_GAIN = math.exp(-0.5)
# sqrt(abar_999 / abar_983) of VideoCrafter2's 64-step queue: how much of the tail the published re-noising keeps.
PUBLISHED_RETAIN = 0.9089054961358203


def low_pass(
    kind: str,
    shape: tuple[int, int, int],
    *,
    cutoff: float = 0.25,
    time_cutoff: float = 0.25,
    order: int = 4,
    centred: bool = False,
) -> Tensor:
    """FreeInit's low-pass filter over a shifted spectrum (zero frequency in the middle), float64 ``shape``.

    Args:
        kind: ``gaussian``, ``butterworth``, ``ideal`` or ``box``.
        shape: (frames, height, width).
        cutoff, time_cutoff: ``d_s`` and ``d_t``, as fractions of the Nyquist frequency.
        order: of the Butterworth filter.
        centred: measure frequencies from the true zero of an odd-sized spectrum. The published grid
            ``2 i / H - 1`` is half a bin off there; for even sizes the two are the same.

    Raises:
        InputError: unknown kind, negative cutoff, empty shape.
    """
    if kind not in FILTERS:
        raise InputError(f"filter={kind!r}: must be one of {', '.join(FILTERS)}")
    if min(shape) < 1:
        raise InputError(f"shape={shape}: every size must be 1 or more")
    for name, value in (("cutoff", cutoff), ("time_cutoff", time_cutoff)):
        if not 0.0 <= value < math.inf:
            raise InputError(f"{name}={value!r}: must be 0 or a positive fraction of the Nyquist frequency")
    if order < 1:
        raise InputError(f"order={order}: must be 1 or more")
    if cutoff == 0.0 or time_cutoff == 0.0:
        return torch.zeros(shape, dtype=torch.float64)
    frames, height, width = shape
    if kind == "box":
        mask = torch.zeros(shape, dtype=torch.float64)
        reach, time_reach = round(height // 2 * cutoff), round(frames // 2 * time_cutoff)
        middle = (frames // 2, height // 2, width // 2)
        # A reach beyond the edge stops at the edge.
        box = [slice(max(0, m - r), m + r) for m, r in zip(middle, (time_reach, reach, reach), strict=True)]
        mask[tuple(box)] = 1.0
        return mask
    t, y, x = (_frequencies(size, centred) for size in shape)
    distance = (cutoff / time_cutoff * t)[:, None, None] ** 2 + y[:, None] ** 2 + x**2
    if kind == "gaussian":
        return torch.exp(-distance / (2.0 * cutoff**2))
    if kind == "butterworth":
        return 1.0 / (1.0 + (distance / cutoff**2) ** order)
    return (distance <= 2.0 * cutoff).double()  # as published: the squared distance against twice the cutoff


def _frequencies(size: int, centred: bool) -> Tensor:
    index = torch.arange(size, dtype=torch.float64)
    if centred:
        return (index - size // 2) / (size / 2.0)
    return 2.0 * index / size - 1.0


def frequency_mix(low: Tensor, high: Tensor, mask: Tensor) -> Tensor:
    """``F^-1( M F(low) + (1 - M) F(high) )`` over the last three dimensions ``[..., F, h, w]``, real part."""
    axes = (-3, -2, -1)
    spectrum_low = torch.fft.fftshift(torch.fft.fftn(low, dim=axes), dim=axes)
    spectrum_high = torch.fft.fftshift(torch.fft.fftn(high, dim=axes), dim=axes)
    mask = mask.to(device=low.device, dtype=low.dtype)
    mixed = spectrum_low * mask + spectrum_high * (1.0 - mask)
    out: Tensor = torch.fft.ifftn(torch.fft.ifftshift(mixed, dim=axes), dim=axes).real
    return out


def forward_chain(latents: Tensor, betas: Tensor, noises: Tensor) -> Tensor:
    """The published re-noising: ``x <- sqrt(1 - b) x + sqrt(b) n`` for each beta in turn.

    Args:
        latents: ``[B, C, h, w]``.
        betas: ``[K]``, one per training timestep crossed.
        noises: ``[B, C, K, h, w]``.

    The chain is one Gaussian, ``A x + sqrt(1 - A^2) xi`` with ``A = prod sqrt(1 - b)``; that is the form used below.
    """
    for index, beta in enumerate(betas):
        latents = (1.0 - beta).sqrt() * latents + beta.sqrt() * noises[:, :, index]
    return latents


@dataclass(frozen=True, kw_only=True)
class CoherentTail:
    """What enters the queue in place of plain noise.

    Args:
        gain: ``g0``, the filter's value at zero frequency: 0 is plain FIFO; 0.6065 as published. One latent frame of
            a video autoencoder is several pictures, so the same gain makes motion that much slower; this is the knob.
        cutoff: ``d_s``; larger keeps finer detail of the frame before.
        retain: ``A``, how much of the tail survives re-noising. At sigma 1 the exact kernel would erase it, so this
            is free; 1 is recommended, 0.9089 is what the published DDPM schedule amounts to.
        kind: filter shape.

    Raises:
        InputError: gain outside [0, 1), retain outside [0, 1], a cutoff or filter that cannot be.
    """

    gain: float = PUBLISHED_GAIN
    cutoff: float = 0.25
    retain: float = 1.0
    kind: str = "gaussian"

    def __post_init__(self) -> None:
        if not 0.0 <= self.gain < 1.0:
            raise InputError(
                f"gain={self.gain!r}: must be 0 or more and below 1 (0 = plain noise, {PUBLISHED_GAIN:.4f} = published;"
                " towards 1 the low frequencies of the queue grow without bound)"
            )
        if not 0.0 < self.cutoff < math.inf:
            raise InputError(f"cutoff={self.cutoff!r}: must be a positive fraction of the Nyquist frequency")
        if not 0.0 <= self.retain <= 1.0:
            raise InputError(f"retain={self.retain!r}: must be between 0 and 1")
        if self.kind not in FILTERS:
            raise InputError(f"filter={self.kind!r}: must be one of {', '.join(FILTERS)}")

    def mask(self, height: int, width: int) -> Tensor:
        """``L``, float64 ``[1, h, w]``, zero frequency in the middle.

        Raises:
            InputError: no frequency of a spectrum of this size passes the filter.
        """
        plane = _plane(self.kind, height, width, self.cutoff)
        if not plane.any():
            raise InputError(
                f"cutoff={self.cutoff}: a {self.kind} filter passes no frequency of {height} x {width} latents;"
                " raise it, or take the gaussian filter"
            )
        return self.gain * plane

    def renoise(self, tail: Tensor, noise: Tensor) -> Tensor:
        """``zhat = A z + sqrt(1 - A^2) xi``."""
        return self.retain * tail + math.sqrt(1.0 - self.retain**2) * noise

    def sample(self, tail: Tensor, renoise_noise: Tensor, fresh: Tensor) -> Tensor:
        """The frame that enters: Eq. 3 for each channel of each frame by itself.

        Args:
            tail: the queue's last frame after the pass, ``[B, C, h, w]``.
            renoise_noise, fresh: standard normal, like ``tail``.
        """
        if self.gain == 0.0:
            return fresh
        mask = self.mask(tail.shape[-2], tail.shape[-1])
        return frequency_mix(self.renoise(tail, renoise_noise)[:, :, None], fresh[:, :, None], mask)[:, :, 0]


@lru_cache(maxsize=8)
def _plane(kind: str, height: int, width: int, cutoff: float) -> Tensor:
    """A filter over space alone that is 1 at zero frequency."""
    mask = low_pass(kind, (3, height, width), cutoff=cutoff, time_cutoff=1.0, centred=True)
    return mask[1:2]  # the middle of three frames is where the time coordinate is 0
