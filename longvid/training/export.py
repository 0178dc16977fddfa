"""Stage *export*: the trained moving averages as a model folder in diffusers' layout, float16 safetensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from longvid.models.autoencoder import AutoencoderTinyVideo
from longvid.training.diffusion_stage import Diffusion

#: How the embedded model is sampled unless told otherwise; written to model_index.json, measured by
#: benchmarks/embedded.py.
SAMPLING: dict[str, Any] = {
    "frames_per_block": 3,
    "steps": (1000.0, 750.0, 500.0, 250.0),
    "shift": 3.0,
    "sampler": "euler",
    "guidance_scale": 2.0,
    "fps": 16,
    "train_frames": 21,
    "height": 128,
    "width": 128,
    # Trained with noise levels that differ from frame to frame: one partition does, and short windows are as good as
    # long ones and cheaper.
    "fifo": {"window_frames": 9, "num_partitions": 1, "context": "clean"},
}


def export_stage(folder: Path, out: Path) -> Path:
    """Write ``folder``'s checkpoints to ``out`` as a pipeline folder, with the training logs beside.

    Raises:
        FileNotFoundError: a stage has not run yet.
    """
    import longvid

    for name in ("diffusion.pt", "vae"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"folder={folder}: {name} is missing; run the stage that makes it first")
    vae = AutoencoderTinyVideo.from_pretrained(folder / "vae")
    state = torch.load(folder / "diffusion.pt", weights_only=True, map_location="cpu")
    settings = state.get("settings", {})  # checkpoints from before there were settings hold the standard network
    model = Diffusion(vae.config.z_dim, settings.get("transformer"))
    model.load_state_dict(state["ema"])
    pipe = longvid.LongVideoPipeline(
        transformer=model.transformer.half(),
        vae=vae.half(),
        text_encoder=model.text_encoder.half(),
        tokenizer=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SAMPLING["shift"]),
        **SAMPLING,
    )
    partial = out.with_name(out.name + ".part")
    if partial.exists():
        shutil.rmtree(partial)
    pipe.save_pretrained(partial, safe_serialization=True)
    logs = partial / "training"
    logs.mkdir()
    for name in ("world.json", "probe.json", "autoencoder.jsonl", "decoder.jsonl", "encode.json", "diffusion.jsonl"):
        if (folder / name).exists():
            shutil.copy2(folder / name, logs / name)
    (logs / "step.json").write_text(json.dumps({"diffusion_steps": state["step"]}) + "\n")
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    return out
