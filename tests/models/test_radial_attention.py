"""Radial attention on diffusers' stock transformers (tiny, random): equal to stock when the mask is full, to a masked
forward when it is not; dense layers and steps; attached and detached without a trace."""

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel, MochiTransformer3DModel, WanTransformer3DModel

from longvid.errors import InputError, UnknownNameError
from longvid.kernels.attention.naive import token_mask
from longvid.kernels.backend import BackendError
from longvid.kernels.radial import RadialSpec, radial_blocks
from longvid.models.denoiser import Denoiser
from longvid.models.radial_attention import RadialAttention

FULL = RadialSpec(block=4, floor=10_000, split_threshold=1)
"""Bands wider than a frame and no thinning: every pair is kept."""
SPARSE = RadialSpec.wan(block=4, floor=2, split_threshold=8)
FRAMES, HEIGHT, WIDTH = 5, 8, 6  # latent; 12 tokens a frame after the 2 x 2 patch


def wan():
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=32, num_layers=3, cross_attn_norm=True, rope_max_seq_len=32,
        qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    inputs = {"encoder_hidden_states": torch.randn(2, 7, 8)}
    return model, inputs, 4


def hunyuan():
    torch.manual_seed(0)
    model = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2, num_single_layers=2,
        num_refiner_layers=1, patch_size=2, text_embed_dim=8, pooled_projection_dim=8, rope_axes_dim=(4, 4, 4),
    )  # fmt: skip
    words = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])  # the second prompt is shorter
    inputs = {
        "encoder_hidden_states": torch.randn(2, 7, 8),
        "encoder_attention_mask": words,
        "pooled_projections": torch.randn(2, 8),
        "guidance": torch.full((2,), 6000.0),
    }
    return model, inputs, 4


def mochi():
    torch.manual_seed(0)
    model = MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=12, num_layers=3, pooled_projection_dim=8,
        in_channels=4, text_embed_dim=8, time_embed_dim=16, max_sequence_length=7,
    )  # fmt: skip
    words = torch.tensor([[1] * 7, [1] * 4 + [0] * 3]).bool()
    return model, {"encoder_hidden_states": torch.randn(2, 7, 8), "encoder_attention_mask": words}, 4


MODELS = {"wan": wan, "hunyuan": hunyuan, "mochi": mochi}


@pytest.fixture(params=MODELS)
def stock(request):
    model, inputs, channels = MODELS[request.param]()
    for parameter in model.parameters():  # default initialisation leaves modulation near zero: attention would not show
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, channels, FRAMES, HEIGHT, WIDTH, generator=generator)

    def forward(timestep=500.0):
        with torch.no_grad():
            return model.eval()(latents, timestep=torch.full((2,), timestep), return_dict=False, **inputs)[0]

    return model, forward


def test_a_full_mask_equals_the_stock_forward(stock):
    model, forward = stock
    expected = forward()
    RadialAttention(spec=FULL).attach(model)
    assert (forward() - expected).abs().max() < 2e-5


def test_a_sparse_mask_does_not(stock):
    model, forward = stock
    expected = forward()
    RadialAttention(spec=SPARSE).attach(model)
    assert (forward() - expected).abs().max() > 1e-3


def test_backends_agree(stock):
    model, forward = stock
    results = []
    for backend in ("gather", "naive"):
        radial = RadialAttention(spec=SPARSE, backend=backend).attach(model)
        results.append(forward())
        radial.detach()
    assert (results[0] - results[1]).abs().max() < 2e-5


def test_equals_a_dense_forward_under_the_token_mask():
    """An oracle that shares no code with the processors: longvid's own masked forward of the same weights."""
    model, inputs, channels = wan()
    latents = torch.randn(1, channels, FRAMES, HEIGHT, WIDTH)
    text = inputs["encoder_hidden_states"][:1]
    radial = RadialAttention(spec=SPARSE).attach(model)
    with torch.no_grad():
        sparse = model(latents, timestep=torch.tensor([500.0]), encoder_hidden_states=text, return_dict=False)[0]
        radial.detach()
        denoiser = Denoiser(model)
        mask = token_mask(radial_blocks(FRAMES, 12, SPARSE))[0]
        masked = denoiser.full(latents, torch.full((FRAMES,), 500.0), denoiser.encode_text(text), mask=mask)
    assert not mask.all()
    assert (sparse - masked).abs().max() < 2e-5


def test_text_padding_is_not_attended():
    for make in (hunyuan, mochi):
        model, inputs, channels = make()
        RadialAttention(spec=SPARSE).attach(model)
        latents = torch.randn(2, channels, FRAMES, HEIGHT, WIDTH)
        changed = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"].clone()}
        changed["encoder_hidden_states"][1, 4:] += 100.0  # beyond the second prompt's end
        with torch.no_grad():
            a, b = (
                model(latents, timestep=torch.full((2,), 500.0), return_dict=False, **x)[0] for x in (inputs, changed)
            )
        assert torch.equal(a, b)


@pytest.mark.parametrize("layers", [1, 99])
def test_first_layers_stay_dense(stock, layers):
    model, forward = stock
    expected = forward()
    radial = RadialAttention(spec=SPARSE, dense_layers=layers).attach(model)
    result = forward()
    assert torch.equal(result, expected) == (layers == 99)
    assert radial.is_dense(0)


def test_first_steps_stay_dense_and_start_over_with_a_new_video(stock):
    model, forward = stock
    times = (0.0, 400.0, 800.0) if isinstance(model, MochiTransformer3DModel) else (1000.0, 600.0, 200.0)
    expected = [forward(t) for t in times]
    RadialAttention(spec=SPARSE, dense_steps=2).attach(model)
    for _ in range(2):  # two videos
        for step, t in enumerate(times):
            for _ in range(2):  # guidance: two calls at each timestep
                assert torch.equal(forward(t), expected[step]) == (step < 2)


def test_two_experts_share_the_count_of_steps():
    (first, inputs, channels), (second, *_) = wan(), wan()
    radial = RadialAttention(spec=SPARSE, dense_steps=3)
    radial.attach(first).attach(second)
    latents = torch.randn(2, channels, FRAMES, HEIGHT, WIDTH)
    with torch.no_grad():
        for model, t, step in ((first, 999.0, 0), (first, 900.0, 1), (second, 700.0, 2), (second, 300.0, 3)):
            model(latents, timestep=torch.full((2,), t), **inputs)
            assert radial.step == step
    radial.detach()


def test_detaching_restores_processors_and_results(stock):
    model, forward = stock

    def processors():
        return [(name, m.processor) for name, m in model.named_modules() if hasattr(m, "processor")]

    expected, before = forward(), processors()
    radial = RadialAttention(spec=SPARSE).attach(model)
    with pytest.raises(InputError, match="attached to it already"):
        radial.attach(model)
    with pytest.raises(InputError, match="has radial attention already"):
        RadialAttention().attach(model)
    radial.detach()
    assert processors() == before
    assert torch.equal(forward(), expected)


def test_weights_and_state_dict_keys_stay_as_they_are(stock):
    model, _ = stock
    keys = list(model.state_dict())
    RadialAttention().attach(model)
    assert list(model.state_dict()) == keys


def test_the_dense_part_runs_the_backend_that_diffusers_was_told(stock):
    model, forward = stock
    if isinstance(model, MochiTransformer3DModel):
        pytest.skip("Mochi's stock processor does not go through diffusers' dispatch")
    radial = RadialAttention(spec=SPARSE, dense_layers=1).attach(model)
    expected = forward()
    model.set_attention_backend("_native_math")
    assert (forward() - expected).abs().max() < 2e-5
    (_, _, replaced), *_ = radial._attached
    assert replaced[0][1]._attention_backend == "_native_math"  # layer 0, which ran dense
    assert replaced[1][1]._attention_backend is None


def test_gradients_reach_the_projections():
    model, inputs, channels = wan()
    RadialAttention(spec=SPARSE).attach(model)
    latents = torch.randn(2, channels, FRAMES, HEIGHT, WIDTH)
    model(latents, timestep=torch.full((2,), 500.0), return_dict=False, **inputs)[0].square().mean().backward()
    for block in model.blocks:
        for layer in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v):
            assert layer.weight.grad.abs().max() > 0


def test_a_backend_that_cannot_run_is_an_error_under_strict():
    model, inputs, channels = wan()
    latents = torch.randn(2, channels, FRAMES, HEIGHT, WIDTH)
    RadialAttention(spec=SPARSE, backend="triton", strict=True).attach(model)
    with pytest.raises(BackendError, match="backend='triton' cannot be used"):
        model(latents, timestep=torch.full((2,), 500.0), **inputs)


def test_presets_and_errors():
    assert RadialAttention.preset("wan2.1-14b").spec.decay == 0.2
    assert RadialAttention.preset("hunyuan", dense_steps=10).dense_steps == 10
    with pytest.raises(UnknownNameError, match="did you mean 'hunyuan'"):
        RadialAttention.preset("hunyan")
    with pytest.raises(InputError, match="Linear is not supported; radial attention knows WanTransformer3DModel"):
        RadialAttention().attach(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="dense_steps=-1"):
        RadialAttention(dense_steps=-1)
