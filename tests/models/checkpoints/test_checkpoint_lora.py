"""LoRA files under every naming merge to the explicit sum, and load through diffusers' peft path."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from longvid.models.checkpoints import CheckpointError, load_transformer, merge_lora, peft_state_dict, read_lora

RANK = 3
# (original layer, diffusers layer)
LAYERS = [
    ("blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
    ("blocks.0.self_attn.o", "blocks.0.attn1.to_out.0"),
    ("blocks.1.cross_attn.k", "blocks.1.attn2.to_k"),
    ("blocks.1.cross_attn.v", "blocks.1.attn2.to_v"),
    ("blocks.0.ffn.0", "blocks.0.ffn.net.0.proj"),
    ("blocks.1.ffn.2", "blocks.1.ffn.net.2"),
]


@pytest.fixture(scope="module")
def pairs(weights):
    """Original layer -> (A, B)."""
    generator = torch.Generator().manual_seed(11)
    found = {}
    for original, ours in LAYERS:
        out_features, in_features = weights[f"{ours}.weight"].shape
        down = torch.randn(RANK, in_features, generator=generator)
        up = torch.randn(out_features, RANK, generator=generator)
        found[original] = (down, up)
    return found


def named(pairs, template_a, template_b, rename=lambda name: name):
    state = {}
    for original, (down, up) in pairs.items():
        state[template_a.format(rename(original))] = down
        state[template_b.format(rename(original))] = up
    return state


def kohya(name):
    return name.replace(".", "_")


def to_diffusers(name):
    return dict(LAYERS)[name]


NAMINGS = {
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight", str),
    "peft-default": ("base_model.model.{}.lora_A.default.weight", "base_model.model.{}.lora_B.default.weight", str),
    "peft-fsdp": (
        "base_model.model.model._fsdp_wrapped_module.{}.lora_A.weight",
        "base_model.model.model._fsdp_wrapped_module.{}.lora_B.weight",
        str,
    ),
    "comfy": ("diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight", str),
    "bare": ("{}.lora_down.weight", "{}.lora_up.weight", str),
    "bare-ab": ("{}.lora_A.weight", "{}.lora_B.weight", str),
    "kohya": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", kohya),
    "diffusers": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight", to_diffusers),
}


@pytest.fixture(params=NAMINGS, ids=str)
def lora(request, pairs):
    template_a, template_b, rename = NAMINGS[request.param]
    return named(pairs, template_a, template_b, rename)


def expected(weights, pairs, scale):
    """The sum, written out."""
    changed = dict(weights)
    for original, ours in LAYERS:
        down, up = pairs[original]
        changed[f"{ours}.weight"] = weights[f"{ours}.weight"] + scale * (up @ down)
    return changed


def assert_states_close(actual, wanted, atol=1e-5):
    assert set(actual) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.allclose(actual[name], tensor, atol=atol), name


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0], ids=str)
def test_merging_adds_the_product_to_the_weight(lora, weights, pairs, scale):
    assert_states_close(merge_lora(weights, read_lora(lora), scale=scale), expected(weights, pairs, scale))


def test_merging_leaves_the_given_weights_alone(lora, weights):
    before = {name: tensor.clone() for name, tensor in weights.items()}
    merge_lora(weights, read_lora(lora))
    assert all(torch.equal(before[name], weights[name]) for name in before)


def test_alpha_in_the_file_scales_by_alpha_over_rank(weights, pairs):
    state = named(pairs, "{}.lora_down.weight", "{}.lora_up.weight")
    state |= {f"{name}.alpha": torch.tensor(1.5) for name in pairs}
    assert_states_close(merge_lora(weights, read_lora(state)), expected(weights, pairs, 1.5 / RANK))
    assert_states_close(merge_lora(weights, read_lora(state, alpha=6.0)), expected(weights, pairs, 6.0 / RANK))


def test_alpha_comes_from_the_adapter_config_beside_the_file(weights, pairs, tmp_path):
    save_file(named(pairs, *NAMINGS["peft"][:2]), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 9}))
    for source in (tmp_path, tmp_path / "adapter_model.safetensors"):
        assert_states_close(merge_lora(weights, read_lora(source)), expected(weights, pairs, 9 / RANK))


def test_full_changes_are_added_too(weights):
    change = torch.ones_like(weights["blocks.0.ffn.net.0.proj.weight"])
    bias = torch.full_like(weights["blocks.0.ffn.net.0.proj.bias"], 2.0)
    layers = read_lora({"diffusion_model.blocks.0.ffn.0.diff": change, "diffusion_model.blocks.0.ffn.0.diff_b": bias})
    merged = merge_lora(weights, layers, scale=0.5)
    before = weights["blocks.0.ffn.net.0.proj.weight"], weights["blocks.0.ffn.net.0.proj.bias"]
    assert torch.allclose(merged["blocks.0.ffn.net.0.proj.weight"], before[0] + 0.5)
    assert torch.allclose(merged["blocks.0.ffn.net.0.proj.bias"], before[1] + 1.0)
    with pytest.raises(CheckpointError, match="changes a whole weight or bias"):
        peft_state_dict(layers)


def test_bfloat16_weights_are_summed_in_float32(weights, pairs):
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    merged = merge_lora(half, read_lora(named(pairs, *NAMINGS["bare"][:2])))
    for name, tensor in expected({n: t.float() for n, t in half.items()}, pairs, 1.0).items():
        assert torch.equal(merged[name], tensor.bfloat16()), name


def test_longlive_layout_base_and_trainer_lora(original, weights, pairs, tmp_path):
    """base: {"generator": ...}; LoRA: {"generator_lora": ..., "critic_lora": ...}."""
    torch.save({"generator": {f"model.{n}": t for n, t in original.items()}}, tmp_path / "longlive_base.pt")
    adapter = named(pairs, *NAMINGS["peft"][:2])
    critic = {name: tensor + 1 for name, tensor in adapter.items()}
    torch.save({"generator_lora": adapter, "critic_lora": critic}, tmp_path / "lora.pt")
    model = load_transformer(tmp_path / "longlive_base.pt", lora=tmp_path / "lora.pt")
    assert_states_close(dict(model.named_parameters()), expected(weights, pairs, 1.0))
    half = load_transformer(tmp_path / "longlive_base.pt", lora=tmp_path / "lora.pt", lora_scale=0.5)
    assert_states_close(dict(half.named_parameters()), expected(weights, pairs, 0.5))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"blocks.0.ffn.0.lora_A.weight": torch.zeros(2, 128)}, r"blocks\.0\.ffn\.net\.0\.proj lacks lora_B"),
        ({"blocks.0.ffn.0.lora_B.weight": torch.zeros(32, 2)}, "lacks lora_A"),
        (
            {
                "blocks.0.ffn.0.lora_A.weight": torch.zeros(2, 128),
                "blocks.0.ffn.0.lora_B.weight": torch.zeros(32, 3),
            },
            "rank 2 in A and 3 in B",
        ),
        ({"blocks.0.ffn.0.weight": torch.zeros(2, 2)}, r"1 unknown entries: blocks\.0\.ffn\.0\.weight"),
        ({"blocks.0.ffn.0.lora_magnitude_vector": torch.zeros(2)}, "a DoRA"),
        ({}, "it is empty"),
    ],
    ids=["no-b", "no-a", "ranks", "weights", "dora", "empty"],
)
def test_files_that_are_no_whole_lora_are_refused(state, message):
    with pytest.raises(CheckpointError, match=message):
        read_lora(state)


def test_a_lora_of_another_model_is_refused(weights):
    state = {
        "blocks.7.ffn.0.lora_A.weight": torch.zeros(2, 128),
        "blocks.7.ffn.0.lora_B.weight": torch.zeros(32, 2),
        "blocks.0.ffn.0.lora_A.weight": torch.zeros(2, 64),
        "blocks.0.ffn.0.lora_B.weight": torch.zeros(32, 2),
    }
    with pytest.raises(CheckpointError, match=r"1 layers that it has not: blocks\.7.*1 of another size.*\[32, 64\]"):
        merge_lora(weights, read_lora(state))


def test_every_naming_loads_through_diffusers_peft(lora, tiny, weights, pairs):
    pytest.importorskip("peft")
    lora |= {f"{name.rsplit('.lora_', 1)[0]}.alpha": torch.tensor(6.0) for name in list(lora)}
    model = copy.deepcopy(tiny)
    model.load_lora_adapter(peft_state_dict(read_lora(lora)), prefix="transformer")
    adapted = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in model.named_parameters()
        if "lora_" not in name
    }
    assert_states_close(adapted, weights, atol=0)
    merged = copy.deepcopy(tiny)
    merged.load_state_dict(expected(weights, pairs, 6.0 / RANK), strict=False)
    x, text = torch.randn(1, 4, 2, 4, 6), torch.randn(1, 5, 8)
    with torch.no_grad():
        plain, ours, theirs = (m(x, torch.tensor([300.0]), text).sample for m in (tiny, merged, model))
    assert torch.allclose(ours, theirs, atol=1e-3 * float(ours.abs().max()))
    assert (plain - ours).abs().max() > 0.1
