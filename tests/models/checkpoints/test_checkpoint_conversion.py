"""Conversion writes a folder that diffusers loads, whole or not at all; the command line does the same."""

import json
import shutil
from collections import namedtuple

import pytest
import torch
import typer
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel
from typer.testing import CliRunner

from longvid.errors import DiskFullError, InputError, OutputError
from longvid.models.checkpoints import CheckpointError, conversion, convert, load_transformer, sources
from longvid.models.checkpoints.cli import register


@pytest.fixture(scope="session")
def wan_base(tmp_path_factory, tiny):
    """A diffusers Wan pipeline folder, tiny and random; its transformer is another one."""
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    torch.manual_seed(9)
    text_encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, tie_word_embeddings=True)
    )
    vae = AutoencoderKLWan(base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    transformer = WanTransformer3DModel.from_config(tiny.config)
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer,
    )
    folder = tmp_path_factory.mktemp("base") / "wan"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path, original):
    path = tmp_path / "self_forcing_dmd.pt"
    torch.save({"generator_ema": {f"model.{name}": tensor for name, tensor in original.items()}}, path)
    return path


def test_a_pt_file_and_a_base_become_a_whole_pipeline(checkpoint, wan_base, tmp_path, same_model):
    done = convert(checkpoint, tmp_path / "out", base=wan_base)
    assert done.missing == ()
    assert done.bytes > 0
    pipeline = WanPipeline.from_pretrained(done.folder)
    assert same_model(pipeline.transformer)
    assert same_model(load_transformer(done.folder))
    assert pipeline.scheduler.config.shift == 5.0
    assert torch.equal(pipeline.vae.quant_conv.bias, AutoencoderKLWan.from_pretrained(wan_base / "vae").quant_conv.bias)
    index = json.loads((done.folder / "model_index.json").read_text())
    assert index["_class_name"] == "LongVideoPipeline"
    assert index["steps"] == [1000, 750, 500, 250]
    assert index["frames_per_block"] == 3
    record = json.loads((done.folder / "longvid_checkpoint.json").read_text())
    assert record["checkpoint"] == "self-forcing"
    assert "CC BY-NC-SA" in record["licence"]
    assert "generator_ema" in record["layout"]
    assert not list(tmp_path.glob(".*partial"))


def test_without_a_base_what_is_missing_is_said(checkpoint, tmp_path, same_model):
    done = convert(checkpoint, tmp_path / "out")
    assert done.missing == ("vae", "text_encoder", "tokenizer")
    index = json.loads((done.folder / "model_index.json").read_text())
    assert index["vae"] == [None, None]
    assert same_model(load_transformer(done.folder))


def test_a_diffusers_folder_converts_to_itself_in_another_precision(wan_base, tmp_path):
    done = convert(wan_base, tmp_path / "out", dtype=torch.bfloat16)
    before, after = load_transformer(wan_base), load_transformer(done.folder)
    for name, parameter in after.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name).to(parameter.dtype)), name
    assert after.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert after.scale_shift_table.dtype == torch.float32
    assert WanPipeline.from_pretrained(done.folder).scheduler.config.shift == 3.0


def test_an_original_wan_folder_converts_whole(wan_folder, wan_base, tmp_path, same_model):
    tokenizer = wan_folder / "google" / "umt5-xxl"
    shutil.copytree(wan_base / "tokenizer", tokenizer)
    text_state = {
        "token_embedding.weight": torch.randn(8, 4),
        "norm.weight": torch.randn(4),
        "blocks.0.norm1.weight": torch.randn(4),
        "blocks.0.norm2.weight": torch.randn(4),
        "blocks.0.pos_embedding.embedding.weight": torch.randn(32, 2),
        "blocks.0.ffn.gate.0.weight": torch.randn(6, 4),
        "blocks.0.ffn.fc1.weight": torch.randn(6, 4),
        "blocks.0.ffn.fc2.weight": torch.randn(4, 6),
        "blocks.0.attn.o.weight": torch.randn(4, 4),
    } | {f"blocks.0.attn.{name}.weight": torch.randn(4, 4) for name in "qkv"}
    torch.save(text_state, wan_folder / "models_t5_umt5-xxl-enc-bf16.pth")
    done = convert(wan_folder, tmp_path / "out")
    assert done.missing == ("vae",)
    assert same_model(load_transformer(done.folder))
    text_encoder = UMT5EncoderModel.from_pretrained(done.folder / "text_encoder")
    assert torch.equal(text_encoder.get_input_embeddings().weight, text_state["token_embedding.weight"])
    assert torch.equal(text_encoder.encoder.embed_tokens.weight, text_state["token_embedding.weight"])
    assert AutoTokenizer.from_pretrained(done.folder / "tokenizer")("a").input_ids == [2]
    index = json.loads((done.folder / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "UMT5EncoderModel"]
    assert index["tokenizer"][0] == "transformers"


def test_a_known_name_fetches_its_base(checkpoint, wan_base, tmp_path, monkeypatch, same_model):
    asked = []
    monkeypatch.setattr(sources, "hf_hub_download", lambda r, f: asked.append(r) or checkpoint)
    monkeypatch.setattr(sources, "snapshot_download", lambda r, allow_patterns: asked.append(r) or wan_base)
    done = convert("self-forcing", tmp_path / "out")
    assert asked == ["gdhe17/Self-Forcing", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"]
    assert done.missing == ()
    assert same_model(load_transformer(done.folder))


def test_linking_shares_the_bases_files(checkpoint, wan_base, tmp_path):
    done = convert(checkpoint, tmp_path / "out", base=wan_base, link=True)
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (done.folder / name).stat().st_ino == (wan_base / name).stat().st_ino


def test_large_models_are_sharded_and_load_again(checkpoint, tmp_path, same_model):
    done = convert(checkpoint, tmp_path / "out", max_shard_size="500KB")
    shards = list((done.folder / "transformer").glob("*.safetensors"))
    assert len(shards) > 1
    assert same_model(load_transformer(done.folder))


def test_an_existing_folder_is_kept_unless_it_is_a_pipeline_and_overwrite_is_said(checkpoint, tmp_path, same_model):
    out = tmp_path / "out"
    convert(checkpoint, out)
    (out / "note.txt").write_text("mine")
    with pytest.raises(
        OutputError, match=r"exists and is not empty; give another, or use overwrite=True \(--overwrite\)"
    ):
        convert(checkpoint, out)
    assert (out / "note.txt").exists()
    convert(checkpoint, out, overwrite=True)
    assert not (out / "note.txt").exists()
    assert same_model(load_transformer(out))

    private = tmp_path / "private"
    private.mkdir()
    (private / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not a pipeline folder, so it is not overwritten"):
        convert(checkpoint, private, overwrite=True)
    assert (private / "thesis.txt").read_text() == "mine"


def test_destinations_that_cannot_be_are_refused_before_reading(tmp_path):
    with pytest.raises(OutputError, match="does not exist; make it first"):
        convert("absent.pt", tmp_path / "a" / "b")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="a file; give a folder"):
        convert("absent.pt", tmp_path / "file")


def test_a_failure_leaves_nothing_and_keeps_what_was_there(checkpoint, wan_base, tmp_path, monkeypatch, same_model):
    convert(checkpoint, tmp_path / "out")
    monkeypatch.setattr(conversion, "_write_others", lambda *a: (_ for _ in ()).throw(RuntimeError("power cut")))
    with pytest.raises(RuntimeError, match="power cut"):
        convert(checkpoint, tmp_path / "out", base=wan_base, overwrite=True)
    assert same_model(load_transformer(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "self_forcing_dmd.pt"]


def test_a_full_disk_is_seen_beforehand_or_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(DiskFullError, match=r"needs 0\.0 GB, 0\.0 GB are free"):
        convert(checkpoint, tmp_path / "out")
    monkeypatch.undo()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion, "_write_json", full)
    with pytest.raises(DiskFullError, match="the disk ran full; nothing was written"):
        convert(checkpoint, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["self_forcing_dmd.pt"]


def test_a_lora_is_merged_into_what_is_written(checkpoint, tmp_path, weights):
    prefix = "base_model.model.blocks.1.cross_attn.o"
    down, up = torch.ones(1, 128), torch.ones(128, 1)
    save_file({f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    done = convert(checkpoint, tmp_path / "out", lora=tmp_path / "lora.safetensors", lora_scale=2.0)
    state = load_file(done.folder / "transformer" / "diffusion_pytorch_model.safetensors")
    key = "blocks.1.attn2.to_out.0.weight"
    assert torch.allclose(state[key], weights[key] + 2.0)


# --- command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def run():
    app = typer.Typer()
    register(app)

    @app.command()
    def other() -> None:
        """typer needs a second command to keep the first one's name."""

    return lambda *arguments: CliRunner().invoke(app, ["convert", *map(str, arguments)])


def test_command_converts_and_says_what_it_did(run, checkpoint, tmp_path, same_model):
    result = run(checkpoint, tmp_path / "out", "--dtype", "float32")
    assert result.exit_code == 0
    assert f"wrote {tmp_path / 'out'}" in result.output
    assert "without vae, text_encoder, tokenizer: run again with --base" in result.output
    assert same_model(load_transformer(tmp_path / "out"))


def test_command_inspects_without_writing(run, checkpoint, tmp_path):
    before = sorted(tmp_path.iterdir())
    result = run(checkpoint, "--inspect")
    assert result.exit_code == 0
    assert "original names under 'generator_ema', without model." in result.output
    assert sorted(tmp_path.iterdir()) == before


def test_command_lists_known_checkpoints(run):
    result = run("--list")
    assert result.exit_code == 0
    assert "rolling-forcing" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "source: not given"),
        (["x.pt"], "destination: not given"),
        (["x.pt", "out", "--dtype", "int4"], "dtype='int4': must be one of float32"),
    ],
    ids=["nothing", "no-destination", "dtype"],
)
def test_command_refuses_bad_arguments(run, arguments, message):
    result = run(*arguments)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


def test_command_passes_errors_of_the_checkpoint_on(run, tmp_path):
    result = run(tmp_path / "absent.pt", tmp_path / "out")
    assert isinstance(result.exception, CheckpointError)
