"""longvid.load: folders, defaults, and what is missing or damaged, in one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file

import longvid
from longvid.errors import InputError, ModelError, UnknownNameError
from longvid.pipelines.loading import model_defaults


@pytest.fixture
def broken(tiny_model_folder, tmp_path):
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


def weights_of(folder, component="transformer"):
    return next((folder / component).glob("*.safetensors"))


@pytest.mark.parametrize("method", ["self-forcing", "deep-forcing", "rolling-forcing"])
def test_a_saved_folder_loads_with_any_method(tiny_model_folder, make_tiny_pipe, method):
    pipe = longvid.load(tiny_model_folder, method=method)
    assert pipe.method.name == method
    assert type(pipe).__name__ == longvid.MethodConfig.load(method).pipeline
    assert pipe.method.schedule.steps == (1000.0, 500.0)  # the folder's own sampling defaults
    assert pipe.fps == 16
    pipe.set_progress_bar_config(disable=True)
    mine = make_tiny_pipe(method, frames_per_block=3, steps=[1000, 500], shift=3.0)
    ours, theirs = (p("a red ball", num_frames=9, seed=0).frames for p in (pipe, mine))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_from_pretrained_is_the_same_object(tiny_model_folder):
    pipe = longvid.DeepForcingPipeline.from_pretrained(tiny_model_folder)
    assert pipe.method.name == "deep-forcing"
    assert pipe.method.schedule.shift == 3.0


def test_precedence(tiny_model_folder):
    """Explicit over the folder's defaults over the method's file."""
    assert model_defaults(tiny_model_folder)["steps"] == [1000, 500]
    pipe = longvid.load(
        tiny_model_folder,
        overrides={"schedule": {"steps": [1000, 600, 300]}, "cache": {"window": 12}},
        method="self-forcing",
    )
    assert pipe.method.schedule.steps == (1000.0, 600.0, 300.0)
    assert pipe.method.cache.window == 12
    ready = longvid.MethodConfig.load("self-forcing")
    assert longvid.load(tiny_model_folder, method=ready).method == ready


def test_dtype(tiny_model_folder):
    pipe = longvid.load(tiny_model_folder, method="self-forcing", dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.patch_embedding.weight.dtype == torch.bfloat16
    rollout = pipe.rollout("a red ball", num_frames=21, seed=0)
    assert rollout.cache.layers[0].keys.dtype == torch.bfloat16
    assert all(torch.isfinite(block.latents).all() for block in rollout)


def refused(model, pattern, **more):
    with pytest.raises(ModelError, match=pattern) as caught:
        longvid.load(model, **more)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None}, "model=None: must be a name, a folder or a hub id"),
        ({"model": 5}, "model=5"),
        ({"dtype": "int8"}, "dtype='int8': must be one of float32, bfloat16, float16"),
        ({"dtype": torch.float64}, "dtype=torch.float64"),
        ({"torch_dtype": torch.bfloat16}, "unknown argument 'torch_dtype': did you mean 'dtype'"),
        ({"methood": "self-forcing"}, "unknown argument 'methood': did you mean 'method'"),
        ({"overrides": {"cache.windoww": 12}}, "did you mean 'cache.window'"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(map(str, (*value, *value.values()))),
)
def test_bad_arguments_are_refused_before_weights_load(broken, arguments, message):
    weights_of(broken).unlink()
    with pytest.raises(InputError, match=message):
        longvid.load(**{"model": broken} | arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_device_that_is_not_there_is_refused_before_weights_load(broken):
    weights_of(broken).unlink()
    with pytest.raises(InputError, match=r"device='cuda'.*is not on this machine"):
        longvid.load(broken, device="cuda")


def test_names_stand_for_types_and_dots_for_nesting(tiny_model_folder):
    pipe = longvid.load(tiny_model_folder, dtype="float16", overrides={"cache.window": 18, "cache": {"recent": 4}})
    assert pipe.transformer.dtype == torch.float16
    assert (pipe.method.cache.window, pipe.method.cache.recent) == (18, 4)


def test_models_that_are_not_there(tmp_path):
    refused(tmp_path / "nowhere", "no such folder; give 'embedded'")
    refused("just-a-name", "no such folder")
    file = tmp_path / "weights.pt"
    file.write_bytes(b"x")
    refused(file, "longvid convert")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty")


def test_damaged_weights(broken):
    path = weights_of(broken)
    path.write_bytes(path.read_bytes()[:1000])
    refused(broken, "transformer cannot be read")


def test_missing_and_unexpected_weights(broken):
    path = weights_of(broken)
    state = load_file(path)
    state.pop("proj_out.weight")
    save_file(state | {"stray": torch.zeros(1)}, path)
    refused(broken, "proj_out.weight")


def test_weights_of_another_shape(broken):
    path = weights_of(broken, "vae")
    state = load_file(path)
    name = next(iter(state))
    save_file(state | {name: torch.zeros(3, 3)}, path)
    refused(broken, "vae")


def test_a_damaged_index(broken):
    (broken / "model_index.json").write_text("{")
    refused(broken, "model_index.json cannot be read")


def test_a_missing_component(broken):
    shutil.rmtree(broken / "vae")
    refused(broken, "vae")


def test_a_model_of_two_experts_is_refused_before_weights_load(broken):
    index = json.loads((broken / "model_index.json").read_text())
    whole = index | {"transformer_2": [None, None], "boundary_ratio": None}
    (broken / "model_index.json").write_text(json.dumps(whole))
    longvid.load(broken)
    (broken / "model_index.json").write_text(json.dumps(whole | {"transformer_2": index["transformer"]}))
    weights_of(broken).unlink()
    refused(broken, "transformer_2 .*not supported; use a model of one")


def test_weights_may_lie_elsewhere_between_calls(tiny_model_folder):
    """As under enable_sequential_cpu_offload, whose hooks bring a layer's weights when it is called."""
    plain, offloaded = (longvid.load(tiny_model_folder, device="cpu") for _ in range(2))
    for part in (offloaded.transformer, offloaded.vae, offloaded.text_encoder):
        cpu_offload(part, torch.device("cpu"))
    assert offloaded.transformer.patch_embedding.weight.device.type == "meta"
    call = {"num_frames": 17, "seed": 0, "output_type": "np"}
    expected, found = (pipe("a red ball", **call).frames for pipe in (plain, offloaded))
    assert (expected == found).all()


def test_bad_sampling_defaults_are_refused_before_weights_load(broken):
    index = json.loads((broken / "model_index.json").read_text())
    (broken / "model_index.json").write_text(json.dumps(index | {"steps": [100, 500]}))
    weights_of(broken).unlink()
    with pytest.raises(InputError, match=r"schedule\.steps"):
        longvid.load(broken)


def test_unknown_methods_name_the_nearest(tiny_model_folder):
    with pytest.raises(UnknownNameError, match="rolling-forcing"):
        longvid.load(tiny_model_folder, method="rolling-forcin")


def test_a_model_of_the_hub_is_looked_at_as_it_will_be_loaded(monkeypatch):
    """A private model needs its token, and another revision may be another model."""
    asked = {}

    def load_config(name, **options):
        asked.update(options, name=name)
        return {"transformer_2": ["diffusers", "WanTransformer3DModel"]}

    monkeypatch.setattr(longvid.SelfForcingPipeline, "load_config", load_config)
    refused("some/model", "transformer_2", method="self-forcing", revision="main", token="t", student="base")
    assert asked == {"name": "some/model", "revision": "main", "token": "t"}
