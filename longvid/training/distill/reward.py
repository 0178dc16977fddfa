"""Rewards of Re-DMD (Reward Forcing, arXiv 2512.04678, sec. 3.3): a clip counts exp(beta * reward) times.

The paper's reward is the motion quality of a vision-language model (VideoAlign). Any callable does; the one here needs
no weights: how fast the subject moves, less what is not motion but unrest.

Shape letters: B batch, T video frames, H W pixels.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from longvid.errors import InputError

Reward = Callable[[Tensor, Sequence[str], float], Any]
"""(video float32 [B, 3, T, H, W] in [-1, 1], its B prompts, frames a second) -> B numbers, more is better."""

STILL = 0.1
"""Speed, in shorter sides a second, that hardly counts: bounds the reward of no motion at all."""
FASTEST = 1.0
"""Speed above which more is not better: flicker on a smooth background gives flow of several sides a second."""
UNREST = 100.0
"""What roughness costs: 1 % of it, 2.5 grey levels, costs what going e times as fast would gain."""


def motion_reward(video: Tensor, prompts: Sequence[str], fps: float) -> list[float]:
    """log(min(speed, FASTEST) + STILL) - UNREST * roughness, of each clip.

    speed: of the fastest 5 % of the picture by optical flow, in shorter sides a second. roughness: the share of full
    scale by which middle frames miss what their neighbours' flow predicts. Flicker and noise also give flow, so speed
    alone is paid for falling apart; roughness is what they cannot avoid.

    Raises MissingExtraError without OpenCV (extra "eval").
    """
    from longvid.metrics.motion import measure_motion
    from longvid.pipelines.output import to_uint8

    rewards = []
    for frames in to_uint8(video):
        motion = measure_motion(frames, fps)
        speed = min(motion.per_second, FASTEST)
        rewards.append(math.log(speed + STILL) - UNREST * (1.0 - motion.smoothness))
    return rewards


def find_reward(name: str) -> Reward:
    """ "motion", or a function of your own as "package.module:function".

    Raises InputError for a name that leads nowhere.
    """
    if name == "motion":
        return motion_reward
    module, colon, function = name.partition(":")
    if not (colon and module and function):
        raise InputError(f"reward={name!r}: must be 'motion' or 'package.module:function'")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise InputError(f"reward={name!r}: {module} cannot be imported ({error})") from None
    if not callable(found):
        raise InputError(f"reward={name!r}: {module} has no function {function!r}")
    return found  # type: ignore[no-any-return]


class RewardScale:
    """Normalises a reward with the mean and deviation of the first clips, which it sees before any is weighted.

    The paper takes both from its reward model's own data. Without them exp(beta * r) would depend on the reward's unit.
    """

    def __init__(self, clips: int) -> None:
        self._clips = clips
        self._seen: list[float] = []
        self._fixed: tuple[float, float] | None = None

    def add(self, rewards: Sequence[float]) -> None:
        """Take in rewards while calibrating; later ones change nothing."""
        if self._fixed is not None:
            return
        self._seen += rewards
        if len(self._seen) >= self._clips:
            seen = torch.tensor(self._seen, dtype=torch.float64)
            self._fixed = (float(seen.mean()), max(float(seen.std()), 1e-6))
            self._seen = []

    @property
    def ready(self) -> bool:
        return self._fixed is not None

    def __call__(self, rewards: Sequence[float]) -> Tensor:
        """float64 [B], zero mean and unit deviation on the calibration clips; zeros until it is done."""
        values = torch.tensor(list(rewards), dtype=torch.float64)
        if self._fixed is None:
            return torch.zeros_like(values)
        mean, deviation = self._fixed
        return (values - mean) / deviation

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self._seen), "fixed": self._fixed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen, self._fixed = list(state["seen"]), None if state["fixed"] is None else tuple(state["fixed"])


def reward_weight(normalised: Tensor, beta: float, bound: float | None) -> Tensor:
    """exp(beta * r), eq. 9, the reward kept within +-bound if one is given."""
    if bound is not None:
        normalised = normalised.clamp(-bound, bound)
    return torch.exp(beta * normalised)
