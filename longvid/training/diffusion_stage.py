"""Stage *diffusion*: flow matching on the world's latents, on the stock WanTransformer3DModel.

x_sigma = (1 - sigma) x0 + sigma noise, the model predicts v = noise - x0 (rectified flow, arXiv 2209.03003), one noise
level a block or a frame (diffusion forcing, arXiv 2407.01392), layouts of longvid/training/layouts.py.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from longvid.models.autoencoder import AutoencoderTinyVideo
from longvid.models.captions import CaptionEncoder
from longvid.training import world
from longvid.training.backbone import sequence_forward
from longvid.training.journal import JsonLog
from longvid.training.layouts import draw_layout

TRANSFORMER = {
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
    """The two trained modules together: the transformer and the caption encoder."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.transformer = WanTransformer3DModel(in_channels=channels, out_channels=channels, **TRANSFORMER)
        self.text_encoder = CaptionEncoder(text_dim=TRANSFORMER["text_dim"])


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


def flow_loss(
    model: Diffusion, clips: LatentClips, rng: np.random.Generator, forward=sequence_forward
) -> tuple[Tensor, str]:
    """Weighted velocity error of one drawn batch, and the name of its layout for the log."""
    layout = draw_layout(rng)
    batch = layout.sigma.shape[0]
    clean, ids, weight = clips.draw(rng, batch, layout.span)
    source = torch.from_numpy(layout.source)
    x0 = clean[:, :, source]
    sigma = torch.from_numpy(layout.sigma.astype(np.float32))
    noise = torch.randn_like(x0)
    s = sigma[:, None, :, None, None]
    noisy = (1 - s) * x0 + s * noise
    with torch.autocast("cpu", torch.bfloat16):
        text = model.text_encoder(ids)
        v = forward(model.transformer, noisy, 1000 * sigma, text, source.float(), torch.from_numpy(layout.mask))
    trained = torch.from_numpy(layout.loss)
    error = (v.float() - (noise - x0)).square() * weight[:, :, source]
    kind = "rolling" if layout.mask[layout.loss][:, layout.loss].all() else f"forcing{layout.span}"
    return error[:, :, trained].mean(), kind


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
    muon_lr: float = 1.5e-3,
    adam_lr: float = 1.5e-3,
    seed: int = 3,
    save_every: int = 250,
    compiled: bool = True,
) -> Diffusion:
    """Train to ``steps`` steps, resuming from ``folder/diffusion.pt``; the moving average is what is returned."""
    vae = AutoencoderTinyVideo.from_pretrained(folder / "vae")
    torch.manual_seed(seed)
    model = Diffusion(vae.config.z_dim)
    clips = LatentClips(folder, vae, model.text_encoder)
    optimizers = Optimizers(model, muon_lr=muon_lr, adam_lr=adam_lr)
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    checkpoint, begin = folder / "diffusion.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizers.load_state_dict(state["optimizers"])
        ema, begin = state["ema"], state["step"]
    rng = np.random.default_rng([seed, begin])
    torch.manual_seed(seed + begin)
    log = JsonLog(folder / "diffusion.jsonl")
    forward = torch.compile(sequence_forward, dynamic=False) if compiled else sequence_forward
    began, sums = time.time(), defaultdict(list)
    for step in range(begin, steps):
        loss, kind = flow_loss(model, clips, rng, forward)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = learning_rate_factor(step, steps)
        optimizers.step(factor)
        if step % EMA_EVERY == 0:
            decay = min(0.9985, (step + 1) / (step + 20)) ** EMA_EVERY
            with torch.no_grad():
                for k, v in model.state_dict().items():
                    ema[k].lerp_(v, 1 - decay)
        sums[kind].append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            log.write(
                step=step + 1,
                seconds=time.time() - began,
                lr=factor,
                **{k: float(np.mean(v)) for k, v in sorted(sums.items())},
            )
            sums.clear()
        if (step + 1) % save_every == 0 or step + 1 == steps:
            partial = checkpoint.with_suffix(".part")
            torch.save(
                {"step": step + 1, "model": model.state_dict(), "ema": ema, "optimizers": optimizers.state_dict()},
                partial,
            )
            partial.rename(checkpoint)
    model.load_state_dict(ema)
    return model.eval()
