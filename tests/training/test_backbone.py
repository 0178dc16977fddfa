"""The training forward is the stock transformer's mathematics, with a timestep a frame and a frame mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel, WanTransformer3DModel

from longvid.training.backbone import sequence_forward
from longvid.training.layouts import diffusion_forcing, teacher_forcing

TINY = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
}


def _model(kind=WanTransformer3DModel):
    torch.manual_seed(0)
    model = kind(**TINY).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def test_it_equals_the_stock_forward_when_all_frames_share_a_timestep() -> None:
    model = _model()
    x, text = torch.randn(2, 4, 5, 4, 6), torch.randn(2, 3, 8)
    t = torch.tensor([300.0, 812.5])
    expected = model(x, t, text, return_dict=False)[0]
    got = sequence_forward(model, x, t[:, None].expand(2, 5), text, torch.arange(5.0), None)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_it_equals_skyreels_block_causal_forward() -> None:
    model = _model()
    oracle = SkyReelsV2Transformer3DModel(**TINY).eval()
    oracle.load_state_dict(model.state_dict())
    oracle._set_ar_attention(3)
    layout = diffusion_forcing(np.random.default_rng(1), 1, 2)
    t = 1000 * torch.from_numpy(layout.sigma).float()
    x, text = torch.randn(1, 4, 6, 4, 4), torch.randn(1, 3, 8)
    expected = oracle(x, t, text, enable_diffusion_forcing=True, return_dict=False)[0]
    got = sequence_forward(model, x, t, text, torch.arange(6.0), torch.from_numpy(layout.mask))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", [teacher_forcing, diffusion_forcing])
def test_a_change_in_a_block_reaches_the_blocks_that_the_layout_lets_see_it(kind) -> None:
    """Who reads whom over all layers, not one: sight must not be handed on to a noisy block by another."""
    model, layout = _model(), kind(np.random.default_rng(1), 1, 3)
    noisy = layout.loss.reshape(-1, 3)[:, 0]
    number = layout.source.reshape(-1, 3)[:, 0] // 3
    x, text = torch.randn(1, 4, len(layout.source), 4, 4), torch.randn(1, 3, 8)
    t, mask = 1000 * torch.from_numpy(layout.sigma).float(), torch.from_numpy(layout.mask)
    before = sequence_forward(model, x, t, text, torch.from_numpy(layout.source).float(), mask)
    for changed in range(len(noisy)):
        other = x.clone()
        other[:, :, 3 * changed : 3 * changed + 3] += 1
        after = sequence_forward(model, other, t, text, torch.from_numpy(layout.source).float(), mask)
        reached = ((after - before).abs().amax((0, 1, 3, 4)) > 0).reshape(-1, 3).any(1)
        for block in np.flatnonzero(noisy):
            past_is_seen = kind is diffusion_forcing or not noisy[changed]
            expected = block == changed or (past_is_seen and number[changed] < number[block])
            assert bool(reached[block]) == bool(expected), (changed, block)


@torch.no_grad()
def test_teacher_forcing_equals_one_block_at_a_time_against_its_clean_past() -> None:
    model = _model()
    layout = teacher_forcing(np.random.default_rng(1), 1, 3, noised_share=0.0)
    clean, text = torch.randn(1, 4, 9, 4, 4), torch.randn(1, 3, 8)
    sigma = torch.from_numpy(layout.sigma.astype("float32"))
    source = torch.from_numpy(layout.source)
    x = clean[:, :, source] + sigma[:, None, :, None, None] * torch.randn(1, 4, len(source), 4, 4)
    together = sequence_forward(model, x, 1000 * sigma, text, source.float(), torch.from_numpy(layout.mask))
    context = int((~layout.loss).sum())
    for block in range(3):
        noisy = slice(context + 3 * block, context + 3 * block + 3)
        seq = torch.cat([clean[:, :, : 3 * block], x[:, :, noisy]], 2)
        t = torch.cat([torch.zeros(1, 3 * block), 1000 * sigma[:, noisy]], 1)
        group = torch.arange(seq.shape[2]) // 3
        alone = sequence_forward(model, seq, t, text, torch.arange(float(seq.shape[2])), group[None] <= group[:, None])
        torch.testing.assert_close(together[:, :, noisy], alone[:, :, -3:], atol=1e-5, rtol=1e-5)
