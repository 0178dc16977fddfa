"""Students as adapters: what trains, exact resume, the folder on disk, and merging it back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import longvid
from longvid.errors import InputError, ModelError, OutputError, UnknownNameError
from longvid.models.students import ADAPTER, FACTS, FOLDER, read_student, student_names
from longvid.training.distill.adapter import adapter_rank, trained_weights
from longvid.training.distill.config import student_config
from longvid.training.distill.prompts import WorldPrompts
from longvid.training.distill.student import LOG, export_adapter, load_parts
from longvid.training.distill.trainer import Distiller

pytest.importorskip("peft")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import train_student

DEFAULTS = {"train_frames": 9, "frames_per_block": 3, "shift": 3.0}
FAST = {
    "learning_rate": 1e-2,
    "critic_learning_rate": 1e-3,
    "generator_every": 2,
    "ema_start": 2,
    "batch_size": 2,
    "lora_rank": 2,
}


def config_of(**changes):
    return student_config("self-forcing", DEFAULTS, FAST | changes)


def distiller(folder, run, initial=None, **changes):
    torch.manual_seed(0)  # nothing may depend on it
    config = config_of(**changes)
    parts = load_parts(folder, initial=initial, lora_rank=config.lora_rank, seed=config.seed)
    return Distiller(parts, config, WorldPrompts(), run)


def numbers(state):
    return torch.cat([x.double().flatten() for x in state.values()])


def frozen(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


def exported(training, out, **options):
    return export_adapter(training.parts, training.weights, training.config, out, steps=training.step, **options)


def student_of(tiny_folder, tmp_path, name="self-forcing", **changes):
    """The tiny model with a trained student in it; its training."""
    training = distiller(tiny_folder, tmp_path / "run", **changes)
    training.train(3, log_every=1)
    (tiny_folder / FOLDER).mkdir(exist_ok=True)
    exported(training, tiny_folder / FOLDER / name, log=tmp_path / "run" / LOG)
    return training


def test_an_adapter_changes_nothing_at_first_and_alone_gets_gradient(tiny_folder, tmp_path):
    training = distiller(tiny_folder, tmp_path / "run")
    student, base = training.parts.student, training.parts.teacher
    assert adapter_rank(student) == 2
    assert adapter_rank(base) == 0
    draws, text = training._draws("generator", 0), training.parts.embed(["a red ball bounces"])
    with torch.no_grad():
        ours = training._clip(text, draws).latents
        training._generator.network.transformer = base
        theirs = training._clip(text, training._draws("generator", 0)).latents
        training._generator.network.transformer = student
    assert torch.equal(ours, theirs)
    loss, _ = training._generator_pass(training._prompts("generator", 0), training._draws("generator", 0))
    loss.backward()
    got = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    # At B = 0 the gradient reaches every B and no A.
    assert got == {name for name in trained_weights(student) if "lora_B" in name}


def test_training_moves_the_adapter_and_not_the_base(tiny_folder, tmp_path):
    training = distiller(tiny_folder, tmp_path / "run")
    before, adapter = frozen(training.parts.student), numbers(training.weights).clone()
    training.train(3)
    assert torch.equal(numbers(before), numbers(frozen(training.parts.student)))
    assert not torch.equal(adapter, numbers(training.weights))
    assert numbers(training.weights).numel() < 0.2 * numbers(before).numel()


def test_layers_read_as_sums_are_the_same_network_and_come_back_exactly(tiny_folder, tmp_path):
    training = distiller(tiny_folder, tmp_path / "run")
    training.train(3)
    network, before = training._generator.network, numbers(frozen(training.parts.student))
    text, latent = training.parts.embed(["a red ball bounces"]), torch.randn(1, 4, 3, 8, 8)
    arguments = (latent, torch.full((1, 3), 500.0), text, range(3))
    with torch.no_grad():
        apart = network(*arguments)[0]
        with network.session():
            assert len(network._sums) > 10
            together = network(*arguments)[0]
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-4)
    assert torch.equal(before, numbers(frozen(training.parts.student)))
    with network.session():
        network(*arguments)[0].sum().backward()  # with gradient the adapter stays apart, and gets it
    assert all(p.grad is not None for p in training._trained)


def test_a_resumed_adapter_ends_where_an_uninterrupted_one_does(tiny_folder, tmp_path):
    whole = distiller(tiny_folder, tmp_path / "whole")
    whole.train(5)
    distiller(tiny_folder, tmp_path / "half").train(3)
    resumed = distiller(tiny_folder, tmp_path / "half")
    assert resumed.step == 3
    resumed.train(5)
    assert torch.equal(numbers(whole.weights), numbers(resumed.weights))
    mine, theirs = (numbers(trained_weights(t.parts.student)) for t in (whole, resumed))
    assert torch.equal(mine, theirs)
    assert torch.equal(numbers(whole.parts.critic.state_dict()), numbers(resumed.parts.critic.state_dict()))


def test_what_is_loaded_is_what_was_trained(tiny_folder, tmp_path):
    training = student_of(tiny_folder, tmp_path)
    assert student_names(tiny_folder) == ("self-forcing",)
    student = read_student(tiny_folder / FOLDER / "self-forcing")
    assert student.facts["kind"] == "self-forcing"
    assert (student.facts["steps"], student.facts["generator_updates"], student.facts["initial"]) == (3, 2, "base")
    assert student.facts["settings"]["lora_rank"] == 2
    assert student.sampling["sampler"] == "renoise"
    assert student.bytes < 0.2 * sum(f.stat().st_size for f in (tiny_folder / "transformer").glob("*.safetensors"))
    assert (student.folder / LOG).exists()
    pipe = longvid.load(tiny_folder, "self-forcing", device="cpu", student="self-forcing")
    assert pipe.student == "self-forcing"
    assert (pipe.method.schedule.sampler, pipe.method.schedule.guidance_scale) == ("renoise", 1.0)
    worn = training.parts.student
    from longvid.training.distill.adapter import set_trained_weights

    set_trained_weights(worn, training.weights)
    worn.fuse_lora()
    worn.unload_lora()
    merged, plain = pipe.transformer.state_dict(), worn.state_dict()
    assert merged.keys() == plain.keys()
    base = longvid.load(tiny_folder, "self-forcing", device="cpu", student="base").transformer.state_dict()
    moved = max((merged[n] - base[n]).abs().max() for n in merged)
    assert moved > 1e-3
    for name, weight in merged.items():
        torch.testing.assert_close(weight, plain[name], atol=1e-3 * float(moved), rtol=0, msg=name)  # of float16


def test_diffusers_loads_the_file_as_it_is(tiny_folder, tmp_path):
    student_of(tiny_folder, tmp_path)
    ours = longvid.load(tiny_folder, "self-forcing", device="cpu", student="self-forcing").transformer.state_dict()
    model = longvid.load(tiny_folder, "self-forcing", device="cpu", student="base").transformer
    model.load_lora_adapter(tiny_folder / FOLDER / "self-forcing" / ADAPTER, prefix=None)
    model.fuse_lora()
    model.unload_lora()
    theirs = model.state_dict()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-5, rtol=1e-4, msg=name)


def test_the_next_student_goes_on_from_an_adapter(tiny_folder, tmp_path):
    student_of(tiny_folder, tmp_path)
    first = tiny_folder / FOLDER / "self-forcing"
    goes_on = distiller(tiny_folder, tmp_path / "next", initial=first)
    on_disk = {n.replace(".default", ""): x for n, x in trained_weights(goes_on.parts.student).items()}
    from safetensors.torch import load_file

    stored = load_file(first / ADAPTER)
    assert on_disk.keys() == stored.keys()
    assert all(torch.equal(on_disk[n], stored[n].float()) for n in stored)
    with pytest.raises(InputError, match=r"lora_rank=4: .* has rank \[2\]"):
        distiller(tiny_folder, tmp_path / "other", initial=first, lora_rank=4)
    whole = load_parts(tiny_folder, initial=first)
    base = longvid.load(tiny_folder, "self-forcing", device="cpu", student="base")
    # The default method picks a student of this name: teacher and critic are the base all the same.
    for part in (whole.teacher, whole.critic):
        assert torch.equal(numbers(part.state_dict()), numbers(base.transformer.state_dict()))
    pipe = longvid.load(tiny_folder, "self-forcing", device="cpu", student="self-forcing")
    assert torch.equal(numbers(whole.student.state_dict()), numbers(pipe.transformer.state_dict()))
    with pytest.raises(InputError, match="start from another adapter"):
        load_parts(tiny_folder, initial=tiny_folder, lora_rank=2)


def test_a_network_of_another_rank_is_refused(tiny_folder, tmp_path):
    with pytest.raises(InputError, match="lora_rank=3: the student's adapter has 0"):
        Distiller(load_parts(tiny_folder), config_of(lora_rank=3), WorldPrompts(), tmp_path / "run")


def test_checkpoints_older_than_a_setting_go_on(tiny_folder, tmp_path):
    from longvid.training.distill.trainer import CHECKPOINT

    whole = {"lora_rank": 0}
    distiller(tiny_folder, tmp_path / "run", **whole).train(1)
    state = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    del state["config"]["lora_rank"]
    torch.save(state, tmp_path / "run" / CHECKPOINT)
    assert distiller(tiny_folder, tmp_path / "run", **whole).step == 1


def test_another_base_and_damage_are_named(tiny_folder, tmp_path):
    training = student_of(tiny_folder, tmp_path)
    folder = tiny_folder / FOLDER / "self-forcing"
    with pytest.raises(OutputError, match="exists"):
        exported(training, folder)
    facts = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps(facts | {"base_sha256": "0" * 64}))
    with pytest.raises(ModelError, match="trained on other base weights"):
        longvid.load(tiny_folder, device="cpu", student="self-forcing")
    with pytest.raises(UnknownNameError, match="did you mean 'self-forcing'"):
        longvid.load(tiny_folder, device="cpu", student="self-forcin")
    (folder / ADAPTER).unlink()
    with pytest.raises(ModelError, match="is missing"):
        longvid.load(tiny_folder, device="cpu", student="self-forcing")


def test_the_script_writes_an_adapter(tiny_folder, tmp_path):
    settings = [part for key, value in FAST.items() for part in ("--set", f"{key}={value}")]
    common = ["--kind", "self-forcing", "--model", str(tiny_folder), *settings]
    one, two = tmp_path / "one", tmp_path / "two"
    assert train_student.main([*common, "--steps", "2", "--folder", str(tmp_path / "a"), "--out", str(one)]) == 0
    more = ["--initial", str(one), "--folder", str(tmp_path / "b"), "--out", str(two)]
    assert train_student.main([*common, "--steps", "1", *more]) == 0
    assert read_student(two).facts["initial"] == "one"
