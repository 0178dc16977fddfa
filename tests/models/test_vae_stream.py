"""Streaming decode and encode give bit for bit what diffusers gives for the whole video.

But for one thing: diffusers runs the 1x1 convolution between latents and network over all frames at once, and on some
processors a product's last bit depends on how many columns it has. So it is run frame by frame in the truth, too.
"""

from contextlib import contextmanager

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

from longvid.models.autoencoder import AutoencoderTinyVideo
from longvid.models.vae_stream import (
    StreamingDecoder,
    StreamingEncoder,
    decoder_state_bytes,
    denormalise_latents,
    normalise_latents,
    streaming_decoder,
    streaming_encoder,
)

SPLITS = [(9,), (3, 3, 3), (1,) * 9, (1, 2, 4, 2), (8, 1)]


def tiny_vae(kind: str, seed: int = 0) -> AutoencoderKLWan:
    torch.manual_seed(seed)
    shared = {"base_dim": 4, "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
    if kind == "wan2.1":
        vae = AutoencoderKLWan(z_dim=16, dim_mult=[1, 2, 4, 4], **shared)
    else:
        vae = AutoencoderKLWan(
            z_dim=48,
            dim_mult=[1, 2, 4, 4],
            decoder_base_dim=8,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
            latents_mean=torch.linspace(-1, 1, 48).tolist(),
            latents_std=torch.linspace(0.5, 2, 48).tolist(),
            **shared,
        )
    return vae.eval()


def latents_for(vae: AutoencoderKLWan, frames: int = 9, height: int = 3, width: int = 5, batch: int = 1):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, vae.config.z_dim, frames, height, width, generator=generator)


@pytest.fixture(params=["wan2.1", "wan2.2"])
def vae(request) -> AutoencoderKLWan:
    return tiny_vae(request.param)


class FrameByFrame(torch.nn.Module):
    """A 1x1 convolution over [B, C, F, h, w], a frame at a time."""

    def __init__(self, conv: torch.nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.conv(frame) for frame in x.split(1, dim=2)], dim=2)


@contextmanager
def frame_by_frame(vae: AutoencoderKLWan):
    convs = {name: getattr(vae, name) for name in ("quant_conv", "post_quant_conv")}
    try:
        for name, conv in convs.items():
            setattr(vae, name, FrameByFrame(conv))
        yield
    finally:
        for name, conv in convs.items():
            setattr(vae, name, conv)


def whole(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """What diffusers decodes of normalised latents, float32; checks that it hardly depends on `frame_by_frame`."""
    z = denormalise_latents(vae, latents).to(vae.dtype)
    with torch.no_grad():
        stock = vae.decode(z).sample
        with frame_by_frame(vae):
            exact = vae.decode(z).sample
    torch.testing.assert_close(exact, stock, rtol=0, atol=1e-5 if vae.dtype == torch.float32 else 0.05)
    return exact.float()


def encoded(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """The same for the posterior's mode, normalised."""
    with torch.no_grad():
        stock = vae.encode(video).latent_dist.mode()
        with frame_by_frame(vae):
            exact = vae.encode(video).latent_dist.mode()
    torch.testing.assert_close(exact, stock, rtol=0, atol=1e-5)
    return normalise_latents(vae, exact)


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_decode_is_bit_identical_for_any_split(vae, split):
    latents = latents_for(vae)
    decoder = streaming_decoder(vae)
    pieces = [decoder.decode(piece) for piece in latents.split(split, dim=2)]
    assert [piece.shape[2] for piece in pieces] == [4 * n - 3 * (i == 0) for i, n in enumerate(split)]
    video = torch.cat(pieces, dim=2)
    assert video.dtype == torch.float32
    assert video.abs().max() <= 1
    assert torch.equal(video, whole(vae, latents))
    assert decoder.latent_frames == 9


def test_decode_of_a_batch_in_bfloat16_is_bit_identical(vae):
    vae = vae.to(torch.bfloat16)
    latents = latents_for(vae, frames=4, batch=2)
    expected = whole(vae, latents)
    decoder = streaming_decoder(vae)
    assert torch.equal(torch.cat([decoder.decode(piece) for piece in latents.split(2, dim=2)], dim=2), expected)


@pytest.mark.parametrize("split", [(9,), (1, 8), (5, 4), (1, 4, 4)], ids=str)
def test_encode_is_bit_identical_for_any_split(vae, split):
    factor = vae.config.scale_factor_spatial
    video = torch.rand(1, 3, 9, 3 * factor, 2 * factor, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = encoded(vae, video)
    encoder = streaming_encoder(vae)
    latents = torch.cat([encoder.encode(piece) for piece in video.split(split, dim=2)], dim=2)
    assert latents.shape == (1, vae.config.z_dim, 3, 3, 2)
    assert torch.equal(latents, expected)


def test_interleaved_streams_share_one_vae(vae):
    first, second = latents_for(vae), latents_for(vae).flip(2)
    expected = whole(vae, first), whole(vae, second)
    a, b = streaming_decoder(vae), streaming_decoder(vae)
    out_a, out_b = [], []
    for i in range(9):
        out_a.append(a.decode(first[:, :, i : i + 1]))
        out_b.append(b.decode(second[:, :, i : i + 1]))
        if i == 4:
            whole(vae, first)  # a one-shot decode in between disturbs neither
    assert torch.equal(torch.cat(out_a, dim=2), expected[0])
    assert torch.equal(torch.cat(out_b, dim=2), expected[1])


@pytest.mark.parametrize("stop", [0, 1, 2, 5], ids=lambda n: f"after{n}")
def test_state_survives_a_file_and_continues_exactly(vae, stop, tmp_path):
    latents = latents_for(vae)
    decoder = streaming_decoder(vae)
    if stop:
        decoder.decode(latents[:, :, :stop])
    save_file(decoder.state_dict(), tmp_path / "state.safetensors")
    expected = decoder.decode(latents[:, :, stop:])

    resumed = streaming_decoder(vae)
    resumed.decode(latents[:, :, 3:4])  # whatever it held is replaced
    resumed.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert resumed.latent_frames == stop
    assert torch.equal(resumed.decode(latents[:, :, stop:]), expected)


def test_encoder_state_continues_exactly(vae):
    factor = vae.config.scale_factor_spatial
    video = torch.rand(1, 3, 13, 2 * factor, factor, generator=torch.Generator().manual_seed(1)) * 2 - 1
    encoder = streaming_encoder(vae)
    encoder.encode(video[:, :, :5])
    state = encoder.state_dict()
    expected = encoder.encode(video[:, :, 5:])
    resumed = streaming_encoder(vae)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.encode(video[:, :, 5:]), expected)


def test_a_saved_state_is_a_copy(vae):
    latents = latents_for(vae)
    decoder = streaming_decoder(vae)
    decoder.decode(latents[:, :, :2])
    state = decoder.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    decoder.decode(latents[:, :, 2:])
    assert all(torch.equal(before[name], state[name]) for name in before)


def test_reset_begins_another_video(vae):
    decoder = streaming_decoder(vae)
    decoder.decode(latents_for(vae, frames=2))
    decoder.reset()
    assert decoder.state_bytes == 0
    other = latents_for(vae, frames=3, height=2, width=2)
    assert torch.equal(decoder.decode(other), whole(vae, other))


def test_state_does_not_grow_and_its_size_is_known_beforehand(vae):
    decoder = streaming_decoder(vae)
    sizes = []
    for _ in range(4):
        decoder.decode(latents_for(vae, frames=2))
        sizes.append(decoder.state_bytes)
    assert len(set(sizes)) == 1
    assert sizes[0] == sum(t.nbytes for name, t in decoder.state_dict().items() if name.startswith("features."))
    predicted = decoder_state_bytes(vae.config, batch=1, latent_height=3, latent_width=5, dtype=torch.float32)
    assert predicted == sizes[0]


def test_tiled_stream_equals_diffusers_tiled_decode(vae):
    ratio = vae.spatial_compression_ratio
    vae.enable_tiling(4 * ratio, 4 * ratio, 3 * ratio, 3 * ratio)
    latents = latents_for(vae, frames=3, height=8, width=5)
    expected = whole(vae, latents)
    decoder = streaming_decoder(vae)
    first = decoder.decode(latents[:, :, :1])
    state = decoder.state_dict()
    assert torch.equal(torch.cat([first, decoder.decode(latents[:, :, 1:])], dim=2), expected)
    resumed = streaming_decoder(vae)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.decode(latents[:, :, 1:]), expected[:, :, 1:])
    vae.use_tiling = False
    assert not torch.equal(whole(vae, latents), expected)
    with pytest.raises(ValueError, match="tiling as it was"):
        streaming_decoder(vae).load_state_dict(state)


def test_tiled_encode_equals_diffusers_tiled_encode():
    vae = tiny_vae("wan2.1")
    vae.enable_tiling(32, 32, 24, 24)
    video = torch.rand(1, 3, 5, 40, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = encoded(vae, video)
    encoder = streaming_encoder(vae)
    latents = torch.cat([encoder.encode(video[:, :, :1]), encoder.encode(video[:, :, 1:])], dim=2)
    assert torch.equal(latents, expected)


def test_the_first_latent_frame_really_differs_from_a_later_one(vae):
    """Guards the tests above: a decoder that ignored history would pass none of them."""
    latents = latents_for(vae, frames=2)
    decoder = streaming_decoder(vae)
    decoder.decode(latents[:, :, :1])
    continued = decoder.decode(latents[:, :, 1:])
    decoder.reset()
    assert (continued[:, :, -1] - decoder.decode(latents[:, :, 1:])[:, :, -1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z.index_fill(2, torch.tensor([1]), float("nan")), r"latents: \d+ of \d+ values are NaN"),
        (lambda z: z / 0, "NaN or infinite"),
        (lambda z: z[0], "must be"),
        (lambda z: z[:, :7], "must be"),
        (lambda z: z[:, :, :0], "none empty"),
    ],
    ids=["nan", "inf", "rank", "channels", "empty"],
)
def test_bad_latents_are_refused_and_leave_the_stream_as_it_was(vae, change, message):
    latents = latents_for(vae, frames=3)
    decoder = streaming_decoder(vae)
    first = decoder.decode(latents[:, :, :1])
    with pytest.raises(ValueError, match=message):
        decoder.decode(change(latents[:, :, 1:]))
    assert torch.equal(torch.cat([first, decoder.decode(latents[:, :, 1:])], dim=2), whole(vae, latents))


def test_another_size_within_a_stream_is_refused(vae):
    decoder = streaming_decoder(vae)
    decoder.decode(latents_for(vae, frames=1))
    with pytest.raises(ValueError, match=r"differs from .* call reset\(\)"):
        decoder.decode(latents_for(vae, frames=1, height=4))


@pytest.mark.parametrize(("first", "second", "rule"), [(4, None, r"1 \+ 4k"), (5, 5, "4k frames"), (1, 3, "4k frames")])
def test_frame_counts_that_do_not_fit_are_refused(first, second, rule):
    vae = tiny_vae("wan2.1")
    encoder = streaming_encoder(vae)
    video = torch.zeros(1, 3, first, 16, 16)
    if second is not None:
        encoder.encode(video)
        video = torch.zeros(1, 3, second, 16, 16)
    with pytest.raises(ValueError, match=rule):
        encoder.encode(video)


def test_pixels_that_do_not_fit_the_latent_grid_are_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        streaming_encoder(tiny_vae("wan2.1")).encode(torch.zeros(1, 3, 1, 20, 16))


def test_states_of_another_vae_or_with_holes_are_refused(vae):
    decoder = streaming_decoder(vae)
    decoder.decode(latents_for(vae, frames=2))
    state = decoder.state_dict()
    with pytest.raises(ValueError, match="lacks kinds"):
        decoder.load_state_dict({name: t for name, t in state.items() if name != "kinds"})
    with pytest.raises(ValueError, match="damaged"):
        decoder.load_state_dict({name: t for name, t in state.items() if name != "features.0.3"})
    deeper = AutoencoderKLWan(base_dim=4, num_res_blocks=2)
    with pytest.raises(ValueError, match="another VAE"):
        streaming_decoder(deeper).load_state_dict(state)


def test_a_vae_with_its_own_streams_is_used_through_them():
    torch.manual_seed(0)
    vae = AutoencoderTinyVideo().eval()
    decoder, encoder = streaming_decoder(vae), streaming_encoder(vae)
    assert isinstance(decoder, StreamingDecoder)
    assert isinstance(encoder, StreamingEncoder)
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    latents = torch.cat([encoder.encode(video[:, :, :1]), encoder.encode(video[:, :, 1:])], dim=2)
    assert torch.equal(latents, streaming_encoder(vae).encode(video))
    pixels = torch.cat([decoder.decode(latents[:, :, :1]), decoder.decode(latents[:, :, 1:])], dim=2)
    assert pixels.shape == video.shape
    assert torch.equal(pixels, streaming_decoder(vae).decode(latents))
    assert decoder.state_bytes > 0
    with pytest.raises(ValueError, match="NaN"):
        decoder.decode(latents * float("nan"))


def test_other_vaes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"vae=Linear.*make_stream"):
        streaming_decoder(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"vae=Linear.*make_encode_stream"):
        streaming_encoder(torch.nn.Linear(1, 1))


class _HalfStream:
    def decode(self, latents):
        return latents


class _HalfVae:
    def make_stream(self):
        return _HalfStream()


def test_a_stream_that_lacks_methods_is_refused():
    with pytest.raises(ValueError, match="lacks reset, state_dict, load_state_dict"):
        streaming_decoder(_HalfVae())


@pytest.mark.parametrize("kind", ["wan2.1", "tiny"])
def test_model_offloading_brings_the_weights_for_a_stream(kind):
    """A stream calls parts of the VAE; accelerate's hook is on decode() and encode() alone."""
    vae = AutoencoderTinyVideo(z_dim=4, widths=(8, 8, 8), depths=(1, 1, 1)) if kind == "tiny" else tiny_vae(kind)
    brought = []

    class Offload(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            brought.append(module)
            return args, kwargs

    add_hook_to_module(vae, Offload())
    with torch.no_grad():
        video = streaming_decoder(vae).decode(torch.randn(1, vae.config.z_dim, 1, 2, 2))
        assert brought == [vae]
        streaming_encoder(vae).encode(video.clamp(-1, 1))
    assert brought == [vae, vae]
