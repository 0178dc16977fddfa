"""The losses, and the released code's numbers of one whole step."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from longvid.training.distill.clip import Clip, judged_clip
from longvid.training.distill.dmd import Judging, critic_loss, dmd_gradient, generator_loss, match
from longvid.training.distill.draws import SeededDraws
from longvid.training.distill.noise import add_noise, clean, score_timesteps
from longvid.training.distill.scores import guided_velocity, score_velocity

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "goldens" / "distillation"
sys.path.insert(0, str(ROOT / "scripts"))

import parity  # noqa: E402

CASE = json.loads((GOLDENS / "cases.json").read_text())[0]


@pytest.fixture(scope="module")
def known():
    return parity.runners()


def test_the_released_codes_loss_and_gradients(known):
    error, limit, problem = parity.run_case(CASE, GOLDENS, known)
    assert not problem
    assert error < limit / 10


@pytest.mark.parametrize(
    "change",
    [{"real_guidance_scale": 4.0}, {"trained_frames": 18}, {"timestep_shift": 4.0}, {"frames_per_block": 1}],
    ids=lambda c: next(iter(c)),
)
def test_a_wrong_rule_is_noticed(change, known):
    error, limit, problem = parity.run_case(CASE | change, GOLDENS, known)
    assert problem
    assert error > 5 * limit


def test_leaking_and_detached_history_are_different_gradients(known):
    """The case holds both; taking one for the other is far outside the limit."""
    wrong = CASE | {"detached_gradients": CASE["generator"]}
    error, limit, problem = parity.run_case(wrong, GOLDENS, known)
    assert problem == "differs"
    assert error > 100 * limit


def test_the_losss_gradient_is_g_over_the_number_of_elements():
    x = torch.randn(2, 3, 4, 2, 2, requires_grad=True)
    g = torch.randn(2, 3, 4, 2, 2)
    generator_loss(Clip(x, None), g).backward()
    torch.testing.assert_close(x.grad, g / x.numel())


def test_frames_outside_the_mask_get_no_gradient_and_do_not_dilute_it():
    x = torch.randn(1, 2, 6, 2, 2, requires_grad=True)
    g = torch.randn_like(x)
    counted = torch.arange(6) >= 3
    loss = generator_loss(Clip(x, counted), g)
    loss.backward()
    assert x.grad[:, :, :3].abs().max() == 0
    torch.testing.assert_close(x.grad[:, :, 3:], g[:, :, 3:] / (x.numel() / 2))


def test_a_reward_scales_its_own_clip_alone():
    x = torch.randn(2, 2, 3, 2, 2, requires_grad=True)
    g = torch.randn_like(x)
    generator_loss(Clip(x, None), g, torch.tensor([1.0, 3.0])).backward()
    torch.testing.assert_close(x.grad[0], g[0] / x.numel())
    torch.testing.assert_close(x.grad[1], 3 * g[1] / x.numel())


def test_nothing_to_learn_is_no_gradient():
    x = torch.randn(1, 2, 3, 2, 2)
    assert dmd_gradient(x, x, x).abs().max() == 0


def gaussian(mean, deviation):
    """The exact velocity of N(mean, deviation^2): v = E[noise - x0 | x_sigma]."""

    def velocity(noisy, timesteps, text, positions, mask=None):
        s = (timesteps / 1000)[:, None, :, None, None]
        spread = (1 - s) ** 2 * deviation**2 + s**2
        offset = noisy - (1 - s) * mean
        return (s / spread) * offset - mean - (1 - s) * deviation**2 / spread * offset, None

    return velocity


@pytest.mark.parametrize("judgement", ["bidirectional", "causal"])
def test_the_gradient_pulls_a_student_onto_the_data(judgement):
    """Student N(m, 0.5^2) with its exact score as the critic; the data is N(1.5, 0.5^2): m goes from -1 to 1.5."""
    m = torch.tensor(-1.0, requires_grad=True)
    how = Judging(shift=3.0, guidance=1.0, judgement=judgement, frames_per_block=2)
    text = torch.zeros(16, 1, 1)
    for step in range(60):
        draws = SeededDraws(0, "test", step)
        x = m + 0.5 * draws.normal((16, 2, 4, 2, 2))
        fake = gaussian(float(m.detach()), 0.5)
        matching = match(gaussian(1.5, 0.5), fake, x.detach(), text, text, draws, how)
        (step_gradient,) = torch.autograd.grad(generator_loss(Clip(x, None), matching.gradient), m)
        with torch.no_grad():
            m -= 0.2 * step_gradient
    assert abs(float(m.detach()) - 1.5) < 0.25


def test_the_exact_velocity_is_the_critics_optimum():
    how = Judging(shift=3.0)
    x = 0.3 + 0.5 * SeededDraws(1, "x").normal((64, 2, 3, 4, 4))
    losses = [
        float(critic_loss(gaussian(0.3 + off, 0.5), x, torch.zeros(64, 1, 1), SeededDraws(0, "c"), how))
        for off in (-0.2, 0.0, 0.2)
    ]
    assert losses[1] < min(losses[0], losses[2])


def test_guidance_is_u_plus_g_times_the_difference(network):
    x, text, none = torch.randn(2, 4, 3, 4, 4), torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    t = torch.tensor([300.0, 700.0])
    with torch.no_grad():
        c, u = score_velocity(network, x, t, text), score_velocity(network, x, t, none)
        both = guided_velocity(network, x, t, text, none, 4.0)
    torch.testing.assert_close(both, c + 3 * (c - u), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_causal_score_of_a_block_sees_the_clean_blocks_before_it_alone(network):
    x, noisy = torch.randn(1, 4, 9, 4, 4), torch.randn(1, 4, 9, 4, 4)
    text, t = torch.randn(1, 5, 16), torch.tensor([600.0])

    def score(x, noisy):
        how = {"judgement": "causal", "clean": x, "frames_per_block": 3}
        return score_velocity(network, noisy, t, text, **how)

    before = score(x, noisy)
    changed = x.clone()
    changed[:, :, 3:6] += 1
    moved = (score(changed, noisy) - before).abs().amax(dim=(0, 1, 3, 4))
    assert moved[:6].max() < 1e-6
    assert moved[6:].min() > 1e-3


def test_score_levels_are_warped_and_kept_off_the_ends():
    t = score_timesteps(torch.tensor([0, 500, 999]), 5.0)
    np.testing.assert_allclose(t, [20.0, 2500 / 3, 980.0], rtol=1e-12)


def test_noise_and_clean_are_inverse():
    x, noise, sigma = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2), torch.tensor([[0.1, 0.5, 0.9, 1.0]] * 2)
    torch.testing.assert_close(clean(add_noise(x, noise, sigma), noise - x, sigma), x, atol=1e-6, rtol=1e-6)


def test_a_longer_rollouts_first_judged_frame_is_a_picture_again(tiny_pipe):
    latents = torch.randn(1, 4, 12, 4, 4, requires_grad=True)
    clip = judged_clip(latents, 9, 3, tiny_pipe.vae)
    assert clip.latents.shape[2] == 9
    assert clip.counted.tolist() == [False] * 3 + [True] * 6
    torch.testing.assert_close(clip.latents[:, :, 1:], latents[:, :, 4:])
    video = tiny_pipe.vae.decode(tiny_pipe.vae.denormalize(latents[:, :, :4].detach())).sample
    picture = tiny_pipe.vae.normalize(tiny_pipe.vae.encode(video[:, :, -1:]).latent_dist.mode())
    torch.testing.assert_close(clip.latents[:, :, :1], picture, atol=1e-5, rtol=1e-5)
    clip.latents.sum().backward()
    assert latents.grad[:, :, :4].abs().max() == 0
