"""Decode and encode a video piece by piece, with exactly the result of doing it in one go.

A causal video VAE (Wan's) looks only backwards in time, and only a little: each causal convolution needs the last
two frames of its own input. Keep those, and a latent frame can be decoded the moment it exists. diffusers has the
mechanism inside ``AutoencoderKLWan.decode`` (a list with one entry a causal convolution) but clears it at every call;
here the list belongs to a stream, so that several streams can share one VAE.

The first latent frame becomes one video frame, every later one four (``2 ** sum(temperal_downsample)``). Latents are
taken one at a time, so the cost and the memory of a call do not depend on how the video was split, and the result is
bit-identical for every split.

Shape letters: B batch, C channels, F latent frames, T video frames, H W pixels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from longvid.models.vae_stream_wan import (
    WanStreamingDecoder,
    WanStreamingEncoder,
    check_finite,
    decoder_state_bytes,
    denormalise_latents,
    normalise_latents,
)

__all__ = [
    "StreamingDecoder",
    "StreamingEncoder",
    "decoder_state_bytes",
    "denormalise_latents",
    "normalise_latents",
    "streaming_decoder",
    "streaming_encoder",
]


@runtime_checkable
class StreamingDecoder(Protocol):
    """What every streaming decoder can do, whichever VAE it belongs to."""

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B,C,F,h,w] that continue the stream -> float32 video [B,3,T,H,W] in [-1,1]."""

    def reset(self) -> None:
        """Forget the stream: the next latent frame is a first one."""

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the stream's state, tensors only, fit for safetensors."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state_dict(): what is decoded next is bit-identical to never having stopped."""


@runtime_checkable
class StreamingEncoder(Protocol):
    """As :class:`StreamingDecoder`, in the other direction."""

    def encode(self, video: Tensor) -> Tensor:
        """Video [B,3,T,H,W] in [-1,1] that continues the stream -> normalised latents [B,C,F,h,w], float32."""

    def reset(self) -> None: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


def streaming_decoder(vae: Any) -> WanStreamingDecoder | ForeignDecoder:
    """A new decode stream on ``vae``: an AutoencoderKLWan, or any VAE with a ``make_stream()`` of its own.

    Raises:
        ValueError: the VAE can do neither.
    """
    if isinstance(vae, AutoencoderKLWan):
        return WanStreamingDecoder(vae)
    if callable(getattr(vae, "make_stream", None)):
        return ForeignDecoder(vae.make_stream())
    raise ValueError(
        f"vae={type(vae).__name__}: cannot decode a stream; give an AutoencoderKLWan or a VAE with make_stream()"
    )


def streaming_encoder(vae: Any) -> WanStreamingEncoder | ForeignEncoder:
    """A new encode stream on ``vae``: an AutoencoderKLWan, or any VAE with a ``make_encode_stream()`` of its own.

    Raises:
        ValueError: the VAE can do neither.
    """
    if isinstance(vae, AutoencoderKLWan):
        return WanStreamingEncoder(vae)
    if callable(getattr(vae, "make_encode_stream", None)):
        return ForeignEncoder(vae.make_encode_stream())
    raise ValueError(
        f"vae={type(vae).__name__}: cannot encode a stream; give an AutoencoderKLWan or a VAE with make_encode_stream()"
    )


class _Foreign:
    """A stream that its VAE made: passed on, with the checks that every stream has."""

    _verb = "decode"
    _name = "latents"

    def __init__(self, stream: Any) -> None:
        verbs = (self._verb, "reset", "state_dict", "load_state_dict")
        if lacking := [verb for verb in verbs if not callable(getattr(stream, verb, None))]:
            raise ValueError(f"vae: its stream {type(stream).__name__} lacks {', '.join(lacking)}()")
        self.stream = stream

    def reset(self) -> None:
        self.stream.reset()

    @property
    def state_bytes(self) -> int:
        """Bytes that the stream holds between calls."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.stream.state_dict().values())

    def state_dict(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.stream.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.stream.load_state_dict(state)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 5 or 0 in x.shape:
            raise ValueError(
                f"{self._name}: shape {tuple(x.shape)} must be [batch, channels, frames, height, width], none empty"
            )
        check_finite(self._name, x)


class ForeignDecoder(_Foreign):
    """Decode stream of a VAE that brings its own (``make_stream()``)."""

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B,C,F,h,w] -> float32 [B,3,T,H,W] in [-1,1].

        Raises:
            ValueError: wrong rank, NaN or infinite values, and whatever the VAE itself refuses.
        """
        self._check(latents)
        video: Tensor = self.stream.decode(latents)
        return video.float()


class ForeignEncoder(_Foreign):
    """Encode stream of a VAE that brings its own (``make_encode_stream()``)."""

    _verb = "encode"
    _name = "video"

    def encode(self, video: Tensor) -> Tensor:
        """Video [B,3,T,H,W] in [-1,1] -> float32 normalised latents [B,C,F,h,w].

        Raises:
            ValueError: wrong rank, NaN or infinite values, and whatever the VAE itself refuses.
        """
        self._check(video)
        latents: Tensor = self.stream.encode(video)
        return latents.float()
