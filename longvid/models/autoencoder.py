"""AutoencoderTinyVideo: a small, temporally causal video autoencoder with Wan's interface.

Frames come in groups of four, one group a latent frame; the first latent frame holds one video frame (1 + 4k frames in
all), as in Wan2.1's and Wan2.2's VAE. Space shrinks 16 times, as in Wan2.2's. Each side sees one group of history:

    latent t-1 --+            +-- feature t-1
                 v            v
    latent t --> stem 8x8 --> 16x16 --> 32x32 --> pixel shuffle --> 4 frames (the first latent: the last of them)

so a streaming decode carries two small tensors and nothing else. Decoding always runs latent frame by latent frame,
which makes a streamed decode equal to a one-shot decode bit for bit.

Shapes: B batch, C channels, F latent frames, T video frames, G groups (G = F), H and W pixels, h = H/16, w = W/16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

GROUP = 4  # video frames in a latent frame
_PATCH = 4  # pixel shuffle between video frames and the widest feature map


class _PointPosterior:
    """The posterior of a deterministic encoder: diffusers' interface, no variance."""

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.mean


class _ResBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))); no normalisation, so that a pixel never depends on the picture's statistics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(nnf.silu(self.conv1(nnf.silu(x))))


def _stack(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*[_ResBlock(width) for _ in range(depth)])


class _Encoder(nn.Module):
    def __init__(self, z_dim: int, widths: tuple[int, int, int], depths: tuple[int, int, int]) -> None:
        super().__init__()
        w8, w16, w32 = widths
        d8, d16, d32 = depths
        self.stem = nn.Conv2d(3 * GROUP * _PATCH**2, w32, 3, padding=1)
        self.at32 = _stack(w32, d32)
        self.down16 = nn.Conv2d(w32, w16, 4, stride=2, padding=1)
        self.past = nn.Conv2d(w16, w16, 1, bias=False)
        self.at16 = _stack(w16, d16)
        self.down8 = nn.Conv2d(w16, w8, 4, stride=2, padding=1)
        self.at8 = _stack(w8, d8)
        self.out = nn.Conv2d(w8, z_dim, 3, padding=1)

    def early(self, groups: Tensor) -> Tensor:
        """[N, 12, H, W] -> features [N, w16, H/8, W/8], before history is mixed in."""
        return self.down16(self.at32(self.stem(nnf.pixel_unshuffle(groups, _PATCH))))

    def late(self, feature: Tensor, past: Tensor) -> Tensor:
        return self.out(nnf.silu(self.at8(self.down8(self.at16(feature + self.past(past))))))


class _Decoder(nn.Module):
    def __init__(self, z_dim: int, widths: tuple[int, int, int], depths: tuple[int, int, int]) -> None:
        super().__init__()
        w8, w16, w32 = widths
        d8, d16, d32 = depths
        self.stem = nn.Conv2d(2 * z_dim, w8, 3, padding=1)
        self.at8 = _stack(w8, d8)
        self.up16 = nn.Conv2d(w8, w16, 3, padding=1)
        self.past = nn.Conv2d(w16, w16, 1, bias=False)
        self.at16 = _stack(w16, d16)
        self.up32 = nn.Conv2d(w16, w32, 3, padding=1)
        self.at32 = _stack(w32, d32)
        self.out = nn.Conv2d(w32, 3 * GROUP * _PATCH**2, 3, padding=1)

    def early(self, z: Tensor, z_past: Tensor) -> Tensor:
        """Latents [N, C, h, w] of now and before -> features [N, w16, 2h, 2w], before history is mixed in."""
        feature = self.at8(self.stem(torch.cat([z, z_past], 1)))
        return self.up16(nnf.interpolate(feature, scale_factor=2.0, mode="nearest"))

    def late(self, feature: Tensor, past: Tensor) -> Tensor:
        """-> groups [N, 12, H, W], not clamped."""
        feature = self.at16(feature + self.past(past))
        feature = self.at32(self.up32(nnf.interpolate(feature, scale_factor=2.0, mode="nearest")))
        return nnf.pixel_shuffle(self.out(nnf.silu(feature)), _PATCH)


def _shift(x: Tensor, groups: int) -> Tensor:
    """[B*G, ...] -> the same one group later in time, zeros first: what each group may see of its past."""
    x = x.unflatten(0, (-1, groups))
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1).flatten(0, 1)


class DecodeStream:
    """Streaming decode: the state is the last latent [B, C, h, w] and the last 16-pixel feature [B, w16, 2h, 2w]."""

    def __init__(self, vae: AutoencoderTinyVideo) -> None:
        self._vae = vae
        self._state: tuple[Tensor, Tensor] | None = None

    def reset(self) -> None:
        """Forget the past: the next latent frame is a first one."""
        self._state = None

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, C, F, h, w] -> frames [B, 3, T, H, W] in [-1, 1]: 1 for the first latent, then 4."""
        z = self._vae.denormalize(latents)
        frames = []
        for f in range(z.shape[2]):
            group, self._state = self._vae.decode_group(z[:, :, f], self._state)
            frames.append(group)
        return torch.cat(frames, 2)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self._state is None else {"latent": self._state[0], "feature": self._state[1]}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._state = (state["latent"], state["feature"]) if state else None


class EncodeStream:
    """Streaming encode: 1 frame first, then 4k at a time; the state is the last 8-pixel feature."""

    def __init__(self, vae: AutoencoderTinyVideo) -> None:
        self._vae = vae
        self._past: Tensor | None = None

    def reset(self) -> None:
        self._past = None

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [B, 3, T, H, W] in [-1, 1] -> normalised latents [B, C, F, h, w]."""
        z, self._past = self._vae.encode_groups(self._vae.group(frames, first=self._past is None), self._past)
        return self._vae.normalize(z)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self._past is None else {"feature": self._past}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._past = state.get("feature")


class AutoencoderTinyVideo(ModelMixin, ConfigMixin):
    """Causal video autoencoder of the embedded model: 4x in time, 16x in space, ``z_dim`` channels.

    ``encode`` and ``decode`` have the shapes and the (un-normalised) latents of diffusers' ``AutoencoderKLWan``;
    ``latents_mean`` and ``latents_std`` are used as there. ``make_stream`` gives what the rollout uses.

    Raises:
        ValueError: when the frame count is not 1 + 4k or a side is not a multiple of 16.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        z_dim: int = 24,
        widths: tuple[int, int, int] = (128, 128, 96),
        depths: tuple[int, int, int] = (2, 2, 1),
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        scale_factor_temporal: int = GROUP,
        scale_factor_spatial: int = 16,
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(z_dim, tuple(widths), tuple(depths))
        self.decoder = _Decoder(z_dim, tuple(widths), tuple(depths))

    @property
    def temperal_downsample(self) -> list[bool]:
        """AutoencoderKLWan's attribute of this (misspelt) name, from which pipelines derive the temporal factor."""
        return [True, True]

    def _stats(self, like: Tensor) -> tuple[Tensor, Tensor]:
        zeros, ones = [0.0] * self.config.z_dim, [1.0] * self.config.z_dim
        mean = like.new_tensor(self.config.latents_mean or zeros).view(1, -1, 1, 1, 1)
        std = like.new_tensor(self.config.latents_std or ones).view(1, -1, 1, 1, 1)
        return mean, std

    def normalize(self, z: Tensor) -> Tensor:
        """Raw latents [B, C, F, h, w] -> zero mean, unit variance a channel, as the diffusion model sees them."""
        mean, std = self._stats(z)
        return (z - mean) / std

    def denormalize(self, z: Tensor) -> Tensor:
        mean, std = self._stats(z)
        return z * std + mean

    def group(self, frames: Tensor, *, first: bool = True) -> Tensor:
        """Frames [B, 3, T, H, W] -> groups [B, G, 12, H, W]; the first frame, if any, fills a group of its own."""
        batch, _, count, height, width = frames.shape
        rule = "1 + 4k" if first else "4k"
        if count < 1 or (count - int(first)) % GROUP:
            raise ValueError(f"frames: {count} given; must be {rule} frames")
        if height % 16 or width % 16:
            raise ValueError(f"frames: {height}x{width} pixels; both sides must be multiples of 16")
        if first:
            frames = torch.cat([frames[:, :, :1].expand(-1, -1, GROUP, -1, -1), frames[:, :, 1:]], 2)
        grouped = frames.transpose(1, 2).reshape(batch, -1, GROUP, 3, height, width)
        return grouped.flatten(2, 3)

    # The decorator lets model offloading bring the weights: a stream calls these, and not encode() or decode().
    @apply_forward_hook
    def encode_groups(self, groups: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """One group at a time [B, G, 12, H, W] -> raw latents [B, C, G, h, w] and the new past."""
        latents = []
        for g in range(groups.shape[1]):
            feature = self.encoder.early(groups[:, g])
            latents.append(self.encoder.late(feature, torch.zeros_like(feature) if past is None else past))
            past = feature
        assert past is not None
        return torch.stack(latents, 2), past

    @apply_forward_hook
    def decode_group(self, z: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One raw latent frame [B, C, h, w] -> frames [B, 3, 1 or 4, H, W] in [-1, 1] and the new state."""
        feature = self.decoder.early(z, torch.zeros_like(z) if state is None else state[0])
        group = self.decoder.late(feature, torch.zeros_like(feature) if state is None else state[1])
        frames = group.unflatten(1, (GROUP, 3)).transpose(1, 2).clamp(-1, 1)
        return (frames[:, :, -1:] if state is None else frames), (z, feature)

    def forward_train(self, frames: Tensor, noise: float | Tensor = 0.0) -> tuple[Tensor, Tensor]:
        """All groups at once, for training: frames [B, 3, T, H, W] -> (reconstruction, not clamped; raw latents)."""
        batch, count = frames.shape[0], 1 + (frames.shape[2] - 1) // GROUP
        groups = self.group(frames).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        feature = self.encoder.early(groups)
        z = self.encoder.late(feature, _shift(feature, count))
        noisy = z + noise * torch.randn_like(z)
        feature = self.decoder.early(noisy, _shift(noisy, count))
        out = self.decoder.late(feature, _shift(feature, count))
        out = out.reshape(batch, count * GROUP, 3, *frames.shape[-2:]).transpose(1, 2)[:, :, GROUP - 1 :]
        return out, z.unflatten(0, (batch, count)).transpose(1, 2)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[_PointPosterior]:
        """Frames [B, 3, 1+4k, H, W] in [-1, 1] -> posterior over raw latents [B, C, 1+k, H/16, W/16]."""
        posterior = _PointPosterior(self.encode_groups(self.group(x), None)[0])
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)  # type: ignore[arg-type]

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Raw latents [B, C, F, h, w] -> frames [B, 3, 1+4(F-1), H, W] in [-1, 1]."""
        state, frames = None, []
        for f in range(z.shape[2]):
            group, state = self.decode_group(z[:, :, f], state)
            frames.append(group)
        video = torch.cat(frames, 2)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        return self.decode(self.encode(sample).latent_dist.mode(), return_dict=return_dict)

    def make_stream(self) -> DecodeStream:
        """A streaming decoder; any number may run on one model."""
        return DecodeStream(self)

    def make_encode_stream(self) -> EncodeStream:
        return EncodeStream(self)
