"""Stages *world* and *autoencoder* of the embedded model's training (scripts/train_embedded.py runs them)."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from longvid.models.autoencoder import AutoencoderTinyVideo
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


def foreground_weight(place: Tensor, size: int, gain: float = 8.0) -> Tensor:
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
        out = vae.forward_train(target)[0].clamp(-1, 1)
        values += (10 * torch.log10(4.0 / (out - target).square().flatten(1).mean(1))).tolist()
    return float(np.mean(values))


def decoder_stage(
    folder: Path, *, steps: int, batch: int = 8, peak_lr: float = 5e-4, seed: int = 4
) -> AutoencoderTinyVideo:
    """Train the decoder alone, the encoder frozen: latents already encoded, and what learned on them, stay valid.

    Goes on from ``folder/vae`` and saves there, when the held-out PSNR is better than before.
    """
    torch.manual_seed(seed)
    pixels = np.load(folder / "clips.npy", mmap_mode="r")
    place = torch.from_numpy(np.load(folder / "place.npy"))
    vae = AutoencoderTinyVideo.from_pretrained(folder / "vae").to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    best = held_out_psnr(vae, pixels)
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=peak_lr, betas=(0.9, 0.99), weight_decay=1e-4)
    ema = {k: v.detach().clone() for k, v in vae.state_dict().items()}
    checkpoint = folder / "decoder.pt"
    begin = load_checkpoint(checkpoint, vae, optimizer, ema)
    rng = np.random.default_rng([seed, begin])
    log = JsonLog(folder / "decoder.jsonl")
    usable, began, sums = len(pixels) - HELD_OUT_CLIPS, time.time(), []
    for step in range(begin, steps):
        lr = peak_lr * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        index = np.sort(rng.choice(usable, batch, replace=False))
        target = _batch(pixels, index)
        noise = 0.06 * torch.rand(batch, 1, 1, 1).repeat_interleave(1 + (CLIP - 1) // 4, 0)
        with torch.autocast("cpu", torch.bfloat16):
            out, _ = vae.forward_train(target, noise)
        loss = reconstruction_loss(out.float(), target, foreground_weight(place[index], world.SIZE, gain=6.0))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        for k, v in vae.state_dict().items():
            ema[k].lerp_(v, 0.004)
        sums.append(float(loss.detach()))
        if (step + 1) % 250 == 0 or step + 1 == steps:
            trained = {k: v.clone() for k, v in vae.state_dict().items()}
            vae.load_state_dict(ema)
            psnr = held_out_psnr(vae, pixels)
            log.write(step=step + 1, loss=float(np.mean(sums)), psnr_db=psnr, lr=lr, seconds=time.time() - began)
            if psnr > best:
                best = psnr
                vae.save_pretrained(folder / "vae")
            vae.load_state_dict(trained)
            save_checkpoint(checkpoint, step + 1, vae, optimizer, ema)
            sums = []
    return AutoencoderTinyVideo.from_pretrained(folder / "vae")


def autoencoder_stage(
    folder: Path, *, steps: int, batch: int = 8, peak_lr: float = 1e-3, seed: int = 2, config: dict | None = None
) -> AutoencoderTinyVideo:
    """Train the autoencoder to ``steps`` steps (resuming from its checkpoint) and save it to ``folder/vae``."""
    torch.manual_seed(seed)
    pixels = np.load(folder / "clips.npy", mmap_mode="r")
    place = torch.from_numpy(np.load(folder / "place.npy"))
    vae = AutoencoderTinyVideo(**(config or {})).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=peak_lr, betas=(0.9, 0.99), weight_decay=1e-4)
    ema = {k: v.detach().clone() for k, v in vae.state_dict().items()}
    checkpoint = folder / "autoencoder.pt"
    begin = load_checkpoint(checkpoint, vae, optimizer, ema)
    rng = np.random.default_rng([seed, begin])
    log = JsonLog(folder / "autoencoder.jsonl")
    usable = len(pixels) - HELD_OUT_CLIPS
    began, sums = time.time(), []
    for step in range(begin, steps):
        lr = peak_lr * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        index = np.sort(rng.choice(usable, batch, replace=False))
        target = _batch(pixels, index)
        weight = foreground_weight(place[index], world.SIZE)
        noise = 0.12 * torch.rand(batch, 1, 1, 1).repeat_interleave(1 + (CLIP - 1) // 4, 0)
        with torch.autocast("cpu", torch.bfloat16):
            out, z = vae.forward_train(target, noise)
        loss = reconstruction_loss(out.float(), target, weight)
        # latents of about unit scale: without a pull they grow until the noise above means nothing
        loss = loss + 0.02 * nnf.relu(z.float().square().mean((0, 2, 3, 4)) - 1.0).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        decay = min(0.998, (step + 1) / (step + 20))
        for k, v in vae.state_dict().items():
            ema[k].lerp_(v, 1 - decay)
        sums.append(float(loss.detach()))
        if (step + 1) % 250 == 0 or step + 1 == steps:
            trained = {k: v.clone() for k, v in vae.state_dict().items()}
            vae.load_state_dict(ema)
            psnr = held_out_psnr(vae, pixels)
            vae.load_state_dict(trained)
            log.write(step=step + 1, loss=float(np.mean(sums)), psnr_db=psnr, lr=lr, seconds=time.time() - began)
            sums = []
            save_checkpoint(checkpoint, step + 1, vae, optimizer, ema)
    vae.load_state_dict(ema)
    return vae.eval()
