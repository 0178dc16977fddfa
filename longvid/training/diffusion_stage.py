"""Stage *diffusion*: flow matching on the world's latents, on the stock WanTransformer3DModel.

x_sigma = (1 - sigma) x0 + sigma noise, the model predicts v = noise - x0 (rectified flow, arXiv 2209.03003), one noise
level a block or a frame. Who sees whom is a layout of longvid/training/layouts.py: the embedded model's mixture,
teacher forcing, or diffusion forcing (arXiv 2407.01392).

Runs on any number of processes through accelerate (DistributedDataParallel). Every draw follows from the seed, the step
and the process, so a run that was stopped goes on exactly where it was.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from longvid.config import one_of, require, whole
from longvid.models.autoencoder import AutoencoderTinyVideo
from longvid.models.captions import CaptionEncoder
from longvid.precision import low_precision
from longvid.training import world
from longvid.training.backbone import sequence_forward
from longvid.training.journal import JsonLog, load_checkpoint, save_checkpoint
from longvid.training.layouts import LAYOUTS, Layout, draw_layout, largest_batch

CHECKPOINT, LOG = "diffusion.pt", "diffusion.jsonl"
TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "text_dim": 64,
    "freq_dim": 128,
    "ffn_dim": 768,
    "num_layers": 8,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
}
CAPTION_DROP = 0.10  # whole captions, for classifier-free guidance
EMA_EVERY = 4  # steps between updates of the moving average
SLOT_DROP = 0.06  # single slots, so that a caption may leave things open


class Diffusion(nn.Module):
    """The two trained modules together: the transformer and the caption encoder.

    channels: of a latent. transformer: changes to ``TRANSFORMER``. compiled: run the forward through torch.compile.
    """

    def __init__(self, channels: int, transformer: Mapping[str, Any] | None = None, *, compiled: bool = False) -> None:
        super().__init__()
        config = TRANSFORMER | dict(transformer or {})
        self.transformer = WanTransformer3DModel(in_channels=channels, out_channels=channels, **config)
        self.text_encoder = CaptionEncoder(text_dim=config["text_dim"])
        self._sequence = torch.compile(sequence_forward, dynamic=False) if compiled else sequence_forward

    def forward(self, noisy: Tensor, sigma: Tensor, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Velocity float32 [B, C, K, h, w] of a sequence, its products in bfloat16 where the device multiplies it.

        noisy: [B, C, K, h, w]. sigma: [B, K] in [0, 1]. ids: caption rows [B, 5]. positions: [K]. mask: bool [K, K].
        """
        with low_precision(noisy.device):
            text = self.text_encoder(ids)
            velocity = self._sequence(self.transformer, noisy, 1000 * sigma, text, positions, mask)
        return velocity.float()


class Optimizers:
    """Muon for the blocks' matrices, AdamW for everything else, one learning-rate factor for both."""

    def __init__(self, model: Diffusion, *, muon_lr: float, adam_lr: float) -> None:
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".blocks." in f".{n}"]
        chosen = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        self._parts = (
            torch.optim.Muon(matrices, lr=muon_lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
        )
        self._lr = (muon_lr, adam_lr)

    def step(self, factor: float) -> None:
        for part, lr in zip(self._parts, self._lr, strict=True):
            for group in part.param_groups:
                group["lr"] = lr * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, object]:
        return {str(i): part.state_dict() for i, part in enumerate(self._parts)}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        for i, part in enumerate(self._parts):
            part.load_state_dict(state[str(i)])


class LatentClips:
    """Latents, captions and subject places of the encoded clips; draws batches for a layout."""

    def __init__(self, folder: Path, vae: AutoencoderTinyVideo, text: CaptionEncoder) -> None:
        self._latents = np.load(folder / "latents.npy", mmap_mode="r")
        self._place = np.load(folder / "videos_place.npy")
        scenes = json.loads((folder / "videos.json").read_text())["scenes"]
        concepts = [dict(zip(world.CHOICES, s, strict=True)) for s in scenes]
        self._ids = text.ids(concepts)
        self._open = text.ids([{}])
        self._vae = vae
        self.channels = self._latents.shape[1]

    def __len__(self) -> int:
        return len(self._latents)

    def draw(self, rng: np.random.Generator, batch: int, span: int) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised latents [B, C, span, h, w], caption rows [B, 5] with drops, loss weights [B, 1, span, h, w]."""
        index = rng.choice(len(self._latents), batch, replace=False)
        last = self._latents.shape[2] - span
        # half of the clips begin where videos begin, the others anywhere: a sliding window has no first frame
        begin = np.where(rng.uniform(size=batch) < 0.5, 0, rng.integers(0, last + 1, batch))
        crop = np.stack([self._latents[i, :, b : b + span] for i, b in zip(index, begin, strict=True)])
        latents = self._vae.normalize(torch.from_numpy(crop.astype(np.float32)))
        place = np.stack([self._place[i, b : b + span] for i, b in zip(index, begin, strict=True)])
        ids = self._ids[torch.from_numpy(index)].clone()
        drop = torch.from_numpy(rng.uniform(size=ids.shape) < SLOT_DROP)
        drop |= torch.from_numpy(rng.uniform(size=(batch, 1)) < CAPTION_DROP)
        return latents, torch.where(drop, self._open, ids), subject_weight(torch.from_numpy(place), latents.shape[-1])


def subject_weight(place: Tensor, side: int) -> Tensor:
    """[B, F, 3] (x, y, r) -> [B, 1, F, h, w], mean 1: latents around the subject count up to six times as much.

    The subject fills few latents; without this its shape is learned last, or never.
    """
    axis = (torch.arange(side) + 0.5) / side
    x, y, r = (place[..., i, None, None] for i in range(3))
    square = (axis[None, None, None, :] - x) ** 2 + (axis[None, None, :, None] - y) ** 2
    weight = 1 + 5 * torch.exp(-square / (1.05 * r) ** 2)
    return (weight / weight.mean((-1, -2), keepdim=True))[:, None].float()


def flow_loss(model: nn.Module, clips: LatentClips, layout: Layout, rng: np.random.Generator) -> Tensor:
    """Weighted velocity error of one batch in a layout, its clips and noise drawn from ``rng``.

    model: a :class:`Diffusion`, or accelerate's wrapper around one.
    """
    device = next(model.parameters()).device
    source, trained = torch.from_numpy(layout.source), torch.from_numpy(layout.loss).to(device)
    clean, ids, weight = clips.draw(rng, len(layout.sigma), layout.span)
    x0 = clean[:, :, source].to(device)
    noise = torch.from_numpy(rng.standard_normal(tuple(x0.shape), dtype=np.float32)).to(device)
    sigma = torch.from_numpy(layout.sigma.astype(np.float32)).to(device)
    s = sigma[:, None, :, None, None]
    mask = torch.from_numpy(layout.mask).to(device)
    v = model((1 - s) * x0 + s * noise, sigma, ids.to(device), source.float().to(device), mask)
    error = (v - (noise - x0)).square() * weight[:, :, source].to(device)
    return error[:, :, trained].mean()


def learning_rate_factor(step: int, steps: int, *, warm_up: int = 200, decay_share: float = 0.35) -> float:
    """Warm up, hold, decay to 2 % over the last ``decay_share`` of the steps: holding lets training be prolonged."""
    if step < warm_up:
        return (step + 1) / warm_up
    begin = steps * (1 - decay_share)
    if step < begin:
        return 1.0
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - begin) / (steps - begin)))


def diffusion_stage(
    folder: Path,
    *,
    steps: int,
    layout: str = "mixed",
    muon_lr: float = 1.5e-3,
    adam_lr: float = 1.5e-3,
    seed: int = 3,
    frames: int = 210,
    log_every: int = 50,
    save_every: int = 250,
    transformer: Mapping[str, Any] | None = None,
    compiled: bool = True,
    accelerator: Accelerator | None = None,
) -> Diffusion:
    """Train to ``steps`` steps, resuming from ``folder/diffusion.pt``; the moving average is what is returned.

    Weights and log are those of a run that was never stopped; a larger ``steps`` prolongs a training.

    Args:
        folder: holds ``vae`` and what the stages *videos* and *encode* wrote.
        layout: one of ``LAYOUTS``.
        frames: latent frames of a batch, clean copies included, on each process.
        transformer: changes to ``TRANSFORMER``.
        accelerator: where it runs; its mixed precision must be "no", since the forward has its own.

    Raises:
        InputError: settings that cannot be, fewer clips than a batch holds, or a checkpoint of other settings.
        FloatingPointError: the loss is not finite.
    """
    for name, value in (("steps", steps), ("frames", frames), ("log_every", log_every), ("save_every", save_every)):
        whole(name, value, 1)
    one_of("layout", layout, LAYOUTS)
    accelerator = accelerator or Accelerator(mixed_precision="no")
    precision = accelerator.mixed_precision
    require(precision == "no", "accelerator.mixed_precision", precision, "must be 'no': the forward has its own")
    vae = AutoencoderTinyVideo.from_pretrained(folder / "vae")
    torch.manual_seed(seed)
    model = Diffusion(vae.config.z_dim, transformer, compiled=compiled)
    clips = LatentClips(folder, vae, model.text_encoder)
    batch = largest_batch(layout, frames)
    require(batch <= len(clips), "clips", len(clips), f"a batch holds {batch}; encode more, or lower frames={frames}")
    model.to(accelerator.device)
    prepared = accelerator.prepare_model(model)
    optimizers = Optimizers(model, muon_lr=muon_lr, adam_lr=adam_lr)
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    settings = {
        "layout": layout,
        "muon_lr": muon_lr,
        "adam_lr": adam_lr,
        "seed": seed,
        "frames": frames,
        "transformer": dict(transformer or {}),
        "processes": accelerator.num_processes,
    }
    begin, before, sums = 0, 0.0, dict[str, list[float]]()
    if state := load_checkpoint(folder / CHECKPOINT, settings):
        model.load_state_dict(state["model"])
        optimizers.load_state_dict(state["optimizers"])
        ema = {k: v.to(accelerator.device) for k, v in state["ema"].items()}
        begin, before, sums = state["step"], state["seconds"], state["sums"]
    log = JsonLog(folder / LOG)
    if accelerator.is_main_process:
        log.cut(begin)
    began = time.perf_counter() - before
    for step in range(begin, steps):
        # Shapes are the same on every process; clips and noise are its own.
        shared, own = (np.random.default_rng([seed, step, i]) for i in (0, 1 + accelerator.process_index))
        drawn = draw_layout(layout, shared, own, frames=frames)
        loss = flow_loss(prepared, clips, drawn, own)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        mean: Any = accelerator.reduce(loss.detach(), "mean")
        if not math.isfinite(float(mean)):
            raise FloatingPointError(f"step {step}: loss {float(mean)}; lower the learning rates and begin anew")
        factor = learning_rate_factor(step, steps)
        optimizers.step(factor)
        if step % EMA_EVERY == 0:
            decay = min(0.9985, (step + 1) / (step + 20)) ** EMA_EVERY
            with torch.no_grad():
                for k, v in model.state_dict().items():
                    ema[k].lerp_(v, 1 - decay)
        sums.setdefault(drawn.name, []).append(float(mean))
        done, seconds = step + 1, time.perf_counter() - began
        if (done % log_every == 0 or done == steps) and accelerator.is_main_process:
            log.write(step=done, seconds=seconds, lr=factor, **{k: float(np.mean(v)) for k, v in sorted(sums.items())})
        if done % log_every == 0 or done == steps:
            sums = {}
        if done % save_every == 0 or done == steps:
            if accelerator.is_main_process:
                weights = {"model": model.state_dict(), "ema": ema, "optimizers": optimizers.state_dict()}
                where = {"step": done, "seconds": seconds, "sums": sums}
                save_checkpoint(folder / CHECKPOINT, settings, where | weights)
            accelerator.wait_for_everyone()
    model = accelerator.unwrap_model(prepared)
    model.load_state_dict(ema)
    return model.eval()
