"""The bases' training on tiny sizes: a few steps of every stage, exact resume, refusals, the script."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import longvid
from longvid.errors import InputError
from longvid.models.autoencoder import AutoencoderTinyVideo
from longvid.precision import is_native
from longvid.training import autoencoder_stage as autoencoders
from longvid.training import diffusion_stage as stage
from longvid.training import world
from longvid.training.autoencoder_stage import autoencoder_stage, decoder_stage, world_stage
from longvid.training.backbone import sequence_forward
from longvid.training.encode_stage import FRAMES, LATENT_FRAMES, encode_stage, videos_stage
from longvid.training.export import export_stage
from longvid.training.layouts import LAYOUTS, draw_layout

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import train_embedded

TINY = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2, "text_dim": 8, "freq_dim": 16}
TINY_VAE = {"z_dim": 4, "widths": (12, 8, 8), "depths": (1, 1, 1)}


def rows(path: Path) -> list[dict]:
    """A log, without the times."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def checkpoint(path: Path) -> dict:
    state = torch.load(path, weights_only=True)
    return {k: v for k, v in state.items() if k != "seconds"}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the stage encode leaves it: six clips of noise on a coarse grid."""
    folder, rng = tmp_path_factory.mktemp("encoded"), np.random.default_rng(0)
    torch.manual_seed(0)
    AutoencoderTinyVideo(**TINY_VAE).save_pretrained(folder / "vae")
    np.save(folder / "latents.npy", rng.normal(size=(6, 4, LATENT_FRAMES, 2, 2)).astype(np.float16))
    np.save(folder / "videos_place.npy", rng.uniform(0.2, 0.8, (6, LATENT_FRAMES, 3)).astype(np.float32))
    scenes = [world.random_scene(rng) for _ in range(6)]
    scenes = [[getattr(scene, name) for name in world.CHOICES] for scene in scenes]
    (folder / "videos.json").write_text(json.dumps({"scenes": scenes, "seeds": list(range(6)), "clips": 6}))
    return folder


@pytest.fixture
def folder(encoded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(encoded, tmp_path / "work")


def train(folder: Path, steps: int, layout: str = "mixed", **changes) -> stage.Diffusion:
    settings = {"frames": 45, "log_every": 2, "save_every": 3, "transformer": TINY, "compiled": False} | changes
    return stage.diffusion_stage(folder, steps=steps, layout=layout, **settings)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_few_steps_of_every_layout_are_finite_and_move_the_model(layout: str, folder: Path) -> None:
    torch.manual_seed(3)
    before = stage.Diffusion(4, TINY).state_dict()
    model = train(folder, 4, layout, log_every=1)
    state = checkpoint(folder / stage.CHECKPOINT)
    assert all(torch.isfinite(x).all() for x in state["model"].values())
    moved = {n for n, x in state["model"].items() if not torch.equal(x, before[n])}
    assert {
        "transformer.proj_out.weight",
        "transformer.blocks.1.attn1.to_q.weight",
        "text_encoder.embedding.weight",
    } <= moved
    assert same(dict(model.state_dict()), dict(state["ema"]))
    log = rows(folder / stage.LOG)
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    names = {name for row in log for name in row} - {"step", "lr"}
    assert all(math.isfinite(value) for row in log for value in row.values())
    own = {"teacher-forcing": "forcing", "diffusion-forcing": "diffusion"}.get(layout, ("forcing", "rolling"))
    assert all(name.startswith(own) for name in names)


class InPrecision(torch.nn.Module):
    """A model's forward under torch.autocast("cpu"), or without."""

    def __init__(self, model: stage.Diffusion, low: bool) -> None:
        super().__init__()
        self.model, self.low = model, low

    def forward(self, noisy, sigma, ids, positions, mask) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low):
            text = self.model.text_encoder(ids)
            return sequence_forward(self.model.transformer, noisy, 1000 * sigma, text, positions, mask).float()


def test_a_step_on_one_process_is_the_forward_under_autocast_to_bfloat16_where_that_pays(folder: Path) -> None:
    torch.manual_seed(0)
    model = stage.Diffusion(4, TINY)
    vae = AutoencoderTinyVideo.from_pretrained(folder / "vae")
    clips = stage.LatentClips(folder, vae, model.text_encoder)

    def loss(network) -> float:
        drawn = draw_layout("teacher-forcing", *map(np.random.default_rng, (0, 1)), frames=45)
        return float(stage.flow_loss(network, clips, drawn, np.random.default_rng(2)).detach())

    got = loss(Accelerator(mixed_precision="no").prepare_model(model))
    pays = is_native(torch.bfloat16, "cpu")
    assert got == loss(InPrecision(model, low=pays)) != loss(InPrecision(model, low=not pays))


def test_an_accelerator_with_a_precision_of_its_own_is_refused(folder: Path) -> None:
    other = SimpleNamespace(mixed_precision="fp16", device=torch.device("cpu"))
    for run in (train, autoencoder):
        with pytest.raises(InputError, match=r"accelerator.mixed_precision='fp16': must be 'no'"):
            run(folder, 1, accelerator=other)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stopped_run_goes_on_to_the_weights_and_the_log_of_one_that_was_not(
    layout: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = shutil.copytree(folder, tmp_path / "half")
    train(folder, 6, layout)
    calls, loss = [], stage.flow_loss

    def interrupted(*arguments) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss(*arguments)

    monkeypatch.setattr(stage, "flow_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(half, 6, layout)
    assert checkpoint(half / stage.CHECKPOINT)["step"] == 3
    # A row of a step that must be done again, whose mean began before the checkpoint, and half a row.
    assert [row["step"] for row in rows(half / stage.LOG)] == [2, 4]
    with (half / stage.LOG).open("a") as file:
        file.write('{"step": 1, "lo')
    monkeypatch.setattr(stage, "flow_loss", loss)
    torch.manual_seed(99)  # nothing may depend on it
    train(half, 6, layout)
    assert same(checkpoint(folder / stage.CHECKPOINT), checkpoint(half / stage.CHECKPOINT))
    assert rows(folder / stage.LOG) == rows(half / stage.LOG)


def test_a_checkpoint_of_other_settings_is_refused_by_name(folder: Path) -> None:
    train(folder, 1)
    with pytest.raises(InputError, match=r"layout: 'mixed' -> 'teacher-forcing'; seed: 3 -> 4"):
        train(folder, 2, "teacher-forcing", seed=4)
    state = torch.load(folder / stage.CHECKPOINT, weights_only=True)
    del state["settings"]
    torch.save(state, folder / stage.CHECKPOINT)
    with pytest.raises(InputError, match=r"earlier version.* exported but not resumed"):
        train(folder, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "mixd"}, "did you mean 'mixed'"),
        ({"frames": 0}, "frames=0"),
        ({"log_every": 0}, "log_every=0"),
        ({"frames": 210}, "clips=6: a batch holds 14; encode more"),
    ],
    ids=lambda c: ",".join(c) if isinstance(c, dict) else "",
)
def test_settings_that_cannot_be(changes: dict, message: str, folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        train(folder, 1, **changes)
    assert not (folder / stage.CHECKPOINT).exists()


def test_what_was_trained_is_exported_and_renders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(folder, 2, "diffusion-forcing")
    ema = checkpoint(folder / stage.CHECKPOINT)["ema"]
    export_stage(folder, folder / "out")
    pipe = longvid.load(folder / "out", "self-forcing", device="cpu")
    for name, weight in pipe.transformer.state_dict().items():
        assert torch.equal(weight.half(), ema[f"transformer.{name}"].half()), name
    assert rows(folder / "out" / "training" / stage.LOG) == rows(folder / stage.LOG)
    video = pipe("a red ball bounces", num_frames=9, seed=0, height=32, width=32, output_type="latent")
    assert torch.isfinite(video.frames).all()

    # A checkpoint from before there were settings holds the standard network.
    state = torch.load(folder / stage.CHECKPOINT, weights_only=True)
    del state["settings"]
    torch.save(state, folder / stage.CHECKPOINT)
    monkeypatch.setattr(stage, "TRANSFORMER", stage.TRANSFORMER | TINY)
    export_stage(folder, folder / "old")
    old = longvid.load(folder / "old", "self-forcing", device="cpu").transformer
    assert same(dict(old.state_dict()), dict(pipe.transformer.state_dict()))


def test_a_loss_that_is_not_finite_stops_the_training(folder: Path) -> None:
    latents = np.load(folder / "latents.npy")
    np.save(folder / "latents.npy", np.full_like(latents, np.nan))
    with pytest.raises(FloatingPointError, match="step 0: loss nan"):
        train(folder, 1)
    assert not (folder / stage.CHECKPOINT).exists()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips for the autoencoder, three more than the tests hold out, and a video."""
    folder = tmp_path_factory.mktemp("rendered")
    world_stage(folder, clips=11)
    videos_stage(folder, clips=1)
    return folder


@pytest.fixture
def few_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoders, "HELD_OUT_CLIPS", 8)


def autoencoder(folder: Path, steps: int, **changes) -> AutoencoderTinyVideo:
    return autoencoder_stage(folder, steps=steps, **({"batch": 2, "save_every": 2, "config": TINY_VAE} | changes))


@pytest.mark.usefixtures("few_held_out")
def test_a_stopped_autoencoder_goes_on_exactly(rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, half = (shutil.copytree(rendered, tmp_path / name) for name in ("whole", "half"))
    expected = autoencoder(whole, 4)
    save, saved = autoencoders.save_checkpoint, []

    def second_fails(*arguments) -> None:
        if saved:
            raise KeyboardInterrupt
        saved.append(arguments)
        save(*arguments)

    monkeypatch.setattr(autoencoders, "save_checkpoint", second_fails)
    with pytest.raises(KeyboardInterrupt):
        autoencoder(half, 4)
    assert [row["step"] for row in rows(half / "autoencoder.jsonl")] == [2, 4]  # no checkpoint stands for the second
    monkeypatch.setattr(autoencoders, "save_checkpoint", save)
    got = autoencoder(half, 4)
    assert same(dict(expected.state_dict()), dict(got.state_dict()))
    assert same(checkpoint(whole / "autoencoder.pt"), checkpoint(half / "autoencoder.pt"))
    assert rows(whole / "autoencoder.jsonl") == rows(half / "autoencoder.jsonl")
    assert all(math.isfinite(value) for row in rows(half / "autoencoder.jsonl") for value in row.values())
    with pytest.raises(InputError, match="batch: 2 -> 3"):
        autoencoder(half, 6, batch=3)


@pytest.mark.usefixtures("few_held_out")
def test_latents_are_the_autoencoders_and_the_decoder_learns_alone(rendered: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(rendered, tmp_path / "work")
    vae = autoencoder(folder, 2)
    vae.save_pretrained(folder / "vae")
    encode_stage(folder, vae)
    latents = np.load(folder / "latents.npy")
    assert latents.shape == (1, 4, LATENT_FRAMES, world.SIZE // 16, world.SIZE // 16)
    pixels = torch.from_numpy(np.load(folder / "videos.npy")).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    assert pixels.shape[2] == FRAMES
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(torch.from_numpy(latents).float(), expected, atol=0.02, rtol=0.02)  # of bfloat16
    stored = AutoencoderTinyVideo.from_pretrained(folder / "vae")
    normal = stored.normalize(torch.from_numpy(latents).float())
    torch.testing.assert_close(normal.mean((0, 2, 3, 4)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3, 4)), torch.ones(4), atol=1e-2, rtol=0)

    decoder_stage(folder, steps=3, batch=2, peak_lr=1e-2, save_every=2)
    assert [row["step"] for row in rows(folder / "decoder.jsonl")] == [2, 3]
    trained, before = checkpoint(folder / "decoder.pt")["model"], stored.state_dict()
    moved = {name.split(".")[0] for name, x in trained.items() if not torch.equal(x, before[name])}
    assert moved == {"decoder"}
    best = max(row["psnr_db"] for row in rows(folder / "decoder.jsonl"))
    clips = np.load(folder / "clips.npy", mmap_mode="r")
    kept = autoencoders.held_out_psnr(AutoencoderTinyVideo.from_pretrained(folder / "vae"), clips)
    assert kept == pytest.approx(max(best, autoencoders.held_out_psnr(stored, clips)), abs=1e-3)


@pytest.mark.usefixtures("few_held_out")
def test_too_few_clips_are_refused(rendered: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(rendered, tmp_path / "work")
    with pytest.raises(InputError, match=r"clips=11: 8 are held out and a batch is 8; render more"):
        autoencoder(folder, 1, batch=8)


PROCESS = """
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from longvid.training import autoencoder_stage as autoencoders
from longvid.training.diffusion_stage import diffusion_stage

torch.set_num_threads(1)
autoencoders.HELD_OUT_CLIPS = 8
folder, rendered = map(Path, sys.argv[1:])
accelerator = Accelerator(mixed_precision="no", cpu=True)
model = diffusion_stage(folder, steps=2, layout="diffusion-forcing", accelerator=accelerator, **OPTIONS)
torch.save(model.state_dict(), folder / f"of_process_{accelerator.process_index}.pt")
vae = autoencoders.autoencoder_stage(rendered, steps=2, batch=1, config=CONFIG, accelerator=accelerator)
torch.save(vae.state_dict(), rendered / f"of_process_{accelerator.process_index}.pt")
if accelerator.is_main_process:
    vae.save_pretrained(rendered / "vae")
accelerator.wait_for_everyone()
autoencoders.decoder_stage(rendered, steps=1, batch=1, accelerator=accelerator)
accelerator.end_training()
"""


def test_two_processes_average_their_batches_and_stay_one_model(folder: Path, rendered: Path, tmp_path: Path) -> None:
    rendered = shutil.copytree(rendered, tmp_path / "rendered")
    options = {"frames": 45, "log_every": 1, "transformer": TINY, "compiled": False}
    script = folder / "process.py"
    script.write_text(f"OPTIONS, CONFIG = {options!r}, {TINY_VAE!r}\n{PROCESS}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    root = str(Path(__file__).resolve().parents[2])
    env = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    launch += [str(folder), str(rendered)]
    done = subprocess.run(launch, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    for work in (folder, rendered):
        one, other = (torch.load(work / f"of_process_{i}.pt", weights_only=True) for i in range(2))
        assert same(dict(one), dict(other))
    for name, steps in (("autoencoder", 2), ("decoder", 1)):
        assert [row["step"] for row in rows(rendered / f"{name}.jsonl")] == [steps]
        assert checkpoint(rendered / f"{name}.pt")["settings"]["processes"] == 2
    log = rows(folder / stage.LOG)
    assert [row["step"] for row in log] == [1, 2]  # a row a step: one process writes

    torch.manual_seed(3)
    model = stage.Diffusion(4, TINY)
    clips = stage.LatentClips(folder, AutoencoderTinyVideo.from_pretrained(folder / "vae"), model.text_encoder)
    losses = []
    for process in (1, 2):
        shared, own = (np.random.default_rng([3, 0, i]) for i in (0, process))
        drawn = draw_layout("diffusion-forcing", shared, own, frames=45)
        with torch.no_grad():
            losses.append(float(stage.flow_loss(model, clips, drawn, own)))
    assert losses[0] != losses[1]
    assert log[0][drawn.name] == pytest.approx(np.mean(losses), abs=1e-4)
    with pytest.raises(InputError, match="processes: 2 -> 1"):
        train(folder, 3, "diffusion-forcing", **options)


def test_the_script_trains_draws_and_says_what_is_wrong(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(stage, "TRANSFORMER", stage.TRANSFORMER | TINY)
    monkeypatch.setattr(stage, "draw_layout", lambda *a, frames: draw_layout(*a, frames=45))
    monkeypatch.setattr(stage, "largest_batch", lambda *a: 1)
    common = ["--stage", "diffusion", "--folder", str(folder), "--no-compile", "--steps", "2"]
    assert train_embedded.main([*common, "--layout", "teacher-forcing", "--plot"]) == 0
    assert {name.rstrip("0123456789") for name in rows(folder / stage.LOG)[0]} == {"step", "lr", "forcing"}
    assert (folder / "diffusion.png").read_bytes().startswith(b"\x89PNG")
    assert train_embedded.main([*common, "--layout", "diffusion-forcing"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train_embedded: checkpoint=")
    assert "layout: 'teacher-forcing' -> 'diffusion-forcing'" in error


def test_the_scripts_layouts_are_those_that_there_are() -> None:
    for layout in LAYOUTS:
        assert train_embedded.parse(["--layout", layout]).layout == layout
    assert train_embedded.parse([]).layout == "mixed"


def test_stages_that_only_prepare_are_refused_on_many_processes(tmp_path: Path) -> None:
    class Two:
        num_processes = 2

    args = train_embedded.parse(["--folder", str(tmp_path)])
    with pytest.raises(InputError, match=r"stage='world': runs on one process, and there are 2; run it without"):
        train_embedded.run_stage("world", args, Two())
    assert not list(tmp_path.iterdir())
