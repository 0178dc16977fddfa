"""Stages *videos* and *encode*: long clips of the world, and their latents, for the diffusion stage."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch

from longvid.models.autoencoder import AutoencoderTinyVideo
from longvid.precision import low_precision
from longvid.training import world

LATENT_FRAMES = 21
FRAMES = 1 + 4 * (LATENT_FRAMES - 1)


def videos_stage(folder: Path, *, clips: int, seed: int = 11) -> None:
    """Render ``clips`` videos of 81 frames, held-out scenes left out; resumes at the first clip not yet written.

    Writes ``videos.npy`` uint8 [N, 81, H, W, 3], ``videos_place.npy`` float32 [N, 21, 3] (x, y, radius at the middle of
    each latent frame) and ``videos.json`` (scenes, seeds).
    """
    folder.mkdir(parents=True, exist_ok=True)
    done_path, path = folder / "videos.json", folder / "videos.npy"
    shape = (clips, FRAMES, world.SIZE, world.SIZE, 3)
    done = json.loads(done_path.read_text()) if done_path.exists() else {"scenes": [], "seeds": [], "clips": clips}
    if done["clips"] != clips:
        raise ValueError(f"clips={clips}: {done_path} was begun with {done['clips']}; use that or another folder")
    place_path = folder / "videos_place.npy"
    mode = "r+" if path.exists() else "w+"
    pixels = np.lib.format.open_memmap(path, mode=mode, dtype=np.uint8, shape=shape)
    place = np.load(place_path) if place_path.exists() else np.zeros((clips, LATENT_FRAMES, 3), np.float32)
    middle = np.concatenate([[0.0], 2.5 + 4 * np.arange(LATENT_FRAMES - 1)]) / world.FPS
    for i in range(len(done["seeds"]), clips):
        rng = np.random.default_rng([seed, i])
        scene, clip_seed = world.random_scene(rng, held_out=False), int(rng.integers(2**31))
        pixels[i] = world.render(scene, clip_seed, frames=FRAMES)
        ident = world.identity(scene, clip_seed)
        x, y, _ = world.trajectory(scene, ident, middle)
        place[i] = np.stack([x, y, np.full(LATENT_FRAMES, ident.radius)], -1)
        done["scenes"].append([getattr(scene, name) for name in world.CHOICES])
        done["seeds"].append(clip_seed)
        if (i + 1) % 100 == 0 or i + 1 == clips:
            pixels.flush()
            np.save(place_path, place)
            done_path.write_text(json.dumps(done))


@torch.no_grad()
def encode_stage(folder: Path, vae: AutoencoderTinyVideo, *, batch: int = 4) -> None:
    """Encode ``videos.npy`` to ``latents.npy`` float16 [N, C, 21, h, w] (raw), then set and save the VAE's statistics.

    Mean and deviation a channel are taken over the later latent frames of a sample of clips, since the first latent
    frame is one of 21, and saved to ``folder/vae``. Products are bfloat16 where that pays. Runs on one process, on the
    device of ``vae``.
    """
    pixels = np.load(folder / "videos.npy", mmap_mode="r")
    clips = len(json.loads((folder / "videos.json").read_text())["seeds"])
    side = world.SIZE // 16
    shape = (clips, vae.config.z_dim, LATENT_FRAMES, side, side)
    latents = np.lib.format.open_memmap(folder / "latents.npy", mode="w+", dtype=np.float16, shape=shape)
    began = time.time()
    vae = vae.to(memory_format=torch.channels_last)
    for i in range(0, clips, batch):
        frames = torch.from_numpy(np.array(pixels[i : i + batch])).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        with low_precision(vae.device):
            z = vae.encode_groups(vae.group(frames.to(vae.device)), None)[0]
        latents[i : i + batch] = z.float().cpu().numpy().astype(np.float16)
    latents.flush()
    sample = latents[:: max(1, clips // 500)].astype(np.float32)
    mean, std = sample.mean((0, 2, 3, 4)), sample.std((0, 2, 3, 4))
    vae.register_to_config(latents_mean=[float(v) for v in mean], latents_std=[float(v) for v in std])
    vae.save_pretrained(folder / "vae")
    (folder / "encode.json").write_text(json.dumps({"clips": clips, "seconds": time.time() - began}))
