"""Stages *world*, *autoencoder* and *decoder* of the embedded model's training (scripts/train_embedded.py runs them).

The two that train run on any number of processes through accelerate, and go on exactly where they were stopped: every
draw follows from the seed, the step and the process.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from accelerate import Accelerator
from torch import Tensor, nn

from longvid.config import require, whole
from longvid.models.autoencoder import AutoencoderTinyVideo
from longvid.precision import low_precision
from longvid.training import world
from longvid.training.journal import JsonLog, load_checkpoint, save_checkpoint

CLIP = 9  # frames in a training clip: the single first frame and two groups of four
HELD_OUT_CLIPS = 64


def _draw(rng: np.random.Generator) -> tuple[world.Scene, int, int]:
    """Scene, seed and first frame of one clip; a third of the clips start at time 0, where every video starts."""
    scene = world.random_scene(rng)
    start = 0 if rng.random() < 0.33 else int(rng.integers(0, 4000))
    return scene, int(rng.integers(2**31)), start


def world_stage(folder: Path, *, clips: int, seed: int = 1) -> None:
    """Render ``clips`` clips to ``clips.npy`` uint8 [N, 9, H, W, 3], their subjects to ``place.npy`` [N, 9, 3]."""
    done = folder / "world.json"
    if done.exists() and json.loads(done.read_text())["clips"] >= clips:
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    shape = (clips, CLIP, world.SIZE, world.SIZE, 3)
    pixels = np.lib.format.open_memmap(folder / "clips.npy", mode="w+", dtype=np.uint8, shape=shape)
    place = np.zeros((clips, CLIP, 3), dtype=np.float32)
    began = time.time()
    for i in range(clips):
        scene, clip_seed, start = _draw(rng)
        pixels[i] = world.render(scene, clip_seed, start=start, frames=CLIP)
        ident = world.identity(scene, clip_seed)
        x, y, _ = world.trajectory(scene, ident, (start + np.arange(CLIP)) / world.FPS)
        place[i] = np.stack([x, y, np.full(CLIP, ident.radius)], -1)
    pixels.flush()
    np.save(folder / "place.npy", place)
    done.write_text(json.dumps({"clips": clips, "seed": seed, "seconds": time.time() - began}))


def foreground_weight(place: Tensor, size: int, gain: float) -> Tensor:
    """[B, T, 3] (x, y, radius) -> weights [B, 1, T, H, W]: 1 + gain in the subject's disc, 1 elsewhere.

    Without it an L1 loss averages the four frames of a group over the moving subject, which fills few pixels.
    """
    axis = (torch.arange(size) + 0.5) / size
    x, y, r = (place[..., i, None, None] for i in range(3))
    dist = torch.hypot(axis[None, None, None, :] - x, axis[None, None, :, None] - y)
    return (1 + gain * (dist < 1.25 * r).float())[:, None]


def reconstruction_loss(out: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 + MSE + spatial-gradient L1 + temporal-difference L1; all [B, 3, T, H, W] in [-1, 1]."""
    error = out - target
    loss = (weight * (error.abs() + 2.0 * error.square())).mean()
    for axis in (-1, -2):
        loss = loss + 0.5 * (weight.narrow(axis, 1, weight.shape[axis] - 1) * error.diff(dim=axis).abs()).mean()
    return loss + 0.3 * (weight[:, :, 1:] * error.diff(dim=2).abs()).mean()


def _batch(pixels: np.ndarray, index: np.ndarray) -> Tensor:
    frames = torch.from_numpy(pixels[np.sort(index)]).permute(0, 4, 1, 2, 3)
    return frames.float() / 127.5 - 1


@torch.no_grad()
def held_out_psnr(vae: AutoencoderTinyVideo, pixels: np.ndarray) -> float:
    """Mean over clips of the PSNR in dB of 8-bit frames, on the last ``HELD_OUT_CLIPS`` clips, in float32."""
    values = []
    for i in range(0, HELD_OUT_CLIPS, 8):
        target = _batch(pixels, np.arange(len(pixels) - HELD_OUT_CLIPS + i, len(pixels) - HELD_OUT_CLIPS + i + 8))
        target = target.to(vae.device)
        out = vae.forward_train(target)[0].clamp(-1, 1)
        values += (10 * torch.log10(4.0 / (out - target).square().flatten(1).mean(1))).tolist()
    return float(np.mean(values))


class Reconstruction(nn.Module):
    """``forward_train``, in bfloat16 where that pays, as the one call that DistributedDataParallel needs to see."""

    def __init__(self, vae: AutoencoderTinyVideo) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        with low_precision(frames.device):
            out, z = self.vae.forward_train(frames, noise)
        return out.float(), z.float()


def _train(
    vae: AutoencoderTinyVideo,
    parameters: Iterable[nn.Parameter],
    folder: Path,
    name: str,
    *,
    steps: int,
    batch: int,
    peak_lr: float,
    seed: int,
    save_every: int,
    latent_noise: float,
    gain: float,
    pull: float,
    ema_decay: Callable[[int], float],
    judge: Callable[[float], None],
    accelerator: Accelerator,
) -> None:
    """The loop of both stages: reconstruct clips through noised latents; ``vae`` ends with the moving average.

    name: of the checkpoint and the log. latent_noise: its largest deviation. gain: of :func:`foreground_weight`. pull:
    of the latents towards unit scale. judge: told the held-out PSNR at every checkpoint, while ``vae`` is the average.
    """
    whole("steps", steps, 1)
    whole("save_every", save_every, 1)
    precision = accelerator.mixed_precision
    require(precision == "no", "accelerator.mixed_precision", precision, "must be 'no': the forward has its own")
    pixels, place = np.load(folder / "clips.npy", mmap_mode="r"), torch.from_numpy(np.load(folder / "place.npy"))
    device, usable = accelerator.device, len(pixels) - HELD_OUT_CLIPS
    whole(
        "clips",
        len(pixels),
        HELD_OUT_CLIPS + batch,
        f"{HELD_OUT_CLIPS} are held out and a batch is {batch}; render more",
    )
    prepared: Any = accelerator.prepare_model(Reconstruction(vae))
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=peak_lr, betas=(0.9, 0.99), weight_decay=1e-4)
    ema = {k: v.detach().clone() for k, v in vae.state_dict().items()}
    settings = {
        "batch": batch,
        "peak_lr": peak_lr,
        "seed": seed,
        "processes": accelerator.num_processes,
    }
    begin, before, sums = 0, 0.0, list[float]()
    if state := load_checkpoint(folder / f"{name}.pt", settings):
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema = {k: v.to(device) for k, v in state["ema"].items()}
        begin, before = state["step"], state["seconds"]
    log = JsonLog(folder / f"{name}.jsonl")
    if accelerator.is_main_process:
        log.cut(begin)
    began = time.perf_counter() - before
    for step in range(begin, steps):
        lr = peak_lr * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        rng = np.random.default_rng([seed, step, accelerator.process_index])
        torch.manual_seed(int(rng.integers(2**63)))  # of the noise on the latents, drawn inside the forward
        index = np.sort(rng.choice(usable, batch, replace=False))
        target, weight = _batch(pixels, index).to(device), foreground_weight(place[index], world.SIZE, gain).to(device)
        noise = latent_noise * torch.rand(batch, 1, 1, 1).repeat_interleave(1 + (CLIP - 1) // 4, 0).to(device)
        out, z = prepared(target, noise)
        loss = reconstruction_loss(out, target, weight)
        if pull:
            # latents of about unit scale: without a pull they grow until the noise above means nothing
            loss = loss + pull * nnf.relu(z.square().mean((0, 2, 3, 4)) - 1.0).mean()
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, 1.0)
        mean: Any = accelerator.reduce(loss.detach(), "mean")
        if not math.isfinite(float(mean)):
            raise FloatingPointError(f"step {step}: loss {float(mean)}; lower the learning rate and begin anew")
        optimizer.step()
        for k, v in vae.state_dict().items():
            ema[k].lerp_(v, 1 - ema_decay(step))
        sums.append(float(mean))
        done, seconds = step + 1, time.perf_counter() - began
        if done % save_every == 0 or done == steps:
            if accelerator.is_main_process:
                trained = {k: v.clone() for k, v in vae.state_dict().items()}
                vae.load_state_dict(ema)
                psnr = held_out_psnr(vae, pixels)
                log.write(step=done, loss=float(np.mean(sums)), psnr_db=psnr, lr=lr, seconds=seconds)
                judge(psnr)
                vae.load_state_dict(trained)
                weights = {"model": trained, "ema": ema, "optimizer": optimizer.state_dict()}
                save_checkpoint(folder / f"{name}.pt", settings, {"step": done, "seconds": seconds} | weights)
            accelerator.wait_for_everyone()
            sums = []
    vae.load_state_dict(ema)


def decoder_stage(
    folder: Path,
    *,
    steps: int,
    batch: int = 8,
    peak_lr: float = 5e-4,
    seed: int = 4,
    save_every: int = 250,
    accelerator: Accelerator | None = None,
) -> AutoencoderTinyVideo:
    """Train the decoder alone, the encoder frozen: latents already encoded, and what learned on them, stay valid.

    Goes on from ``folder/vae`` and saves there, when the held-out PSNR is better than before; that is what is returned.
    Resumes, and raises, as :func:`autoencoder_stage` does.
    """
    accelerator = accelerator or Accelerator(mixed_precision="no")
    vae = AutoencoderTinyVideo.from_pretrained(folder / "vae")
    vae = vae.to(accelerator.device, memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    best = held_out_psnr(vae, np.load(folder / "clips.npy", mmap_mode="r"))

    def keep_the_best(psnr: float) -> None:
        nonlocal best
        if psnr > best:
            best = psnr
            vae.save_pretrained(folder / "vae")

    _train(
        vae,
        vae.decoder.parameters(),
        folder,
        "decoder",
        steps=steps,
        batch=batch,
        peak_lr=peak_lr,
        seed=seed,
        save_every=save_every,
        latent_noise=0.06,
        gain=6.0,
        pull=0.0,
        ema_decay=lambda step: 0.996,
        judge=keep_the_best,
        accelerator=accelerator,
    )
    return AutoencoderTinyVideo.from_pretrained(folder / "vae")


def autoencoder_stage(
    folder: Path,
    *,
    steps: int,
    batch: int = 8,
    peak_lr: float = 1e-3,
    seed: int = 2,
    save_every: int = 250,
    config: dict[str, Any] | None = None,
    accelerator: Accelerator | None = None,
) -> AutoencoderTinyVideo:
    """Train the autoencoder to ``steps`` steps, resuming from ``folder/autoencoder.pt``; the average is returned.

    Weights and log are those of a run that was never stopped. batch: clips a process. config: of AutoencoderTinyVideo.
    accelerator: where it runs; its mixed precision must be "no", since the forward has its own.

    Raises InputError for fewer clips than are held out and a batch holds, or a checkpoint of other settings;
    FloatingPointError when the loss is not finite.
    """
    accelerator = accelerator or Accelerator(mixed_precision="no")
    torch.manual_seed(seed)
    vae = AutoencoderTinyVideo(**(config or {})).to(accelerator.device, memory_format=torch.channels_last)
    _train(
        vae,
        vae.parameters(),
        folder,
        "autoencoder",
        steps=steps,
        batch=batch,
        peak_lr=peak_lr,
        seed=seed,
        save_every=save_every,
        latent_noise=0.12,
        gain=8.0,
        pull=0.02,
        ema_decay=lambda step: min(0.998, (step + 1) / (step + 20)),
        judge=lambda psnr: None,
        accelerator=accelerator,
    )
    return vae.eval()
