"""The probe: a small convolutional net that says what a frame of the world shows.

It is trained on rendered frames alone (never on the model's own), with 0, 1 or 2 subjects, and judges the embedded
model: colour, shape, background, how many subjects, where, how large, which pattern. Its own accuracy on held-out
rendered frames is stored beside its weights and reported wherever its figures are.

Shapes: T frames, H = W = 128 pixels.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longvid.errors import InputError, ModelError
from longvid.precision import low_precision
from longvid.training import world

_HEADS = {
    "colour": len(world.COLOURS),
    "shape": len(world.SHAPES),
    "background": len(world.BACKGROUNDS),
    "count": 3,
    "pattern": len(world.PATTERNS),
    "place": 3,
}
_NAMES = {
    "colour": tuple(world.COLOURS),
    "shape": world.SHAPES,
    "background": world.BACKGROUNDS,
    "pattern": world.PATTERNS,
}


class Probe(nn.Module):
    """Frames [T, 3, H, W] in [-1, 1] -> logits of each head, and place (x, y, radius) as fractions."""

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 48, 80, 128)
        layers: list[nn.Module] = []
        previous = 3
        for width in widths:
            layers += [
                nn.Conv2d(previous, width, 4, stride=2, padding=1),
                nn.GELU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.GELU(),
                nn.GroupNorm(8, width),
            ]
            previous = width
        self.body = nn.Sequential(*layers)
        self.mix = nn.Sequential(nn.Conv2d(widths[-1], 40, 1), nn.Flatten(), nn.Linear(40 * 64, 256), nn.GELU())
        self.heads = nn.ModuleDict({name: nn.Linear(256, width) for name, width in _HEADS.items()})

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        hidden = self.mix(self.body(frames))
        return {name: head(hidden) for name, head in self.heads.items()}


def _examples(rng: np.random.Generator, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    frames, labels = [], []
    for _ in range(count):
        scene, seed = world.random_scene(rng), int(rng.integers(2**31))
        subjects = int(rng.choice([0, 1, 2], p=[0.12, 0.72, 0.16]))
        start = int(rng.integers(0, 4000))
        frame = world.render(scene, seed, start=start, frames=1, subjects=subjects)[0]
        ident = world.identity(scene, seed)
        x, y, _ = world.trajectory(scene, ident, np.array([start / world.FPS]))
        if subjects == 2:
            other = world.identity(scene, seed + 7919)
            x2, y2, _ = world.trajectory(scene, other, np.array([start / world.FPS]))
            if np.hypot(x - x2, y - y2)[0] < 0.12:  # one hides the other: two cannot be told from one
                continue
        frames.append(frame)
        labels.append(
            [
                list(world.COLOURS).index(scene.colour),
                world.SHAPES.index(scene.shape),
                world.BACKGROUNDS.index(scene.background),
                subjects,
                world.PATTERNS.index(ident.pattern),
                float(x[0]),
                float(y[0]),
                ident.radius,
            ]
        )
    table = torch.tensor(labels)
    target = {name: table[:, i].long() for i, name in enumerate(("colour", "shape", "background", "count", "pattern"))}
    target["place"] = table[:, 5:].float()
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    return pixels, target


def _degrade(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur and noise a part of the frames, so that the probe judges content and not an autoencoder's softness."""
    if rng.uniform() < 0.5:
        size = int(rng.choice([64, 80, 96]))
        frames = nnf.interpolate(
            nnf.interpolate(frames, size=size, mode="area"), size=frames.shape[-1], mode="bilinear"
        )
    return frames + float(rng.uniform(0, 0.08)) * torch.randn_like(frames)


def _loss(out: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
    one = target["count"] == 1
    some = target["count"] > 0
    loss = nnf.cross_entropy(out["background"], target["background"]) + nnf.cross_entropy(out["count"], target["count"])
    for name in ("colour", "shape"):
        loss = loss + nnf.cross_entropy(out[name][some], target[name][some])
    loss = loss + 0.5 * nnf.cross_entropy(out["pattern"][one], target["pattern"][one])
    return loss + 10 * (out["place"][one] - target["place"][one]).abs().mean()


@torch.no_grad()
def accuracy(probe: Probe, frames: Tensor, target: dict[str, Tensor]) -> dict[str, float]:
    """Shares right on labelled uint8 frames [T, 3, H, W]; place in mean absolute error, as fractions of the side."""
    out = [probe(f.float() / 127.5 - 1) for f in frames.split(64)]
    joined = {name: torch.cat([o[name] for o in out]) for name in _HEADS}
    one, some = target["count"] == 1, target["count"] > 0
    right = {
        name: (joined[name].argmax(1) == target[name]).float()
        for name in ("colour", "shape", "background", "count", "pattern")
    }
    return {
        "colour": float(right["colour"][some].mean()),
        "shape": float(right["shape"][some].mean()),
        "background": float(right["background"].mean()),
        "count": float(right["count"].mean()),
        "pattern": float(right["pattern"][one].mean()),
        "position_error": float((joined["place"][one, :2] - target["place"][one, :2]).abs().mean()),
        "radius_error": float((joined["place"][one, 2] - target["place"][one, 2]).abs().mean()),
    }


def train_probe(
    path: Path, *, frames: int = 24000, steps: int = 2500, batch: int = 48, seed: int = 5
) -> dict[str, float]:
    """Train from nothing and save weights and held-out accuracy to ``path`` (safetensors, figures in its metadata)."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    began = time.time()
    pixels, target = _examples(rng, frames)
    held, held_target = _examples(np.random.default_rng(seed + 1), 1000)
    probe = Probe()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.5e-3, total_steps=steps)
    for _ in range(steps):
        index = torch.from_numpy(rng.choice(len(pixels), batch, replace=False))
        x = _degrade(pixels[index].float() / 127.5 - 1, rng)
        with low_precision("cpu"):
            out = probe(x)
        loss = _loss({k: v.float() for k, v in out.items()}, {k: v[index] for k, v in target.items()})
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    figures = accuracy(probe.eval(), held, held_target) | {"seconds": time.time() - began}
    save_file({k: v.half() for k, v in probe.state_dict().items()}, path, {"held_out": json.dumps(figures)})
    return figures


def load_probe(path: Path) -> tuple[Probe, dict[str, float]]:
    """The probe and its own held-out figures. Raises ModelError for a file that is missing or is no probe."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(f"probe={str(path)!r}: no such file; train it with scripts/train_embedded.py --stage probe")
    try:
        with safe_open(path, "pt") as file:
            figures = json.loads(file.metadata()["held_out"])
        probe = Probe()
        probe.load_state_dict(load_file(path))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"probe={str(path)!r}: is no probe of the embedded world ({str(error).splitlines()[0]}); give one made by "
            "scripts/train_embedded.py --stage probe"
        ) from error
    return probe.eval(), figures


@torch.no_grad()
def score_frames(frames: np.ndarray, probe: Probe) -> dict[str, np.ndarray]:
    """What each frame [T, 128, 128, 3] uint8 shows: names a frame, number of subjects, x, y, radius as fractions.

    Raises InputError for frames of another size: the probe reads places off that grid alone.
    """
    if frames.shape[1:3] != (world.SIZE, world.SIZE):
        raise InputError(
            f"frames: {frames.shape[2]}x{frames.shape[1]} pixels, the probe reads {world.SIZE}x{world.SIZE}; give a "
            "video of the embedded model"
        )
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    with low_precision("cpu"):  # as it was trained; twice as fast where there are instructions for it
        out = [probe(f.float() / 127.5 - 1) for f in pixels.split(64)]
    joined = {name: torch.cat([o[name] for o in out]) for name in _HEADS}
    scored = {name: np.array(names)[joined[name].argmax(1).numpy()] for name, names in _NAMES.items()}
    place = joined["place"].float().numpy()
    return scored | {
        "count": joined["count"].argmax(1).numpy(),
        "x": place[:, 0],
        "y": place[:, 1],
        "radius": place[:, 2],
    }
