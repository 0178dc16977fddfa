"""Files that are damaged, absent, or would run code."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from longvid.models.checkpoints import CheckpointError, load_transformer
from longvid.models.checkpoints.files import read


class _Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, original):
    marker = str(tmp_path / "it-ran")
    torch.save({"generator": original, "extra": _Payload(marker)}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"Python objects besides tensors \(\w+\.mkdir\).*refused"):
        load_transformer(tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(_Payload(marker), protocol=2))
    with pytest.raises(CheckpointError, match=r"refused|damaged"):
        read(tmp_path / "evil.pkl")
    assert not os.path.exists(marker)


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read(tmp_path / "module.pt")


@pytest.mark.parametrize("fraction", [0.2, 0.9], ids=str)
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_file_that_was_cut_short_says_so(kind, fraction, tmp_path, original):
    path = tmp_path / f"model.{kind}"
    if kind == "pt":
        torch.save(original, path)
    else:
        save_file(original, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    with pytest.raises(CheckpointError, match=r"damaged or cut short \(\d+ bytes"):
        load_transformer(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes that are neither"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"hello, these are no weights at all", "neither safetensors nor"),
    ],
    ids=["empty", "lfs", "html", "gguf", "text"],
)
def test_what_is_no_weight_file_is_named(content, message, tmp_path):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_transformer(tmp_path / "model.pt")


def test_absent_paths_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.pt: no such file or folder"):
        load_transformer(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match="no transformer in it"):
        load_transformer(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="transformer/ is not"):
        load_transformer(tmp_path)


def test_a_damaged_config_is_named(wan_folder):
    (wan_folder / "config.json").write_text("{not json")
    with pytest.raises(CheckpointError, match=r"config\.json: not readable as JSON"):
        load_transformer(wan_folder)
    (wan_folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object, holds list"):
        load_transformer(wan_folder)


def test_torch_files_are_mapped_and_read_as_weights_only(tmp_path, monkeypatch):
    calls = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: calls.append(kwargs) or load(*args, **kwargs))
    torch.save({"a": torch.arange(6.0)}, tmp_path / "a.pt")
    assert torch.equal(read(tmp_path / "a.pt")["a"], torch.arange(6.0))
    assert calls == [{"map_location": "cpu", "weights_only": True, "mmap": True}]
