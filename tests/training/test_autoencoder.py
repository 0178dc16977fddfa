"""AutoencoderTinyVideo: Wan's interface, causality, and streams that equal the one-shot result bit for bit."""

from __future__ import annotations

import pytest
import torch

from longvid.models.autoencoder import AutoencoderTinyVideo


@pytest.fixture(scope="module")
def vae() -> AutoencoderTinyVideo:
    torch.manual_seed(0)
    vae = AutoencoderTinyVideo(
        z_dim=4, widths=(12, 8, 8), depths=(1, 1, 1), latents_mean=[0.1] * 4, latents_std=[0.5] * 4
    )
    for parameter in vae.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return vae.eval()


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 5, 17])
def test_it_has_wans_shapes(vae: AutoencoderTinyVideo, count: int) -> None:
    frames = torch.rand(2, 3, count, 32, 48) * 2 - 1
    z = vae.encode(frames).latent_dist.mode()
    assert z.shape == (2, 4, 1 + (count - 1) // 4, 2, 3)
    assert vae.decode(z).sample.shape == frames.shape


@torch.no_grad()
@pytest.mark.parametrize("split", [(1, 4), (3, 2), (1, 1, 1, 1, 1), (5,)], ids=str)
def test_streamed_decode_equals_one_shot_bit_for_bit(vae: AutoencoderTinyVideo, split: tuple[int, ...]) -> None:
    z = torch.randn(1, 4, 5, 2, 2)
    whole = vae.decode(vae.denormalize(z)).sample
    stream, other = vae.make_stream(), vae.make_stream()
    parts = []
    for part in z.split(list(split), 2):
        parts.append(stream.decode(part))
        other.decode(torch.randn_like(part))  # a second viewer on the same model
    assert torch.equal(torch.cat(parts, 2), whole)


@torch.no_grad()
def test_streamed_encode_equals_one_shot_bit_for_bit(vae: AutoencoderTinyVideo) -> None:
    frames = torch.rand(1, 3, 17, 32, 32) * 2 - 1
    stream = vae.make_encode_stream()
    parts = [stream.encode(part) for part in frames.split([1, 4, 12], 2)]
    assert torch.equal(torch.cat(parts, 2), vae.normalize(vae.encode(frames).latent_dist.mode()))


@torch.no_grad()
def test_a_stream_goes_on_from_its_saved_state(vae: AutoencoderTinyVideo) -> None:
    z = torch.randn(1, 4, 4, 2, 2)
    stream = vae.make_stream()
    stream.decode(z[:, :, :2])
    resumed = vae.make_stream()
    resumed.load_state_dict({k: v.clone() for k, v in stream.state_dict().items()})
    assert torch.equal(resumed.decode(z[:, :, 2:]), stream.decode(z[:, :, 2:]))


@torch.no_grad()
def test_it_is_causal(vae: AutoencoderTinyVideo) -> None:
    frames = torch.rand(1, 3, 13, 32, 32) * 2 - 1
    changed = frames.clone()
    changed[:, :, 9:] = 0
    a, b = (vae.encode(x).latent_dist.mode() for x in (frames, changed))
    assert torch.equal(a[:, :, :3], b[:, :, :3])
    assert not torch.equal(a[:, :, 3], b[:, :, 3])


@torch.no_grad()
def test_training_forward_equals_inference(vae: AutoencoderTinyVideo) -> None:
    frames = torch.rand(2, 3, 9, 32, 32) * 2 - 1
    out, z = vae.forward_train(frames)
    torch.testing.assert_close(z, vae.encode(frames).latent_dist.mode(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.clamp(-1, 1), vae.decode(z).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 3, 4, 32, 32), r"4 given; must be 1 \+ 4k"), ((1, 3, 5, 30, 32), "multiples of 16")],
    ids=["frames", "pixels"],
)
def test_shapes_that_cannot_be_are_named(vae: AutoencoderTinyVideo, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vae.encode(torch.zeros(shape))
