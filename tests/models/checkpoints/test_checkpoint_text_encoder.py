"""Wan's T5 encoder under its original names becomes transformers' UMT5 encoder, with the same arithmetic."""

import math

import pytest
import torch
from transformers import UMT5EncoderModel

from longvid.models.checkpoints import CheckpointError, load_text_encoder

WIDTH, INNER, HIDDEN, HEADS, BUCKETS, LAYERS, VOCABULARY = 12, 16, 20, 2, 32, 2, 30


@pytest.fixture(scope="module")
def state():
    generator = torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * 0.3

    found = {"token_embedding.weight": draw(VOCABULARY, WIDTH), "norm.weight": draw(WIDTH)}
    for i in range(LAYERS):
        found |= {
            f"blocks.{i}.norm1.weight": draw(WIDTH),
            f"blocks.{i}.norm2.weight": draw(WIDTH),
            f"blocks.{i}.attn.o.weight": draw(WIDTH, INNER),
            f"blocks.{i}.ffn.gate.0.weight": draw(HIDDEN, WIDTH),
            f"blocks.{i}.ffn.fc1.weight": draw(HIDDEN, WIDTH),
            f"blocks.{i}.ffn.fc2.weight": draw(WIDTH, HIDDEN),
            f"blocks.{i}.pos_embedding.embedding.weight": draw(BUCKETS, HEADS),
        }
        found |= {f"blocks.{i}.attn.{name}.weight": draw(INNER, WIDTH) for name in "qkv"}
    return found


def rms(x, weight):
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def buckets(length):
    """Bidirectional T5 buckets: exact up to a quarter of them, logarithmic to 128."""
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    half = BUCKETS // 2
    exact = half // 2
    far = exact + (torch.log(distance.abs().clamp(min=1) / exact) / math.log(128 / exact) * (half - exact)).long()
    return (distance > 0).long() * half + torch.where(distance.abs() < exact, distance.abs(), far.clamp(max=half - 1))


def wan_t5(state, ids, mask):
    """The encoder written out from its description: pre-norm, no attention scale, bias in every layer, gated GELU."""
    x = state["token_embedding.weight"][ids]
    for i in range(LAYERS):
        part = {name.removeprefix(f"blocks.{i}."): t for name, t in state.items() if name.startswith(f"blocks.{i}.")}
        y = rms(x, part["norm1.weight"])
        q, k, v = ((y @ part[f"attn.{n}.weight"].T).unflatten(-1, (HEADS, -1)).transpose(1, 2) for n in "qkv")
        bias = part["pos_embedding.embedding.weight"][buckets(ids.shape[1])].permute(2, 0, 1)
        logits = (q @ k.transpose(-1, -2) + bias).masked_fill(mask[:, None, None] == 0, torch.finfo(x.dtype).min)
        x = x + (logits.softmax(-1) @ v).transpose(1, 2).flatten(2) @ part["attn.o.weight"].T
        y = rms(x, part["norm2.weight"])
        gate = torch.nn.functional.gelu(y @ part["ffn.gate.0.weight"].T, approximate="tanh")
        x = x + ((y @ part["ffn.fc1.weight"].T) * gate) @ part["ffn.fc2.weight"].T
    return rms(x, state["norm.weight"])


def test_outputs_equal_the_encoder_written_out(state, tmp_path):
    torch.save(state, tmp_path / "models_t5_umt5-xxl-enc.pth")
    model = load_text_encoder(tmp_path)
    ids = torch.randint(0, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 17:] = 0
    with torch.no_grad():
        ours = model(ids, attention_mask=mask).last_hidden_state
    assert not model.training
    assert torch.allclose(ours[mask == 1], wan_t5(state, ids, mask)[mask == 1], atol=1e-5)


def test_it_survives_save_pretrained(state, tmp_path):
    torch.save(state, tmp_path / "t5.pth")
    model = load_text_encoder(tmp_path / "t5.pth", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "out")
    again = UMT5EncoderModel.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name


def test_incomplete_files_are_refused(state, tmp_path):
    broken = dict(state)
    del broken["blocks.1.ffn.fc2.weight"]
    torch.save(broken, tmp_path / "t5.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: encoder\.block\.1\.layer\.1\.DenseReluDense\.wo\.weight"):
        load_text_encoder(tmp_path / "t5.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "t5.pth")
    with pytest.raises(CheckpointError, match=r"not Wan's T5 encoder: token_embedding\.weight is missing"):
        load_text_encoder(tmp_path / "t5.pth")
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match="0 T5 files"):
        load_text_encoder(tmp_path / "none")
