"""Training end to end on a tiny random model: a few steps, exact resume, export, the script."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import longvid
from longvid.errors import InputError, OutputError
from longvid.training import world
from longvid.training.curves import plot_training
from longvid.training.distill.config import StudentConfig, plain, student_config
from longvid.training.distill.draws import SeededDraws
from longvid.training.distill.prompts import FilePrompts, WorldPrompts, find_prompts
from longvid.training.distill.reward import RewardScale, find_reward, motion_reward, reward_weight
from longvid.training.distill.student import LOG, export_student, load_parts
from longvid.training.distill.trainer import CHECKPOINT, Distiller
from longvid.training.journal import changed

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import train_student

DEFAULTS = {"train_frames": 9, "frames_per_block": 3, "shift": 3.0}
FAST = {"learning_rate": 1e-3, "critic_learning_rate": 1e-3, "generator_every": 2, "ema_start": 2, "batch_size": 2}
KINDS = {
    "self-forcing": {},
    "rolling-forcing": {"steps": [1000, 700, 400], "rolling_share": 0.7},
    "reward-forcing": {"reward_calibration": 4},
}


def config_of(kind="self-forcing", **changes):
    return student_config(kind, DEFAULTS, FAST | KINDS[kind] | changes)


def distiller(folder, run, kind="self-forcing", reward=None, **changes):
    torch.manual_seed(0)  # nothing may depend on it
    return Distiller(load_parts(folder), config_of(kind, **changes), WorldPrompts(), run, reward=reward)


def rows(run):
    return [json.loads(line) for line in (run / LOG).read_text().splitlines()]


def numbers(state):
    return torch.cat([x.double().flatten() for x in state.values()])


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_few_steps_are_finite_and_move_both_networks(kind, tiny_folder, tmp_path):
    training = distiller(tiny_folder, tmp_path / "run", kind)
    before = {n: numbers(m.state_dict()).clone() for n, m in vars_of(training).items()}
    training.train(4, log_every=1, save_every=10)
    assert not torch.equal(before["student"], numbers(training.parts.student.state_dict()))
    assert not torch.equal(before["critic"], numbers(training.parts.critic.state_dict()))
    assert torch.equal(before["teacher"], numbers(training.parts.teacher.state_dict()))
    logged = rows(tmp_path / "run")
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    assert all(math.isfinite(value) for row in logged for value in row.values())
    assert ["generator_loss" in row for row in logged] == [True, False, True, False]
    assert all("critic_loss" in row for row in logged)
    assert ("reward" in logged[0]) == (kind == "reward-forcing")


def vars_of(training):
    return {"student": training.parts.student, "critic": training.parts.critic, "teacher": training.parts.teacher}


@pytest.mark.parametrize("kind", ["rolling-forcing", "reward-forcing"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(kind, tiny_folder, tmp_path):
    more = {"accumulate": 2} if kind == "rolling-forcing" else {}
    whole = distiller(tiny_folder, tmp_path / "whole", kind, **more)
    whole.train(4, log_every=1)
    half = distiller(tiny_folder, tmp_path / "half", kind, **more)
    half.train(2, log_every=1)
    half._log.write(step=3)  # a row of a step that was done after the last checkpoint
    resumed = distiller(tiny_folder, tmp_path / "half", kind, **more)
    assert resumed.step == 2
    resumed.train(4, log_every=1)
    for name in ("student", "critic"):
        one, other = (numbers(vars_of(t)[name].state_dict()) for t in (whole, resumed))
        assert torch.equal(one, other), name
    assert torch.equal(numbers(whole.weights), numbers(resumed.weights))
    drop = {"seconds"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in rows(tmp_path / "whole")] == [
        {k: v for k, v in row.items() if k not in drop} for row in rows(tmp_path / "half")
    ]


def test_the_average_is_a_copy_first_and_trails_then(tiny_folder, tmp_path):
    training = distiller(tiny_folder, tmp_path / "run", ema_decay=0.9, generator_every=1)
    training.train(2)  # ema_start = 2: not begun
    assert torch.equal(numbers(training.weights), numbers(training.parts.student.state_dict()))
    training.train(3)
    first = numbers(training.parts.student.state_dict()).clone()
    assert torch.equal(numbers(training.weights), first)
    training.train(4)
    second = numbers(training.parts.student.state_dict())
    torch.testing.assert_close(numbers(training.weights), 0.9 * first + 0.1 * second, atol=1e-6, rtol=1e-5)


def test_accumulated_passes_are_one_mean_gradient(tiny_folder, tmp_path):
    """Two passes of one clip equal their mean: the step sees the mean of the two gradients."""
    training = distiller(tiny_folder, tmp_path / "run", accumulate=2, batch_size=1)
    parts = []
    for micro in range(2):
        training.parts.student.zero_grad()
        loss, _ = training._generator_pass(training._prompts("generator", micro), training._draws("generator", micro))
        loss.backward()
        parts.append(numbers({n: p.grad.clone() for n, p in training.parts.student.named_parameters()}))
    training._update("generator", training._generator, training._generator_pass)
    got = numbers({n: p.grad for n, p in training.parts.student.named_parameters()})
    expected = (parts[0] + parts[1]) / 2
    expected *= min(1.0, training.config.clip_norm / float(expected.norm()))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)


def test_warm_up_leaves_the_generator_alone(tiny_folder, tmp_path):
    training = distiller(tiny_folder, tmp_path / "run", critic_warmup=2)
    before = numbers(training.parts.student.state_dict()).clone()
    training.train(2)
    assert torch.equal(before, numbers(training.parts.student.state_dict()))
    training.train(3)
    assert not torch.equal(before, numbers(training.parts.student.state_dict()))


def test_other_settings_are_refused_by_name(tiny_folder, tmp_path):
    distiller(tiny_folder, tmp_path / "run").train(1)
    with pytest.raises(InputError, match=r"guidance: 4.0 -> 2.0"):
        distiller(tiny_folder, tmp_path / "run", guidance=2.0)


@pytest.mark.parametrize("judgement", ["bidirectional", "causal"])
def test_rollouts_longer_than_the_clip_train_too(judgement, tiny_folder, tmp_path):
    training = distiller(tiny_folder, tmp_path / "run", rollout_frames=[12, 15], judgement=judgement)
    training.train(2, log_every=1)
    assert all(math.isfinite(v) for row in rows(tmp_path / "run") for v in row.values())


def test_a_reward_of_ones_own_sees_the_video_and_weights_the_clip(tiny_folder, tmp_path):
    seen = []

    def reward(video, prompts, fps):
        seen.append((tuple(video.shape), len(prompts), fps))
        return [float(len(seen)), -float(len(seen))]

    training = distiller(
        tiny_folder,
        tmp_path / "run",
        "reward-forcing",
        reward,
        reward_calibration=4,
        generator_every=1,
        reward_clip=1.0,
    )
    training.train(4, log_every=1)
    assert seen == [((2, 3, 33, 64, 64), 2, 16.0)] * 4
    weights = [row["reward_weight"] for row in rows(tmp_path / "run")]
    assert weights[:2] == [1.0, 1.0]  # calibration
    assert weights[2] == pytest.approx(math.cosh(2.0), rel=1e-3)  # exp(2 r), r = +-1 by the bound


def test_a_reward_that_counts_wrong_is_refused(tiny_folder, tmp_path):
    with pytest.raises(InputError, match="1 numbers for 2 clips"):
        distiller(tiny_folder, tmp_path / "run", "reward-forcing", lambda *_: [0.0]).train(1)


def spoilt(frames, how, rng):
    if how == "still":
        return np.repeat(frames[40:41], len(frames), 0)
    if how == "noise":
        return np.clip(frames + rng.normal(0, 10, frames.shape), 0, 255).astype(np.uint8)
    if how == "still+noise":
        return spoilt(spoilt(frames, "still", rng), "noise", rng)
    if how == "flicker":
        return np.clip(frames * (1 + 0.06 * rng.normal(size=(len(frames), 1, 1, 1))), 0, 255).astype(np.uint8)
    return frames[rng.permutation(len(frames))]  # jumps


@pytest.mark.parametrize("how", ["still", "noise", "still+noise", "flicker", "jumps"])
@pytest.mark.parametrize("background", ["sunset", "desert"])
def test_the_motion_reward_pays_for_motion_and_not_for_falling_apart(how, background):
    pytest.importorskip("cv2")
    scene = world.Scene(colour="red", shape="ball", motion="bounce", background=background, speed="normal")
    frames = world.render(scene, 1, frames=49)
    clips = np.stack([frames, spoilt(frames, how, np.random.default_rng(0))])
    video = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    good, bad = motion_reward(video, ["", ""], 16.0)
    assert good > bad + 0.2


def test_the_motion_reward_prefers_faster_subjects():
    pytest.importorskip("cv2")
    clips = []
    for speed in ("slow", "normal", "fast"):
        scene = world.Scene(colour="red", shape="ball", motion="circle", background="hills", speed=speed)
        clips.append(world.render(scene, 1, frames=49))
    video = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    slow, normal, fast = motion_reward(video, [""] * 3, 16.0)
    assert slow < normal < fast


def test_rewards_are_normalised_by_the_first_clips_alone():
    scale = RewardScale(4)
    scale.add([0.0, 2.0])
    assert not scale.ready
    assert scale([5.0]).tolist() == [0.0]
    scale.add([4.0, 6.0])
    scale.add([1e6])
    other = RewardScale(4)
    other.load_state_dict(scale.state_dict())
    expected = (9.0 - 3.0) / np.std([0, 2, 4, 6], ddof=1)
    assert float(other([9.0])) == pytest.approx(expected)
    assert reward_weight(torch.tensor([0.5, 3.0]), 2.0, 1.0).tolist() == pytest.approx([math.e, math.e**2])


@pytest.mark.parametrize("name", ["speed", "longvid.nothing:f", "math:nothing", ":", "math:"])
def test_rewards_that_lead_nowhere(name):
    with pytest.raises(InputError, match="reward="):
        find_reward(name)
    assert find_reward("math:fsum") is math.fsum


def test_published_settings():
    one = student_config("self-forcing", {})
    assert (one.steps, one.shift, one.rollout_frames, one.clip_frames) == ((1000, 750, 500, 250), 5.0, (21, 21), 21)
    assert (one.learning_rate, one.critic_learning_rate, one.generator_every, one.guidance) == (2e-6, 4e-7, 5, 4.0)
    rolling = student_config("rolling-forcing", {})
    assert (rolling.rollout_frames, rolling.rolling_share, rolling.learning_rate) == ((21, 27), 0.5, 1.5e-6)
    assert rolling.cache.policy == "rolling"
    reward = student_config("reward-forcing", {})
    assert (reward.reward, reward.reward_beta, reward.cache.window) == ("motion", 2.0, 9)


def test_a_models_own_defaults_fit_the_student_to_it():
    config = config_of()
    assert (config.shift, config.clip_frames, config.rollout_frames) == (3.0, 9, (9, 9))
    assert student_config("self-forcing", DEFAULTS, {"cache": {"window": 12}}).cache.window == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_frames": 8}, "multiple of frames_per_block=3"),
        ({"rollout_frames": [9, 6]}, "shortest, longest"),
        ({"clip_frames": 12}, "at most the shortest rollout"),
        ({"rollout_frames": [9, 12], "clip_frames": 3}, "must exceed frames_per_block"),
        ({"judgement": "causl"}, "did you mean 'causal'"),
        ({"learning_rat": 1e-5}, "did you mean 'learning_rate'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"betas": [0.0]}, "two numbers"),
    ],
    ids=lambda c: ",".join(c) if isinstance(c, dict) else "",
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(InputError, match=message):
        config_of(**changes)


def test_changes_are_named():
    one = plain(config_of())
    other = plain(dataclasses.replace(config_of(), seed=1))
    other["cache"]["window"] = 3
    assert changed(one, other) == ["cache.window: 21 -> 3", "seed: 0 -> 1"]
    assert changed(one, plain(StudentConfig(**{f: getattr(config_of(), f) for f in one}))) == []


def test_a_student_is_a_model_folder_that_renders(tiny_folder, tmp_path):
    training = distiller(tiny_folder, tmp_path / "run", steps=[1000, 500])
    training.train(1)
    (tiny_folder / "probe.txt").write_text("kept")
    out = export_student(
        training.parts, training.weights, training.config, tmp_path / "student", log=tmp_path / "run" / LOG
    )
    assert (out / "probe.txt").read_text() == "kept"
    assert (out / "training" / LOG).exists()
    pipe = longvid.load(out, method="self-forcing", device="cpu")
    assert torch.equal(numbers(pipe.transformer.state_dict()), numbers(training.weights))
    method = pipe.method.schedule
    assert (method.steps, method.sampler, method.guidance_scale, method.shift) == ((1000, 500), "renoise", 1.0, 3.0)
    assert pipe("a red ball bounces", num_frames=9, seed=0, output_type="latent").frames.shape[2] == 3
    with pytest.raises(OutputError, match="exists"):
        export_student(training.parts, training.weights, training.config, out)
    with pytest.raises(OutputError, match="no model folder"):
        export_student(training.parts, training.weights, training.config, tmp_path / "run", overwrite=True)


def test_prompts_come_from_a_file_or_the_world(tiny_pipe, tmp_path, caplog):
    path = tmp_path / "prompts.txt"
    path.write_text("a red ball bounces\n\n  a zebra paints  \n")
    with caplog.at_level(logging.WARNING, "longvid"):
        prompts = find_prompts(path, tiny_pipe.text_encoder)
    assert prompts.lines == ["a red ball bounces", "a zebra paints"]
    assert "1 of 2 prompts" in caplog.text
    assert set(prompts.draw(np.random.default_rng(0), 20)) == set(prompts.lines)
    captions = find_prompts(None, tiny_pipe.text_encoder).draw(np.random.default_rng(0), 20)
    assert len(set(captions)) > 10
    with pytest.raises(InputError, match="one prompt a line"):
        find_prompts(None, object())
    with pytest.raises(InputError, match="cannot be read"):
        FilePrompts(tmp_path / "missing.txt")


def test_the_script_trains_goes_on_and_writes_a_student(tiny_folder, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "student"
    settings = [part for key, value in FAST.items() for part in ("--set", f"{key}={value}")]
    common = ["--kind", "self-forcing", "--model", str(tiny_folder), "--folder", str(run), *settings]
    assert train_student.main([*common, "--steps", "1"]) == 0
    command = [sys.executable, train_student.__file__, *common, "--steps", "2", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(run)] == [1, 2]
    assert (out / "model_index.json").exists()
    assert train_student.main([*common, "--steps", "3", "--set", "guidance=1.0"]) == 2
    assert capsys.readouterr().err.startswith("train_student: the training to resume had other settings (guidance: ")


def test_the_script_prints_its_settings(tiny_folder, capsys):
    arguments = ["--kind", "rolling-forcing", "--model", str(tiny_folder), "--steps", "9", "--dry-run"]
    assert train_student.main([*arguments, "--set", "cache.window=12"]) == 0
    shown = json.loads(capsys.readouterr().out)
    # five steps need five blocks, more than the clip's three
    assert (shown["cache"]["window"], shown["clip_frames"], shown["rollout_frames"]) == (12, 9, [15, 21])
    assert train_student.main([*arguments, "--set", "rollout_frames=[9,9]"]) == 2
    assert "a rolling window holds a block a step" in capsys.readouterr().err


class TwoProcesses(Distiller):
    """One process whose two accumulated passes draw as two processes do."""

    def _draws(self, name, micro):
        return SeededDraws(self.config.seed, name, self.step, 0, rank=micro)

    def _prompts(self, name, micro):
        place = [self.config.seed, self.step, 0, micro, int(name == "critic")]
        return self.prompts.draw(np.random.default_rng(place), self.config.batch_size)


@pytest.mark.slow
def test_two_processes_are_one_with_both_batches(tiny_folder, tmp_path):
    settings = [part for key, value in FAST.items() for part in ("--set", f"{key}={value}")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += [train_student.__file__, "--kind", "rolling-forcing", "--model", str(tiny_folder), "--steps", "3"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    command = [*launch, "--folder", str(tmp_path / "two"), *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    config = student_config("rolling-forcing", DEFAULTS, FAST | {"accumulate": 2})
    one = TwoProcesses(load_parts(tiny_folder), config, WorldPrompts(), tmp_path / "one")
    one.train(3)
    two = torch.load(tmp_path / "two" / CHECKPOINT, weights_only=True)
    assert two["processes"] == 2
    # Adam's first steps are +-lr whatever the gradient's size: compare against how far the weights went.
    for name, mine in (("generator", one.parts.student), ("critic", one.parts.critic)):
        start = numbers(load_parts(tiny_folder).student.state_dict())
        moved = (numbers(mine.state_dict()) - start).norm()
        assert (numbers(mine.state_dict()) - numbers(two[name])).norm() < 0.01 * moved
    with pytest.raises(InputError, match="processes=1"):
        Distiller(
            load_parts(tiny_folder), student_config("rolling-forcing", DEFAULTS, FAST), WorldPrompts(), tmp_path / "two"
        )


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    log = tmp_path / LOG
    log.write_text(
        "".join(json.dumps({"step": i, "critic_loss": 1 / i, "dmd_gradient": 0.1}) + "\n" for i in (1, 2, 3))
    )
    assert plot_training(log, tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
