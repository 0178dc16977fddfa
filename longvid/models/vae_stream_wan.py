"""The decode and encode streams of diffusers' AutoencoderKLWan; see vae_stream.py for what a stream is.

Shape letters: B batch, C channels, F latent frames, T video frames, H W pixels, h w latent size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanCausalConv3d,
    patchify,
    unpatchify,
)
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from longvid.models.vae_features import FeatureMaps, Features

__all__ = [
    "WanStreamingDecoder",
    "WanStreamingEncoder",
    "check_finite",
    "decoder_state_bytes",
    "denormalise_latents",
    "normalise_latents",
]


def check_finite(name: str, x: Tensor) -> None:
    """Refuse NaN and infinity: one synchronisation a block, in exchange for not writing a black video.

    Raises:
        ValueError: naming how many values are bad.
    """
    if x.device.type != "meta" and not torch.isfinite(x).all():
        raise ValueError(
            f"{name}: {int((~torch.isfinite(x)).sum())} of {x.numel()} values are NaN or infinite; "
            "the model overflowed: use bfloat16 or float32 in place of float16, or lower guidance_scale"
        )


def denormalise_latents(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Latents as the transformer sees them -> latents as the VAE does: z * std + mean a channel, float32."""
    mean_BCFhw, std_BCFhw = _latent_statistics(vae, latents)
    return latents.float() * std_BCFhw + mean_BCFhw


def normalise_latents(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """The inverse of :func:`denormalise_latents`."""
    mean_BCFhw, std_BCFhw = _latent_statistics(vae, latents)
    return (latents.float() - mean_BCFhw) / std_BCFhw


def _latent_statistics(vae: AutoencoderKLWan, latents: Tensor) -> tuple[Tensor, Tensor]:
    config: Any = vae.config
    mean, std = config.latents_mean, config.latents_std
    if not len(mean) == len(std) == config.z_dim:
        raise ValueError(
            f"vae: latents_mean and latents_std have {len(mean)} and {len(std)} entries, z_dim is {config.z_dim}; "
            "the three must agree: mend the vae's config.json"
        )
    return _by_channel(mean, latents), _by_channel(std, latents)


def _by_channel(values: Sequence[float], latents: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=latents.device).view(1, -1, 1, 1, 1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Tiling:
    """How diffusers cuts a large picture into overlapping tiles; (height, width) pairs, sizes before and after."""

    size: tuple[int, int]
    """Tile size in the input."""
    stride: tuple[int, int]
    """Distance between tiles in the input."""
    out_stride: tuple[int, int]
    """Distance between tiles in the output, the part of a tile that is kept."""
    blend: tuple[int, int]
    """Overlap in the output over which neighbours are cross-faded."""
    out_size: tuple[int, int]
    """Size of the whole output."""

    def rows(self, height: int, width: int) -> list[list[tuple[slice, slice]]]:
        return [
            [
                (slice(top, top + self.size[0]), slice(left, left + self.size[1]))
                for left in range(0, width, self.stride[1])
            ]
            for top in range(0, height, self.stride[0])
        ]


class _WanStream:
    """The part that decoding and encoding share: state, its checks, tiles, saving and loading."""

    _name = "latents"

    def __init__(self, vae: AutoencoderKLWan, network: torch.nn.Module) -> None:
        # Typed loosely: diffusers declares neither its configuration's fields nor its integers as never None.
        self.vae: Any = vae
        self._maps = FeatureMaps(sum(isinstance(module, WanCausalConv3d) for module in network.modules()))
        self._shape: tuple[int, int, int, int] | None = None
        self._tiling: _Tiling | None = None
        self._steps = 0

    def reset(self) -> None:
        """Forget the stream and free its memory; the next frame is a first one."""
        self._maps.start(0)
        self._shape = self._tiling = None
        self._steps = 0

    @property
    def latent_frames(self) -> int:
        """Latent frames that went through this stream so far."""
        return self._steps

    @property
    def state_bytes(self) -> int:
        """Bytes that the stream holds between calls (large: about 2 GB for real Wan at 832x480 in bfloat16)."""
        return self._maps.bytes

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the state: only tensors, so that safetensors can hold it."""
        state = self._maps.state_dict()
        state["steps"] = torch.tensor(self._steps)
        state["shape"] = torch.tensor(self._shape or (), dtype=torch.int64)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where ``state`` was taken, bit for bit.

        Raises:
            ValueError: the state is incomplete, or belongs to another VAE.
        """
        if missing := {"kinds", "steps", "shape"} - set(state):
            raise ValueError(f"state: lacks {', '.join(sorted(missing))}; give what state_dict() returned")
        self._maps.load_state_dict(state)
        self._steps = int(state["steps"])
        self._shape = tuple(state["shape"].tolist()) or None
        self._tiling = self._plan_tiles(*self._shape[2:]) if self._shape else None
        tiles = self._tile_count(*self._shape[2:]) if self._shape else 0
        if tiles != len(self._maps.tiles):
            raise ValueError(
                f"state: it holds {len(self._maps.tiles)} tiles, the vae's tiling gives {tiles}; "
                "set the vae's tiling as it was when the state was saved"
            )

    def _plan_tiles(self, height: int, width: int) -> _Tiling | None:
        raise NotImplementedError

    def _tile_count(self, height: int, width: int) -> int:
        return sum(map(len, self._tiling.rows(height, width))) if self._tiling else 1

    def _enter(self, x: Tensor) -> None:
        """Check a piece against the stream, and start the stream with the first piece."""
        check_finite(self._name, x)
        shape = (x.shape[0], x.shape[1], x.shape[3], x.shape[4])
        if self._shape is None:
            self._shape = shape
            self._tiling = self._plan_tiles(*shape[2:])
            self._maps.start(self._tile_count(*shape[2:]))
        elif shape != self._shape:
            raise ValueError(
                f"{self._name}: shape (batch, channels, height, width) {shape} differs from {self._shape}, with which "
                "this stream began; call reset() before another video"
            )
        self._maps.to(x.device)

    def _run(self, network: Callable[[Tensor, Features], Tensor], x: Tensor) -> Tensor:
        """One step of ``network`` on one slice in time, in one piece or tile by tile."""
        if self._tiling is None:
            return network(x, self._maps.tiles[0])
        # Same order as AutoencoderKLWan.tiled_decode: the blend works in place, so later tiles see blended ones.
        vae, tiling, maps = self.vae, self._tiling, iter(self._maps.tiles)
        rows = [[network(x[..., top, left], next(maps)) for top, left in row] for row in tiling.rows(*x.shape[-2:])]
        for i, row in enumerate(rows):
            for j, tile in enumerate(row):
                if i > 0:
                    vae.blend_v(rows[i - 1][j], tile, tiling.blend[0])
                if j > 0:
                    vae.blend_h(row[j - 1], tile, tiling.blend[1])
        kept = [
            torch.cat([tile[..., : tiling.out_stride[0], : tiling.out_stride[1]] for tile in row], dim=-1)
            for row in rows
        ]
        return torch.cat(kept, dim=-2)[..., : tiling.out_size[0], : tiling.out_size[1]]

    @property
    def _tile_sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        vae = self.vae
        return (
            (vae.tile_sample_min_height, vae.tile_sample_min_width),
            (vae.tile_sample_stride_height, vae.tile_sample_stride_width),
        )


class WanStreamingDecoder(_WanStream):
    """Decode stream on diffusers' AutoencoderKLWan (Wan 2.1, and Wan 2.2's residual VAE with patch size 2).

    Equal bit for bit to ``vae.decode(denormalise_latents(vae, latents))`` on the whole video, tiled where
    ``vae.enable_tiling()`` is on and the picture is large enough; up to the last bit of ``post_quant_conv``, which
    runs here a frame at a time and there over all frames: some processors round such products by their size.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__(vae, vae.decoder)

    @torch.no_grad()
    def decode(self, latents: Tensor, *, clamp: bool = True) -> Tensor:
        """Decode the next F latent frames, one at a time.

        Args:
            latents: normalised, [B, C, F, h, w], any float dtype, on the VAE's device.
            clamp: cut values to [-1, 1], as ``vae.decode`` does; False returns what the network gives.

        Returns:
            float32 [B, 3, T, H, W] in [-1, 1]; T is 4F, or 1 + 4(F-1) when the stream begins here.

        Raises:
            ValueError: wrong rank or channels, a size unlike the stream's, NaN or infinite values.
        """
        channels = self.vae.config.z_dim
        if latents.ndim != 5 or latents.shape[1] != channels or 0 in latents.shape:
            raise ValueError(
                f"latents: shape {tuple(latents.shape)} must be [batch, {channels}, frames, height, width], none empty"
            )
        self._enter(latents)
        z_BCFhw = denormalise_latents(self.vae, latents).to(self.vae.dtype)
        video = torch.cat([self._decode_frame(z_BChw) for z_BChw in torch.split(z_BCFhw, 1, dim=2)], dim=2)
        if self.vae.config.patch_size is not None:
            video = unpatchify(video, patch_size=self.vae.config.patch_size)  # type: ignore[no-untyped-call]
        return (video.clamp(-1.0, 1.0) if clamp else video).float()

    def _decode_frame(self, z: Tensor) -> Tensor:
        first = self._steps == 0
        video = self._run(lambda tile, feats: _decode_step(self.vae, tile, feats, first), z)
        self._steps += 1
        return video

    def _plan_tiles(self, height: int, width: int) -> _Tiling | None:
        vae = self.vae
        if not vae.use_tiling:
            return None
        patch, ratio = vae.config.patch_size or 1, vae.spatial_compression_ratio
        size, stride = self._tile_sizes
        if height <= size[0] // ratio and width <= size[1] // ratio:
            return None
        return _Tiling(
            size=(size[0] // ratio, size[1] // ratio),
            stride=(stride[0] // ratio, stride[1] // ratio),
            out_stride=(stride[0] // patch, stride[1] // patch),
            blend=(size[0] // patch - stride[0] // patch, size[1] // patch - stride[1] // patch),
            out_size=(height * ratio // patch, width * ratio // patch),
        )


class WanStreamingEncoder(_WanStream):
    """Encode stream on diffusers' AutoencoderKLWan: the mode of the posterior, normalised.

    Equal bit for bit to ``normalise_latents(vae, vae.encode(video).latent_dist.mode())`` on the whole video, up to the
    last bit of ``quant_conv``, as in :class:`WanStreamingDecoder`.
    """

    _name = "video"

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__(vae, vae.encoder)
        self.frames_per_latent = 2 ** sum(bool(flag) for flag in self.vae.config.temperal_downsample)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Encode the next T frames.

        Args:
            video: [B, 3, T, H, W] in [-1, 1]; T is 1 + 4k when the stream begins here, 4k afterwards.

        Returns:
            float32 normalised latents [B, C, F, h, w].

        Raises:
            ValueError: wrong rank, channels or frame count, a size unlike the stream's, NaN or infinite values.
        """
        n, config = self.frames_per_latent, self.vae.config
        patch = config.patch_size or 1
        channels = config.in_channels // patch**2
        if video.ndim != 5 or video.shape[1] != channels or 0 in video.shape:
            raise ValueError(
                f"video: shape {tuple(video.shape)} must be [batch, {channels}, frames, height, width], none empty"
            )
        frames, begins = video.shape[2], self._steps == 0
        if (frames - begins) % n:
            rule = f"1 + {n}k frames first" if begins else f"{n}k frames in a stream that has begun"
            raise ValueError(f"video: {frames} frames; give {rule}")
        factor = config.scale_factor_spatial
        if video.shape[3] % factor or video.shape[4] % factor:
            raise ValueError(f"video: {video.shape[3]}x{video.shape[4]} pixels; both must be multiples of {factor}")
        self._enter(video)
        x = video.to(self.vae.dtype)
        if config.patch_size is not None:
            x = patchify(x, patch_size=config.patch_size)  # type: ignore[no-untyped-call]
        pieces = [x[:, :, :1]] if begins else []
        pieces += torch.split(x[:, :, int(begins) :], n, dim=2) if frames > begins else []
        moments = torch.cat([self._encode_piece(piece) for piece in pieces], dim=2)
        return normalise_latents(self.vae, moments[:, : config.z_dim])

    def _encode_piece(self, piece: Tensor) -> Tensor:
        moments = self._run(lambda tile, feats: _encode_step(self.vae, tile, feats), piece)
        self._steps += 1
        return moments

    def _plan_tiles(self, height: int, width: int) -> _Tiling | None:
        vae = self.vae
        if not vae.use_tiling:
            return None
        # diffusers applies the tile sizes to the patchified picture when it encodes; so do we, to be equal to it.
        patch = vae.config.patch_size or 1
        height, width, ratio = height // patch, width // patch, vae.spatial_compression_ratio // patch
        size, stride = self._tile_sizes
        if height <= size[0] and width <= size[1]:
            return None
        return _Tiling(
            size=size,
            stride=stride,
            out_stride=(stride[0] // ratio, stride[1] // ratio),
            blend=(size[0] // ratio - stride[0] // ratio, size[1] // ratio - stride[1] // ratio),
            out_size=(height // ratio, width // ratio),
        )

    def _tile_count(self, height: int, width: int) -> int:
        patch = self.vae.config.patch_size or 1
        return super()._tile_count(height // patch, width // patch)


# The decorator lets accelerate's model offload bring the VAE to the device, as it does for vae.decode().
@apply_forward_hook  # type: ignore[untyped-decorator]
def _decode_step(vae: Any, z: Tensor, feats: Features, first: bool) -> Tensor:
    video: Tensor = vae.decoder(vae.post_quant_conv(z), feat_cache=feats, feat_idx=[0], first_chunk=first)
    return video


@apply_forward_hook  # type: ignore[untyped-decorator]
def _encode_step(vae: Any, x: Tensor, feats: Features) -> Tensor:
    moments: Tensor = vae.quant_conv(vae.encoder(x, feat_cache=feats, feat_idx=[0]))
    return moments


def decoder_state_bytes(
    config: Mapping[str, Any], *, batch: int, latent_height: int, latent_width: int, dtype: torch.dtype
) -> int:
    """What one decode stream will hold, from the VAE's configuration alone: no weights, no arithmetic.

    It decodes two latent frames with shapes only (torch's meta device), after which the state is at its full size.
    """
    with torch.device("meta"):
        vae = AutoencoderKLWan.from_config(dict(config))
        vae.decoder, vae.post_quant_conv = vae.decoder.to(dtype), vae.post_quant_conv.to(dtype)
        stream = WanStreamingDecoder(vae)
        stream.decode(torch.empty(batch, vae.config.z_dim, 2, latent_height, latent_width, dtype=dtype))
    return stream.state_bytes
