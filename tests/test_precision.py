"""bfloat16 on a processor that has no instructions for it: a hundred times slower, and nobody says so."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import longvid
import longvid.pipelines.loading
from longvid import precision
from longvid.cli import main
from longvid.environment import environment
from longvid.errors import InputError
from longvid.training.probe import Probe, score_frames


@pytest.fixture
def old_processor(monkeypatch):
    """A CPU without instructions for any half type."""
    monkeypatch.setattr(precision, "_on_cpu", lambda dtype: False)


@pytest.fixture
def new_processor(monkeypatch):
    monkeypatch.setattr(precision, "_on_cpu", lambda dtype: True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_cpu_multiplies_full_precision(old_processor, dtype):
    assert precision.is_native(dtype, "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_depend_on_the_processor_and_not_on_a_gpus(old_processor, dtype):
    assert not precision.is_native(dtype, torch.device("cpu"))
    assert precision.is_native(dtype, "cuda:1")


def test_a_torch_without_onednn_has_no_half_products(monkeypatch):
    class Missing:
        def __getattr__(self, name):
            raise AttributeError(name)

    precision._on_cpu.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", Missing())
    try:
        assert not precision.is_native(torch.bfloat16, "cpu")
    finally:
        precision._on_cpu.cache_clear()


def products() -> torch.dtype:
    with precision.low_precision("cpu"):
        return torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype


def test_autocast_is_to_bfloat16_where_that_is_fast(new_processor):
    assert products() == torch.bfloat16


def test_autocast_changes_nothing_where_it_is_slow(old_processor):
    assert products() == torch.float32


def test_loading_in_bfloat16_warns_on_an_old_processor(old_processor, tiny_model_folder):
    with pytest.warns(RuntimeWarning, match=r"^dtype=bfloat16: .*use float32, or a GPU$") as caught:
        longvid.load(tiny_model_folder, method="self-forcing", dtype=torch.bfloat16)
    assert caught[0].filename == __file__, "the warning names the caller's line"


def test_loading_is_silent_where_nothing_is_slow(old_processor, tiny_model_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        longvid.load(tiny_model_folder, method="self-forcing")


def test_the_probe_sees_the_same_on_either_processor(monkeypatch):
    torch.manual_seed(0)
    probe, frames = Probe().eval(), np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    seen = []
    for native in (False, True):
        monkeypatch.setattr(precision, "_on_cpu", lambda dtype, native=native: native)
        seen.append(score_frames(frames, probe))
    for name in ("x", "y", "radius"):
        np.testing.assert_allclose(seen[0][name], seen[1][name], atol=0.02)


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_a_device_that_is_here_is_taken(device):
    precision.check_device(device)


@pytest.mark.parametrize("device", ["cuda:99", "xpu", torch.device("cuda", 99)])
def test_a_device_that_is_not_here_is_refused(device):
    with pytest.raises(InputError, match=f"^device='{device}': is not on this machine; use 'cpu', or a GPU that"):
        precision.check_device(device)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "", 1.5])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(InputError, match=f"^device={device!r}: must be 'cpu', 'cuda', 'cuda:1' or 'mps'$"):
        precision.check_device(device)


def test_accelerators_are_those_that_torch_counts(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    precision.check_device("cuda")
    precision.check_device("cuda:1")
    for device in ("cuda:2", "mps"):
        with pytest.raises(InputError, match="is not on this machine"):
            precision.check_device(device)


@pytest.mark.parametrize("command", [["render", "a red ball"], ["serve", "--port", "0"], ["bench"]], ids=lambda c: c[0])
def test_commands_refuse_a_device_in_one_line(command, monkeypatch, capsys):
    def load(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(longvid, "load", load)
    monkeypatch.setattr(longvid.pipelines.loading, "load", load)
    assert main([*command, "--device", "cuda:99"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("longvid: device='cuda:99': is not on this machine; ")
    assert shown.err.count("\n") == 1


def test_env_says_which_types_are_fast(old_processor):
    assert dict(environment())["fast types"] == "float32"
