"""Every released layout loads to the same model; what is not one is refused by name."""

import json

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from longvid.errors import InputError
from longvid.models.checkpoints import CheckpointError, load_transformer, read_transformer


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def fsdp(state):
    """Names as named_parameters() gives them inside FSDP: around the model, and around each block."""
    wrapped = {}
    for name, tensor in state.items():
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            name = f"blocks.{index}._fsdp_wrapped_module._checkpoint_wrapped_module.{rest}"
        wrapped[f"model._fsdp_wrapped_module.{name}"] = tensor
    return wrapped


LAYOUTS = {
    "bare": lambda s: s,
    "model-prefix": lambda s: prefixed(s, "model."),
    "comfy-prefix": lambda s: prefixed(s, "model.diffusion_model."),
    "ddp-compiled": lambda s: prefixed(s, "module._orig_mod.model."),
    "generator": lambda s: {"generator": prefixed(s, "model."), "critic": prefixed(s, "model.")},
    "model-entry": lambda s: {"model": prefixed(s, "model.")},
    "ema-only": lambda s: {"generator_ema": prefixed(s, "model.")},
    "ema-fsdp": lambda s: {"generator_ema": fsdp(s)},
    "ema-first": lambda s: {
        "generator": prefixed({name: t + 1 for name, t in s.items()}, "model."),
        "critic": prefixed({name: t - 1 for name, t in s.items()}, "model."),
        "generator_ema": fsdp(s),
    },
    "ema-not-begun": lambda s: {"generator": prefixed(s, "model."), "generator_ema": {}},
    "orig-mod-inside": lambda s: {
        "generator": {f"model.{n.replace('blocks.', 'blocks._orig_mod.')}": t for n, t in s.items()}
    },
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_pt_layouts_load_to_the_same_model(layout, original, same_model, tmp_path):
    torch.save(LAYOUTS[layout](original), tmp_path / "model.pt")
    assert same_model(load_transformer(tmp_path / "model.pt"))


@pytest.mark.parametrize("layout", ["bare", "model-prefix", "comfy-prefix"])
def test_safetensors_layouts_load_to_the_same_model(layout, original, same_model, tmp_path):
    save_file(LAYOUTS[layout](original), tmp_path / "weights.safetensors")
    assert same_model(load_transformer(tmp_path / "weights.safetensors"))


def test_the_entry_can_be_chosen(original, same_model, tmp_path):
    torch.save(LAYOUTS["ema-first"](original), tmp_path / "model.pt")
    assert not same_model(load_transformer(tmp_path / "model.pt", entry="generator"))
    with pytest.raises(CheckpointError, match=r"entry='ema': not in .*'generator', 'critic', 'generator_ema'"):
        load_transformer(tmp_path / "model.pt", entry="ema")


def test_original_folder_loads_with_its_config(wan_folder, same_model):
    assert same_model(load_transformer(wan_folder))
    assert same_model(load_transformer(wan_folder / "diffusion_pytorch_model.safetensors"))


def test_original_shards_load(tmp_path, original, original_config, same_model):
    names = sorted(original)
    halves = names[::2], names[1::2]
    index = {}
    for i, half in enumerate(halves):
        file = f"diffusion_pytorch_model-{i + 1:05d}-of-00002.safetensors"
        save_file({name: original[name] for name in half}, tmp_path / file)
        index |= dict.fromkeys(half, file)
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text(json.dumps(original_config))
    assert same_model(load_transformer(tmp_path))
    (tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 2 shards are missing: diffusion_pytorch_model-00002-of-00002"):
        load_transformer(tmp_path)


def test_diffusers_folder_and_file_load(tiny, same_model, tmp_path):
    tiny.save_pretrained(tmp_path / "pipeline" / "transformer")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    assert same_model(load_transformer(tmp_path / "pipeline"))
    assert same_model(load_transformer(tmp_path / "pipeline" / "transformer"))
    assert same_model(load_transformer(tmp_path / "pipeline/transformer/diffusion_pytorch_model.safetensors"))


def test_a_folder_with_one_pt_file_loads_and_its_lora_is_left_alone(original, same_model, tmp_path):
    torch.save(original, tmp_path / "model.pt")
    torch.save({}, tmp_path / "lora.pt")
    assert same_model(load_transformer(tmp_path))
    torch.save(original, tmp_path / "model2.pt")
    with pytest.raises(CheckpointError, match=r"several weight files \(model.pt, model2.pt\)"):
        load_transformer(tmp_path)


def test_the_kind_of_file_is_told_from_its_content(original, same_model, tmp_path):
    save_file(original, tmp_path / "really-safetensors.pt")
    assert same_model(load_transformer(tmp_path / "really-safetensors.pt"))
    torch.save(original, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    assert same_model(load_transformer(tmp_path / "legacy.pt"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_reduced_precision_keeps_in_float32_what_diffusers_keeps(dtype, original, tiny, tmp_path):
    torch.save(LAYOUTS["ema-fsdp"](original), tmp_path / "model.pt")
    ours = load_transformer(tmp_path / "model.pt", dtype=dtype)
    tiny.save_pretrained(tmp_path / "folder")
    theirs = dict(WanTransformer3DModel.from_pretrained(tmp_path / "folder", torch_dtype=dtype).named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.dtype == theirs[name].dtype, name
        assert torch.equal(parameter, theirs[name]), name
    assert {p.dtype for p in ours.parameters()} == {dtype, torch.float32}


def test_the_files_dtype_is_kept_when_none_is_asked_for(original, tmp_path):
    torch.save({name: tensor.bfloat16() for name, tensor in original.items()}, tmp_path / "model.pt")
    model = load_transformer(tmp_path / "model.pt")
    assert model.patch_embedding.weight.dtype == torch.bfloat16
    assert model.scale_shift_table.dtype == torch.float32
    assert not model.training
    assert all(not parameter.is_meta for parameter in model.parameters())
    assert all(not buffer.is_meta for buffer in model.buffers())


# --- architecture -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd() -> WanTransformer3DModel:
    """A width that the 128 rule does not cover, and sizes that differ everywhere."""
    torch.manual_seed(1)
    return WanTransformer3DModel(
        patch_size=(1, 1, 2),
        num_attention_heads=3,
        attention_head_dim=16,
        in_channels=5,
        out_channels=7,
        text_dim=10,
        freq_dim=6,
        ffn_dim=20,
        num_layers=3,
        cross_attn_norm=False,
    )


def test_everything_but_heads_is_inferred_from_shapes(odd, tmp_path):
    save_file(dict(odd.named_parameters()), tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=r"dim=48 is not a multiple of 128\); pass heads= or config="):
        load_transformer(tmp_path / "odd.safetensors")
    model = load_transformer(tmp_path / "odd.safetensors", heads=3)
    for key in ("patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim"):
        assert tuple(torch.tensor(model.config[key]).flatten()) == tuple(torch.tensor(odd.config[key]).flatten()), key
    for key in ("freq_dim", "ffn_dim", "num_layers", "cross_attn_norm"):
        assert model.config[key] == odd.config[key], key


@pytest.mark.parametrize("heads", [5, 16, 48], ids=str)
def test_heads_that_do_not_fit_are_refused(heads, odd, tmp_path):
    save_file(dict(odd.named_parameters()), tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=f"heads={heads}: dim=48"):
        load_transformer(tmp_path / "odd.safetensors", heads=heads)


def test_a_config_gives_heads_under_either_naming(odd, tmp_path):
    save_file(dict(odd.named_parameters()), tmp_path / "odd.safetensors")
    odd.save_config(tmp_path)
    assert (
        load_transformer(tmp_path / "odd.safetensors", config=tmp_path / "config.json").config.num_attention_heads == 3
    )
    assert load_transformer(tmp_path / "odd.safetensors", config=dict(odd.config)).config.attention_head_dim == 16
    theirs = {"dim": 48, "num_heads": 6, "eps": 1e-5, "in_dim": 5}
    model = load_transformer(tmp_path / "odd.safetensors", config=theirs)
    assert (model.config.num_attention_heads, model.config.eps) == (6, 1e-5)


def test_a_config_that_disagrees_names_the_difference(original, original_config, tmp_path):
    torch.save(original, tmp_path / "model.pt")
    wrong = original_config | {"num_layers": 30, "ffn_dim": 8960}
    with pytest.raises(
        CheckpointError, match=r"another architecture .* ffn_dim 32 \(config: 8960\), num_layers 2 \(config: 30\)"
    ):
        load_transformer(tmp_path / "model.pt", config=wrong)
    with pytest.raises(CheckpointError, match="of a UNet2DConditionModel"):
        load_transformer(tmp_path / "model.pt", config={"_class_name": "UNet2DConditionModel"})
    with pytest.raises(CheckpointError, match="neither num_attention_heads"):
        load_transformer(tmp_path / "model.pt", config={"hidden": 3})


def test_a_read_checkpoint_says_what_it_is(original, tmp_path):
    torch.save(LAYOUTS["ema-fsdp"](original), tmp_path / "model.pt")
    text = str(read_transformer(tmp_path / "model.pt"))
    assert "a Wan transformer of no released size (dim 128, 1 heads, 2 layers, ffn 32, 4 -> 4 channels)" in text
    assert "float32" in text
    assert "original names under 'generator_ema'" in text
    assert "_fsdp_wrapped_module." in text


FOREIGN = {
    "vae": ({"decoder.middle.0.residual.0.gamma": 1, "conv2.weight": 1}, "a VAE"),
    "t5": ({"token_embedding.weight": 1, "norm.weight": 1}, "a T5 text encoder"),
    "sd3": ({"joint_blocks.0.context_block.adaLN_modulation.1.bias": 1}, "another|a .*checkpoint|something else"),
    "other-dit": ({"transformer_blocks.0.attn1.to_q.weight": 1, "proj": 1}, "another diffusers transformer"),
    "vace": ({"blocks.0.self_attn.q.weight": 1, "vace_blocks.0.after_proj.bias": 1}, "a Wan-VACE transformer"),
}


@pytest.mark.parametrize("kind", FOREIGN, ids=str)
def test_other_architectures_are_named(kind, tmp_path):
    names, message = FOREIGN[kind]
    torch.save({name: torch.zeros(2, 2) for name in names}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=message):
        load_transformer(tmp_path / "other.pt")


# --- incomplete and wrong files -----------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_keys_are_listed_in_one_line(original, tmp_path):
    del original["blocks.1.ffn.2.bias"]
    original["blocks.0.extra.weight"] = torch.zeros(1)
    original["head.head.bias"] = torch.zeros(3)
    torch.save({"generator": prefixed(original, "model.")}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError) as caught:
        load_transformer(tmp_path / "model.pt")
    message = str(caught.value)
    assert "\n" not in message
    assert "1 missing: blocks.1.ffn.net.2.bias" in message
    assert "1 unexpected: blocks.0.extra.weight" in message
    assert "1 of wrong shape: proj_out.bias [3] instead of [16]" in message


def test_a_file_cut_after_a_few_layers_counts_what_is_missing(original, tmp_path):
    kept = {name: tensor for name, tensor in original.items() if name.startswith("blocks.")}
    torch.save(kept, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"15 missing: .* and 11 more"):
        load_transformer(tmp_path / "model.pt")


def test_norm_added_q_is_let_pass_as_diffusers_does(original, same_model, tmp_path):
    original["blocks.0.cross_attn.norm_added_q.weight"] = torch.zeros(128)
    torch.save(original, tmp_path / "model.pt")
    assert same_model(load_transformer(tmp_path / "model.pt"))


def test_ambiguous_names_are_refused(original, tmp_path):
    original["_orig_mod.patch_embedding.weight"] = original["patch_embedding.weight"]
    torch.save(original, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="1 names are the same once wrappers are removed"):
        load_transformer(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": {"a": torch.zeros(1)}, "step": 3}, r"top-level entries 'optimizer'; none of generator_ema"),
        ({}, "it is empty"),
        ({"a": torch.zeros(1), "step": 3}, "1 entries are no tensors: step"),
        ([torch.zeros(1)], "holds a list, not a state dict"),
        (
            {"generator_lora": {"base_model.model.blocks.0.ffn.0.lora_A.weight": torch.zeros(1, 2)}},
            "a LoRA, not a whole",
        ),
        ({"blocks.0.ffn.0.lora_down.weight": torch.zeros(1, 2)}, "a LoRA, not a whole model; give its base"),
    ],
    ids=["other-entries", "empty", "scalars", "list", "trainer-lora", "bare-lora"],
)
def test_contents_that_are_no_model_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        load_transformer(tmp_path / "model.pt")


def test_errors_are_input_errors():
    assert issubclass(CheckpointError, InputError)
