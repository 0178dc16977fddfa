"""Radial attention on whole stock pipelines (tiny, random): attached, used, detached without a trace."""

import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

from longvid.kernels.radial import RadialSpec
from longvid.models import radial_attention
from longvid.models.radial_attention import RadialAttention

SPEC = RadialSpec.wan(block=16)
STEPS, DENSE_STEPS, DENSE_LAYERS = 4, 2, 1
WORDS = torch.tensor([[1] * 5 + [0] * 2])


def lively(model):
    """Default initialisation leaves modulation near zero: attention would not show."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def wan_transformer():
    return lively(
        WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
            ffn_dim=32, num_layers=3, cross_attn_norm=True, rope_max_seq_len=32,
        )
    )  # fmt: skip


def wan(**more):
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    scheduler = more.pop("scheduler", FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipe = WanPipeline(
        tokenizer=None, text_encoder=None, transformer=wan_transformer(), vae=vae, scheduler=scheduler, **more
    )
    prompt = {"prompt_embeds": torch.randn(1, 7, 8), "negative_prompt_embeds": torch.randn(1, 7, 8)}
    return pipe, {"num_frames": 21, **prompt}, 2 * 2  # sparse layers, guidance branches


def wan_two_experts():
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return wan(transformer_2=wan_transformer(), boundary_ratio=0.9, scheduler=scheduler)


def hunyuan():
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2, num_single_layers=2,
        num_refiner_layers=1, patch_size=2, text_embed_dim=8, pooled_projection_dim=8, rope_axes_dim=(4, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    pipe = HunyuanVideoPipeline(
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, transformer=lively(transformer),
        vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    prompt = {"prompt_embeds": torch.randn(1, 7, 8), "pooled_prompt_embeds": torch.randn(1, 8)}
    return pipe, {"num_frames": 17, **prompt, "prompt_attention_mask": WORDS}, 3


def mochi():
    transformer = MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=12, num_layers=3, pooled_projection_dim=8,
        in_channels=4, text_embed_dim=8, time_embed_dim=16, max_sequence_length=7,
    )  # fmt: skip
    vae = AutoencoderKLMochi(
        latent_channels=4, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )  # fmt: skip
    pipe = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True), vae=vae, text_encoder=None, tokenizer=None,
        transformer=lively(transformer),
    )  # fmt: skip
    prompt = {"prompt_embeds": torch.randn(1, 7, 8), "negative_prompt_embeds": torch.randn(1, 7, 8)}
    masks = {"prompt_attention_mask": WORDS.bool(), "negative_prompt_attention_mask": WORDS.bool()}
    return pipe, {"num_frames": 31, **prompt, **masks}, 2  # guidance branches lie in one batch, two samples each


PIPELINES = {"wan": wan, "wan2.2": wan_two_experts, "hunyuan": hunyuan, "mochi": mochi}


@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("name", PIPELINES)
def test_a_stock_pipeline_samples_radially_between_attach_and_detach(name, monkeypatch):
    torch.manual_seed(0)
    pipe, arguments, sparse_each_step = PIPELINES[name]()
    pipe.set_progress_bar_config(disable=True)
    calls = []
    real = radial_attention.block_sparse_attention

    def counted(*given, **more):
        calls.append(given[0].shape)
        return real(*given, **more)

    monkeypatch.setattr(radial_attention, "block_sparse_attention", counted)

    def sample():
        calls.clear()
        generator = torch.Generator().manual_seed(0)
        return pipe(
            height=64, width=64, num_inference_steps=STEPS, output_type="latent", generator=generator, **arguments
        ).frames

    dense = sample()
    assert not calls
    radial = RadialAttention(spec=SPEC, dense_layers=DENSE_LAYERS, dense_steps=DENSE_STEPS)
    experts = [getattr(pipe, part) for part in ("transformer", "transformer_2") if getattr(pipe, part, None)]
    for transformer in experts:
        radial.attach(transformer)
    sparse = sample()
    samples = 2 if name == "mochi" else 1  # text padding makes samples unlike: one call each
    assert len(calls) == (STEPS - DENSE_STEPS) * sparse_each_step * samples
    assert sparse.isfinite().all()
    assert (sparse - dense).abs().max() > 1e-3
    assert torch.equal(sample(), sparse)  # the count of steps starts over
    radial.detach()
    assert torch.equal(sample(), dense)
    assert not calls
