"""The training loop of a student: a critic update every step, a generator update every so many.

Self-Forcing's loop (arXiv 2506.08009, algorithm 1, with DMD as released): the generator learns from the difference of
two scores of its own clips, the critic keeps up with the generator. Runs on any number of processes through accelerate
(DistributedDataParallel); a run that was stopped goes on exactly where it was, because every draw follows from the
seed, the step and the process.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from longvid.errors import InputError
from longvid.precision import warn_if_slow
from longvid.training.distill.adapter import adapter_rank, set_trained_weights, trained_weights
from longvid.training.distill.clip import decode_clip, judged_clip
from longvid.training.distill.config import StudentConfig, plain, require_same
from longvid.training.distill.dmd import critic_loss, generator_loss, match
from longvid.training.distill.draws import Draws, SeededDraws
from longvid.training.distill.network import Network
from longvid.training.distill.prompts import Prompts
from longvid.training.distill.reward import Reward, RewardScale, find_reward, reward_weight
from longvid.training.distill.rollouts import RolloutPlan, roll_out
from longvid.training.distill.student import LOG, Parts
from longvid.training.journal import JsonLog

CHECKPOINT = "distillation.pt"


class StudentRollout(nn.Module):
    """A whole rollout as one module's forward: what DistributedDataParallel needs to see as one call."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, text: Tensor, draws: Draws, plan: RolloutPlan) -> Tensor:
        return roll_out(self.network, text, draws, plan)


class Distiller:
    """Trains `parts.student` (and `parts.critic`) as `config` says; `folder` holds the checkpoint and the log.

    reward: of Re-DMD, when not the one that the config names. Raises InputError for a folder whose training had other
    settings, FloatingPointError when a loss is not finite.
    """

    def __init__(
        self,
        parts: Parts,
        config: StudentConfig,
        prompts: Prompts,
        folder: Path,
        *,
        accelerator: Accelerator | None = None,
        reward: Reward | None = None,
    ) -> None:
        self.parts, self.config, self.prompts, self.folder = parts, config, prompts, folder
        self.accelerator = accelerator or Accelerator()
        self.plan = config.plan(parts.latent_shape(config.height, config.width))
        self.judging = config.judging()
        self.reward = reward or (find_reward(config.reward) if config.reward else None)
        self.scale = RewardScale(config.reward_calibration)
        self.step = 0
        if adapter_rank(parts.student) != config.lora_rank:
            raise InputError(f"lora_rank={config.lora_rank}: the student's adapter has {adapter_rank(parts.student)}")
        device = self.accelerator.device
        parts.pipe.to(device)
        warn_if_slow("precision", getattr(torch, config.precision), device)
        how: dict[str, Any] = {"precision": getattr(torch, config.precision), "recompute": config.recompute}
        self._teacher = Network(parts.teacher.to(device), **how)
        self._generator = self.accelerator.prepare_model(StudentRollout(Network(parts.student, **how)))
        self._critic = self.accelerator.prepare_model(Network(parts.critic, **how))
        self._trained = [p for p in parts.student.parameters() if p.requires_grad]
        options: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay}
        self._optimizers = {
            "generator": torch.optim.AdamW(self._trained, lr=config.learning_rate, **options),
            "critic": torch.optim.AdamW(parts.critic.parameters(), lr=config.critic_learning_rate, **options),
        }
        self._ema: dict[str, Tensor] | None = None
        self._negative = parts.embed([config.negative_prompt]).to(device)
        self._load()
        self._log = JsonLog(folder / LOG)
        if self.accelerator.is_main_process:
            self._log.cut(self.step)

    # ---------------------------------------------------------------- the loop

    def train(self, steps: int, *, log_every: int = 10, save_every: int = 100) -> None:
        """Go on to `steps` steps in all; saves at the end, too."""
        began, sums = time.perf_counter(), dict[str, list[float]]()
        while self.step < steps:
            for name, value in self.train_step().items():
                sums.setdefault(name, []).append(value)
            if (self.step % log_every == 0 or self.step == steps) and self.accelerator.is_main_process:
                means = {name: float(np.mean(values)) for name, values in sorted(sums.items())}
                self._log.write(step=self.step, seconds=time.perf_counter() - began, **means)
                sums.clear()
            if self.step % save_every == 0 or self.step == steps:
                self.save()

    def train_step(self) -> dict[str, float]:
        """One step: the generator's update when it is due, the critic's always. Gives what the log records."""
        config, facts = self.config, dict[str, float]()
        if self.step >= config.critic_warmup and self.step % config.generator_every == 0:
            facts |= self._update("generator", self._generator, self._generator_pass)
            self._average()
        facts |= self._update("critic", self._critic, self._critic_pass)
        self.step += 1
        return facts

    def _update(self, name: str, module: nn.Module, one_pass: Any) -> dict[str, float]:
        """Zero, accumulate, step once. (The released Reward-Forcing trainer steps on growing sums.)"""
        optimizer, count = self._optimizers[name], self.config.accumulate
        optimizer.zero_grad(set_to_none=True)
        seen: list[dict[str, float]] = []
        for micro in range(count):
            draws = self._draws(name, micro)
            prompts = self._prompts(name, micro)
            with contextlib.nullcontext() if micro + 1 == count else self.accelerator.no_sync(module):
                loss, facts = one_pass(prompts, draws)
                self.accelerator.backward(loss / count)
            seen.append(facts | {f"{name}_loss": float(loss.detach())})
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.clip_norm)
        means = self._mean({key: float(np.mean([one[key] for one in seen])) for key in seen[0]})
        means[f"{name}_gradient_norm"] = float(norm)
        if not all(np.isfinite(value) for value in means.values()):
            raise FloatingPointError(f"step {self.step}: {means}; lower the learning rate, or resume from before")
        optimizer.step()
        return means

    def _generator_pass(self, prompts: list[str], draws: Draws) -> tuple[Tensor, dict[str, float]]:
        text = self.parts.embed(prompts)
        clip = self._clip(text, draws)
        negative = self._negative.expand(len(prompts), -1, -1)
        x = clip.latents.detach()
        matching = match(self._teacher, self._critic, x, text, negative, draws, self.judging)
        facts = {"dmd_gradient": float(matching.gradient.abs().mean())}
        weight, more = self._weights(x, prompts)
        return generator_loss(clip, matching.gradient, weight), facts | more

    def _critic_pass(self, prompts: list[str], draws: Draws) -> tuple[Tensor, dict[str, float]]:
        text = self.parts.embed(prompts)
        with torch.no_grad():
            clip = self._clip(text, draws)
        return critic_loss(self._critic, clip.latents, text, draws, self.judging), {}

    def _clip(self, text: Tensor, draws: Draws) -> Any:
        config = self.config
        latents = self._generator(text, draws, self.plan)
        vae = self.parts.pipe.vae if config.reencode_first else None
        return judged_clip(latents, config.clip_frames, config.frames_per_block, vae)

    def _weights(self, latents: Tensor, prompts: list[str]) -> tuple[Tensor | None, dict[str, float]]:
        """Re-DMD's weights [B] of the clips; None without a reward."""
        if self.reward is None:
            return None, {}
        config, video = self.config, decode_clip(latents, self.parts.pipe.vae)
        rewards = [float(r) for r in self.reward(video, prompts, self.parts.pipe.fps)]
        if len(rewards) != len(prompts):
            raise InputError(f"reward={config.reward!r}: gave {len(rewards)} numbers for {len(prompts)} clips")
        if self.scale.ready:
            weight = reward_weight(self.scale(rewards), config.reward_beta, config.reward_clip)
        else:
            weight = torch.ones(len(rewards), dtype=torch.float64)
            every = self.accelerator.gather(torch.tensor(rewards, dtype=torch.float64, device=latents.device))
            self.scale.add(every.tolist())
        return weight.to(latents.device), {"reward": float(np.mean(rewards)), "reward_weight": float(weight.mean())}

    def _average(self) -> None:
        """Moving average of the student's weights, from step `ema_start` on."""
        if self.step < self.config.ema_start:
            return
        weights = trained_weights(self.parts.student)
        if self._ema is None:
            self._ema = {name: w.detach().clone() for name, w in weights.items()}
            return
        for name, w in weights.items():
            self._ema[name].lerp_(w, 1 - self.config.ema_decay)

    # ---------------------------------------------------------------- draws and processes

    def _draws(self, name: str, micro: int) -> SeededDraws:
        rank = self.accelerator.process_index
        return SeededDraws(self.config.seed, name, self.step, micro, rank=rank, device=self.accelerator.device)

    def _prompts(self, name: str, micro: int) -> list[str]:
        place = [self.config.seed, self.step, micro, self.accelerator.process_index, int(name == "critic")]
        return self.prompts.draw(np.random.default_rng(place), self.config.batch_size)

    def _mean(self, facts: dict[str, float]) -> dict[str, float]:
        """Means over the processes."""
        values = torch.tensor(list(facts.values()), dtype=torch.float32, device=self.accelerator.device)
        reduced: Any = self.accelerator.reduce(values, "mean")
        return dict(zip(facts, reduced.tolist(), strict=True))

    # ---------------------------------------------------------------- checkpoints

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """What was trained of the student, as it is to be used: the moving average once there is one."""
        return self._ema if self._ema is not None else trained_weights(self.parts.student)

    def save(self) -> None:
        """Everything that the rest of the training depends on; the file is never half written."""
        if self.accelerator.is_main_process:
            state = {
                "step": self.step,
                "config": plain(self.config),
                "generator": trained_weights(self.parts.student),
                "critic": self.parts.critic.state_dict(),
                "ema": self._ema,
                "optimizers": {name: part.state_dict() for name, part in self._optimizers.items()},
                "reward": self.scale.state_dict(),
                "processes": self.accelerator.num_processes,
            }
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / f"{CHECKPOINT}.part"
            torch.save(state, partial)
            os.replace(partial, self.folder / CHECKPOINT)
        self.accelerator.wait_for_everyone()

    def _load(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location="cpu")
        require_same(state["config"], self.config)
        if state["processes"] != self.accelerator.num_processes:
            raise InputError(
                f"processes={self.accelerator.num_processes}: the training to resume ran on {state['processes']}"
            )
        set_trained_weights(self.parts.student, state["generator"])
        self.parts.critic.load_state_dict(state["critic"])
        for name, part in self._optimizers.items():
            part.load_state_dict(state["optimizers"][name])
        if state["ema"] is not None:
            self._ema = {name: w.to(self.accelerator.device) for name, w in state["ema"].items()}
        self.scale.load_state_dict(state["reward"])
        self.step = int(state["step"])
