"""What a student is and how it is trained: one frozen schema for Python, files and the command line.

`student_config(kind, model)` gives the published numbers of a method, fitted to a model folder's own sampling defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longvid.cache.policies import policy_from_config
from longvid.config import CacheConfig, MethodConfig, finite, from_mapping, one_of, require, to_mapping, whole
from longvid.errors import InputError
from longvid.pipelines.schedules.sigmas import step_sigmas
from longvid.presets import merge, resolve_method
from longvid.training.distill.dmd import Judging
from longvid.training.distill.rollouts import RolloutPlan
from longvid.training.distill.scores import JUDGEMENTS
from longvid.training.journal import changed

KINDS = ("self-forcing", "rolling-forcing", "reward-forcing")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentConfig:
    """A student. Lengths are in latent frames; one update of the critic is one step."""

    kind: str
    """"self-forcing", "rolling-forcing" or "reward-forcing"."""
    steps: tuple[float, ...]
    """Denoising timesteps of the student, before the warp by `shift`."""
    shift: float
    """Timestep shift of the student's steps and of the levels at which clips are judged."""
    frames_per_block: int
    """Latent frames of a block."""
    cache: CacheConfig
    """What the student remembers; the method's own, so that training and inference agree."""
    rollout_frames: tuple[int, int]
    """Shortest and longest rollout; the length is drawn a pass."""
    clip_frames: int
    """Newest frames of a rollout, those that are judged and carry gradient."""
    rolling_share: float = 0.0
    """Share of the passes that roll with joint windows (Rolling Forcing: one half)."""
    judgement: str = "bidirectional"
    """How the scores look at a clip: "bidirectional" (published) or "causal" (for bases trained block by block)."""
    guidance: float = 4.0
    """Guidance of the real score, u + g (c - u). The released codes' guidance_scale 3 is 4 here."""
    negative_prompt: str = ""
    """Prompt of the real score's unconditional branch."""
    reencode_first: bool = True
    """Make the first frame of a clip out of a longer rollout a picture again, through the VAE."""
    reward: str = ""
    """Re-DMD's reward: "" for none, "motion", or "package.module:function"."""
    reward_beta: float = 2.0
    """The loss is weighted by exp(beta * reward), the reward normalised. The paper divides by its beta = 1/2."""
    reward_clip: float | None = None
    """Bound of the normalised reward's size; None as published: no bound."""
    reward_calibration: int = 64
    """Clips of the untrained student that fix the reward's mean and deviation; they are not weighted."""
    batch_size: int = 1
    """Clips a process a pass."""
    accumulate: int = 1
    """Passes an update."""
    generator_every: int = 5
    """Critic updates for one of the generator."""
    critic_warmup: int = 0
    """First steps, in which only the critic learns. 0 as published."""
    learning_rate: float = 2e-6
    """Of the generator; AdamW."""
    critic_learning_rate: float = 4e-7
    """Of the critic; AdamW."""
    betas: tuple[float, ...] = (0.0, 0.999)
    """AdamW's."""
    weight_decay: float = 0.01
    """AdamW's."""
    clip_norm: float = 10.0
    """Largest gradient norm."""
    ema_decay: float = 0.99
    """Moving average of the generator, an update."""
    ema_start: int = 200
    """Step at which the average begins, with a copy of the weights."""
    precision: str = "float32"
    """Of matrix products; weights stay float32."""
    recompute: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    height: int | None = None
    """Pixels; None takes the model's."""
    width: int | None = None
    """Pixels; None takes the model's."""
    lora_rank: int = 0
    """Rank of the adapter that is trained in place of the student's weights; 0 trains them all."""
    seed: int = 0
    """Every draw of the training follows from it."""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        one_of("judgement", self.judgement, JUDGEMENTS)
        one_of("precision", self.precision, PRECISIONS)
        require(len(self.steps) > 0, "steps", self.steps, "must hold one timestep or more")
        low, high = self._pair("rollout_frames")
        n = self.frames_per_block
        for name, value in (("rollout_frames", low), ("rollout_frames", high), ("clip_frames", self.clip_frames)):
            require(value > 0 and value % n == 0, name, value, f"must be a multiple of frames_per_block={n}")
        require(low <= high, "rollout_frames", self.rollout_frames, "must be (shortest, longest)")
        rule = f"must be at most the shortest rollout, {low}"
        require(self.clip_frames <= low, "clip_frames", self.clip_frames, rule)
        if high > self.clip_frames:
            rule = f"must exceed frames_per_block={n}: a longer rollout's first judged block is left out of the loss"
            require(self.clip_frames > n, "clip_frames", self.clip_frames, rule)
        if self.rolling_share:
            rule = f"must be {len(self.steps) * n} frames or more: a rolling window holds a block a step"
            require(low >= len(self.steps) * n, "rollout_frames", self.rollout_frames, rule)
        self._pair("betas")
        for name in ("batch_size", "accumulate", "generator_every"):
            whole(name, getattr(self, name), 1)
        for name in ("critic_warmup", "ema_start", "lora_rank", "seed"):
            whole(name, getattr(self, name), 0)
        for name in ("learning_rate", "critic_learning_rate", "weight_decay", "guidance", "reward_beta", "clip_norm"):
            finite(name, getattr(self, name), 0)
        finite("rolling_share", self.rolling_share, 0, 1)
        finite("ema_decay", self.ema_decay, 0, 1)
        if self.reward:
            whole("reward_calibration", self.reward_calibration, 2)

    def _pair(self, name: str) -> Any:
        value = getattr(self, name)
        require(len(value) == 2, name, value, "must hold two numbers")
        return value

    def plan(self, latent: tuple[int, int, int]) -> RolloutPlan:
        """The rollouts of training, for latents (C, h, w)."""
        n = self.frames_per_block
        low, high = self.rollout_frames
        return RolloutPlan(
            sigmas=step_sigmas(self.steps, self.shift),
            frames_per_block=n,
            policy=policy_from_config(self.cache, n, total_frames=high),
            blocks=(low // n, high // n),
            trained_frames=self.clip_frames,
            latent=latent,
            context_noise=self.cache.context_noise,
            rolling_share=self.rolling_share,
        )

    def judging(self) -> Judging:
        return Judging(
            shift=self.shift,
            guidance=self.guidance,
            judgement=self.judgement,  # type: ignore[arg-type]
            frames_per_block=self.frames_per_block,
        )


def student_config(
    kind: str, model_defaults: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> StudentConfig:
    """The published training of a kind on a model.

    Steps and cache are the method's; shift, block and clip length the model folder's, where it names them (entries of
    its model_index.json). overrides: plain values over all of it, such as {"learning_rate": 1e-5}.

    Raises InputError or UnknownNameError for what cannot be.
    """
    one_of("kind", kind, KINDS)
    known = {key: model_defaults.get(key) for key in ("shift", "frames_per_block")}
    method: MethodConfig = resolve_method(kind, model_defaults=known)
    n = method.schedule.frames_per_block
    clip = int(model_defaults.get("train_frames") or 21) // n * n
    values: dict[str, Any] = {
        "kind": kind,
        "steps": list(method.schedule.steps),
        "shift": method.schedule.shift,
        "frames_per_block": n,
        "cache": to_mapping(method.cache),
        "rollout_frames": [clip, clip],
        "clip_frames": clip,
    }
    if kind == "rolling-forcing":
        # 27 frames, half of the passes rolling; lr 1.5e-6 (released configuration).
        shortest = max(clip, len(method.schedule.steps) * n)  # a window of as many blocks as steps
        values |= {"rollout_frames": [shortest, shortest + 2 * n], "rolling_share": 0.5, "learning_rate": 1.5e-6}
    elif kind == "reward-forcing":
        values |= {"reward": "motion"}
    config: StudentConfig = from_mapping(StudentConfig, merge(values, overrides or {}))
    return config


def require_same(saved: Mapping[str, Any], config: StudentConfig) -> None:
    """Raise InputError naming what differs, unless a saved config is this one."""
    saved = plain(from_mapping(StudentConfig, saved))  # settings that are newer than the checkpoint: their defaults
    if differences := changed(saved, plain(config)):
        raise InputError(f"the training to resume had other settings ({'; '.join(differences)}); use another --folder")


def plain(config: StudentConfig) -> dict[str, Any]:
    """The config as JSON-able values."""
    return to_mapping(config)
