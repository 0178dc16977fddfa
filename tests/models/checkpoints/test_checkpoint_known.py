"""The table of known checkpoints, their licences, and fetching them."""

import json
import logging
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from longvid.errors import UnknownNameError
from longvid.models.checkpoints import KNOWN, CheckpointError, licence_notice, load_transformer, sources
from longvid.models.checkpoints import known as known_module
from longvid.models.checkpoints.known import find_known, identify
from longvid.presets import parse_overrides, resolve_method


@pytest.mark.parametrize("name", KNOWN, ids=str)
def test_each_resolves_to_a_method_with_its_settings_and_sampling(name):
    known = KNOWN[name]
    method = resolve_method(known.method, model_defaults=known.sampling, overrides=parse_overrides(known.settings))
    if "steps" in known.sampling:
        assert list(method.schedule.steps) == known.sampling["steps"]
    if name == "longlive":
        assert (method.cache.window, method.cache.sink, method.cache.positions) == (12, 3, "absolute")
        assert (method.name, method.cache.recache, method.paper) == ("longlive", "window", "arXiv 2509.22622")


def test_names_are_their_keys_and_files_are_distinct():
    assert all(name == known.name for name, known in KNOWN.items())
    assert len({(known.hub, known.file) for known in KNOWN.values()}) == len(KNOWN)


@pytest.mark.parametrize("name", KNOWN, ids=str)
def test_each_is_recognised_by_name_hub_path_and_download(name):
    known = KNOWN[name]
    assert identify(name) is known
    assert identify(f"{known.hub}/{known.file}".rstrip("/")) is known
    assert identify(f"/home/me/{known.hub.split('/')[1]}/{known.file}".rstrip("/")) is known


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("downloads/self_forcing_dmd.pt", "self-forcing"),
        ("rolling_forcing_dmd.pt", "rolling-forcing"),
        ("rewardforcing.pt", "reward-forcing"),
        ("weights/longlive_base.pt", "longlive"),
        ("x/autoregressive_checkpoint/model.pt", "causvid"),
        ("C:\\models\\self_forcing_dmd.pt", "self-forcing"),
        ("x/model.pt", None),
        ("transformer", None),
        ("my_self_forcing_dmd.pt", None),
    ],
    ids=str,
)
def test_local_files_are_recognised_by_telling_names_only(path, name):
    found = identify(path)
    assert (found.name if found else None) == name


def test_notices_name_licence_and_restriction():
    notice = licence_notice("self-forcing")
    assert "CC BY-NC-SA 4.0" in notice
    assert "forbids commercial use" in notice
    assert "academic use only" in licence_notice("weights/rolling_forcing_dmd.pt")
    assert "forbids" not in licence_notice("reward-forcing")
    assert "models/lora.pt belongs on top" in licence_notice("longlive")
    assert licence_notice("something/of/mine.pt") is None


def test_unknown_names_propose_the_nearest(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'rolling-forcing'"):
        find_known("roling-forcing")
    with pytest.raises(CheckpointError, match="no such file or folder; did you mean the checkpoint 'self-forcing'"):
        load_transformer("self-forcin")
    with pytest.raises(CheckpointError, match="known checkpoints: self-forcing, "):
        load_transformer(tmp_path / "zzz" / "q.bin")


@pytest.fixture
def unseen(monkeypatch):
    """As in a fresh process: no notice has been shown."""
    monkeypatch.setattr(known_module, "_shown", set())


def test_the_licence_is_shown_before_the_file_is_read_and_once(tmp_path, caplog, original, unseen):
    path = tmp_path / "self_forcing_dmd.pt"
    path.write_bytes(b"not weights")
    with caplog.at_level(logging.WARNING), pytest.raises(CheckpointError):
        load_transformer(path)
    assert "CC BY-NC-SA 4.0" in caplog.text  # shown although the file could not be read
    torch.save(original, path)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_transformer(path)
    assert "licence" not in caplog.text


def test_a_known_name_fetches_base_and_lora_after_the_notice(tmp_path, monkeypatch, caplog, original, weights, unseen):
    torch.save({"generator": {f"model.{n}": t for n, t in original.items()}}, tmp_path / "longlive_base.pt")
    down, up = torch.ones(2, 128), torch.full((32, 2), 0.25)
    prefix = "base_model.model.blocks.0.ffn.0"
    torch.save({f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}, tmp_path / "lora.pt")
    asked = []

    def download(repository, file):
        assert "LongLive" in caplog.text
        asked.append((repository, file))
        return str(tmp_path / file.split("/")[-1])

    monkeypatch.setattr(sources, "hf_hub_download", download)
    with caplog.at_level(logging.WARNING):
        model = load_transformer("longlive")
    hub = "Efficient-Large-Model/LongLive-1.3B"
    assert sorted(asked) == [(hub, "models/longlive_base.pt"), (hub, "models/lora.pt")]
    changed = weights["blocks.0.ffn.net.0.proj.weight"] + up @ down
    assert torch.allclose(model.blocks[0].ffn.net[0].proj.weight, changed, atol=1e-5)


def test_hub_ids_are_fetched_whole_or_by_file(tmp_path, monkeypatch, tiny, same_model):
    tiny.save_pretrained(tmp_path / "repo" / "transformer")
    (tmp_path / "repo" / "model_index.json").write_text("{}")
    asked = []
    monkeypatch.setattr(sources, "snapshot_download", lambda r, allow_patterns: asked.append(r) or tmp_path / "repo")
    monkeypatch.setattr(
        sources,
        "hf_hub_download",
        lambda r, f: asked.append((r, f)) or tmp_path / "repo/transformer/diffusion_pytorch_model.safetensors",
    )
    assert same_model(load_transformer("someone/model"))
    assert same_model(load_transformer("someone/model/folder/weights.safetensors"))
    assert asked == ["someone/model", ("someone/model", "folder/weights.safetensors")]


def test_an_unreachable_hub_is_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection\nand much more text")

    monkeypatch.setattr(sources, "snapshot_download", fail)
    monkeypatch.setattr(sources, "hf_hub_download", fail)
    for source in ("someone/model", "someone/model/a.pt", "self-forcing"):
        with pytest.raises(CheckpointError, match=r"hub did not give it \(no connection\); download it") as caught:
            load_transformer(source)
        assert "\n" not in str(caught.value)


def test_a_local_path_wins_over_a_name(tmp_path, monkeypatch, original, same_model):
    torch.save(original, tmp_path / "self-forcing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "hf_hub_download", lambda *a: pytest.fail("asked the hub"))
    assert same_model(load_transformer("self-forcing"))


def test_the_record_of_a_converted_folder_identifies_it(tmp_path):
    (tmp_path / known_module.RECORD).write_text(json.dumps({"checkpoint": "rolling-forcing"}))
    assert identify(tmp_path).name == "rolling-forcing"
    (tmp_path / known_module.RECORD).write_text(json.dumps({"checkpoint": None}))
    assert identify(tmp_path) is None


def test_the_table_needs_no_torch():
    code = "import sys; from longvid.models.checkpoints import KNOWN; sys.exit('torch' in sys.modules or not KNOWN)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
