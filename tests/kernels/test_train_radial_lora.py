"""Length-extension training on a tiny transformer: the loss falls, diffusers loads the LoRA, resume is exact."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from longvid.kernels.radial import RadialSpec
from longvid.models.radial_attention import RadialAttention

pytest.importorskip("peft")

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "train_radial_lora.py"
FRAMES, SIDE = 6, 6


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_radial_lora", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pipeline folder with a tiny random transformer, and two clips of smooth latents."""
    root = tmp_path_factory.mktemp("lora")
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=48, num_layers=3, cross_attn_norm=True, rope_max_seq_len=32,
    )  # fmt: skip
    for parameter in transformer.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.2)
    transformer.save_pretrained(root / "model" / "transformer")
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
    (root / "model" / "model_index.json").write_text(json.dumps(index))
    (root / "data").mkdir()
    for i in range(2):
        ramp = torch.linspace(-2, 2, FRAMES)[None, :, None, None] * (-1) ** i
        latents = (ramp + torch.randn(4, 1, SIDE, SIDE)).contiguous()
        save_file({"latents": latents, "prompt_embeds": torch.randn(5, 8)}, root / "data" / f"{i}.safetensors")
    return root


def options(script, folders, out, *more):
    given = ["--model", str(folders / "model"), "--data", str(folders / "data"), "--out", str(folders / out)]
    return script.parse([*given, "--rank", "4", "--lr", "0.01", "--dense-layers", "1", "--device", "cpu", *more])


def with_lora(model, folder) -> None:
    """Load by the pipeline, as a user does."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=model)
    pipe.load_lora_weights(folder)


def held_out_loss(script, transformer, given) -> float:
    """Mean loss over the same 24 draws of clip, noise and noise level each time."""
    generator = torch.Generator().manual_seed(99)
    data = script.clips(given.data, generator)
    radial = RadialAttention(dense_layers=1).attach(transformer.eval())
    with torch.no_grad():
        losses = [script.flow_loss(transformer, next(data), given, generator).item() for _ in range(24)]
    radial.detach()
    return sum(losses) / len(losses)


def test_the_loss_falls_and_the_weights_load(script, folders):
    given = options(script, folders, "out", "--steps", "80")
    model = script.load_transformer(str(folders / "model"), torch.float32)
    before = held_out_loss(script, model, given)
    losses = script.train(given)
    assert len(losses) == 80
    with_lora(model, folders / "out")
    after = held_out_loss(script, model, given)
    assert after < 0.93 * before, (before, after)


def test_the_lora_is_diffusers_own_and_switches_off_exactly(script, folders):
    script.train(options(script, folders, "short", "--steps", "2"))
    names = set(load_file(folders / "short" / script.WEIGHTS))
    assert len(names) == 3 * 4 * 2  # layers, projections, A and B
    assert all(name.startswith("transformer.blocks.") and ".attn1." in name for name in names)
    model = WanTransformer3DModel.from_pretrained(folders / "model" / "transformer").eval()
    RadialAttention(spec=RadialSpec.wan(), dense_layers=1).attach(model)
    x, text = torch.randn(1, 4, FRAMES, SIDE, SIDE), torch.randn(1, 5, 8)

    def forward():
        with torch.no_grad():
            return model(x, timestep=torch.tensor([500.0]), encoder_hidden_states=text, return_dict=False)[0]

    plain = forward()
    with_lora(model, folders / "short")
    assert (forward() - plain).abs().max() > 1e-4
    model.disable_adapters()
    assert torch.equal(forward(), plain)


def test_a_long_video_pipeline_loads_it_too(script, folders, make_tiny_pipe):
    """From the names of the file alone: diffusers' own loader, on a pipeline whose attention reads a cache."""
    pipe = make_tiny_pipe("self-forcing")

    def render(**more):
        return pipe("a red ball", num_frames=9, seed=0, output_type="latent", **more).frames

    dense, radial = render(), render(attention="radial")
    torch.manual_seed(1)
    lora = {}
    for name, module in pipe.transformer.named_modules():
        if name.endswith((".attn1.to_q", ".attn1.to_out.0")):
            out, width = module.weight.shape
            lora[f"transformer.{name}.lora_A.weight"] = torch.randn(2, width)
            lora[f"transformer.{name}.lora_B.weight"] = torch.randn(out, 2)
    (folders / "random").mkdir()
    save_file(lora, folders / "random" / script.WEIGHTS)
    pipe.load_lora_weights(folders / "random")
    assert (render() - dense).abs().max() > 1e-3
    assert (render(attention="radial") - radial).abs().max() > 1e-3
    pipe.unload_lora_weights()
    assert torch.equal(render(), dense)


def test_resuming_equals_running_through(script, folders):
    whole = script.train(options(script, folders, "whole", "--steps", "6"))
    script.train(options(script, folders, "parts", "--steps", "3"))
    parts = script.train(options(script, folders, "parts", "--steps", "6", "--resume"))
    assert parts == whole


def test_frozen_weights_stay_frozen(script, folders):
    transformer = script.load_transformer(str(folders / "model"), torch.float32)
    trained = script.add_lora(transformer, 4)
    assert len(trained) == 3 * 4 * 2
    assert all("lora" in name for name, p in transformer.named_parameters() if p.requires_grad)
    assert all(p.dtype == torch.float32 for p in trained)


def test_gradient_checkpointing_gives_the_same_losses(script, folders):
    plain = script.train(options(script, folders, "a", "--steps", "3"))
    again = script.train(options(script, folders, "b", "--steps", "3", "--checkpointing"))
    assert again == pytest.approx(plain, abs=1e-6)


def test_data_that_is_not_there_is_named(script, folders):
    given = options(script, folders, "x")
    given.data = folders / "model"
    with pytest.raises(SystemExit, match=r"no \*.safetensors in it"):
        script.train(given)
