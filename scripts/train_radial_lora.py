"""Length extension: teach a short-clip transformer to denoise longer clips under radial attention, by a LoRA.

    python scripts/train_radial_lora.py --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --data clips/ --out lora/ --steps 2000

Radial Attention (arXiv 2506.19852, sec. 4.3): the mask is static, so a LoRA on the query, key, value and output
projections of self-attention is enough to move a model to a multiple of its length, at the mask's cost in place of the
quadratic one. Published numbers: rank 128, first two layers dense, 2,000 to 5,000 steps (docs/methods/radial.md).

--data: a folder of safetensors files, one a clip: `latents` [C, F, h, w], normalised as the model takes them, and
`prompt_embeds` [text tokens, text dim]; for HunyuanVideo also `pooled` and `text_mask`, for Mochi `text_mask`.
--out: `pytorch_lora_weights.safetensors`, which `pipe.load_lora_weights(out)` takes, the loss curve as JSON, and the
state that `--resume` goes on from.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, HunyuanVideoTransformer3DModel, MochiTransformer3DModel, WanTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from longvid.models.radial_attention import PRESETS, RadialAttention

WEIGHTS, STATE, LOG = "pytorch_lora_weights.safetensors", "training_state.pt", "loss.json"
KINDS = (WanTransformer3DModel, HunyuanVideoTransformer3DModel, MochiTransformer3DModel)
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def load_transformer(model: str, dtype: torch.dtype) -> Any:
    """The transformer of a pipeline folder or hub id, whichever of the three it is."""
    name = DiffusionPipeline.load_config(model)["transformer"][1]
    kind = next((k for k in KINDS if k.__name__ == name), None)
    if kind is None:
        raise SystemExit(f"--model={model}: its transformer is {name}; must be one of {[k.__name__ for k in KINDS]}")
    return kind.from_pretrained(model, subfolder="transformer", torch_dtype=dtype)


def clips(folder: Path, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """Clips in shuffled order, over and over, with a batch axis."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SystemExit(f"--data={folder}: no *.safetensors in it; the script's head says what they hold")
    while True:
        for i in torch.randperm(len(files), generator=generator).tolist():
            clip = load_file(files[i])
            missing = {"latents", "prompt_embeds"} - set(clip)
            if missing:
                raise SystemExit(f"{files[i]}: lacks {sorted(missing)}")
            yield {name: tensor[None] for name, tensor in clip.items()}


def add_lora(transformer: Any, rank: int) -> list[torch.nn.Parameter]:
    """LoRA on the self-attention projections; everything else frozen. Returns what trains, in float32."""
    transformer.requires_grad_(False)
    attention = (
        "attn1" if hasattr(transformer, "blocks") or isinstance(transformer, MochiTransformer3DModel) else "attn"
    )
    targets = [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
        and f".{attention}." in name
        and name.endswith(PROJECTIONS)
        and "refiner" not in name
    ]
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights="gaussian"))
    trained = [p for p in transformer.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    return trained


def predict(transformer: Any, x: Tensor, sigma: Tensor, clip: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Velocity noise - x0, whatever the transformer's own convention."""
    arguments: dict[str, Any] = {"encoder_hidden_states": clip["prompt_embeds"].to(x.device, dtype)}
    sign = 1.0
    timestep = sigma * 1000
    if isinstance(transformer, MochiTransformer3DModel):  # counts from noise to clean, and predicts x0 - noise
        timestep, sign = 1000 - timestep, -1.0
        arguments["encoder_attention_mask"] = clip["text_mask"].bool().to(x.device)
    elif isinstance(transformer, HunyuanVideoTransformer3DModel):
        arguments["encoder_attention_mask"] = clip["text_mask"].to(x.device)
        arguments["pooled_projections"] = clip["pooled"].to(x.device, dtype)
        arguments["guidance"] = torch.full_like(timestep, 6000.0).to(dtype)
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        out = transformer(hidden_states=x.to(dtype), timestep=timestep, return_dict=False, **arguments)[0]
    return sign * out.float()


def flow_loss(transformer: Any, clip: dict[str, Tensor], options: Any, generator: torch.Generator) -> Tensor:
    """|| v(x_sigma) - (noise - x0) ||^2 at a random sigma, time-shifted: sigma = s u / (1 + (s - 1) u)."""
    x0 = clip["latents"].to(options.device, torch.float32)
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    u = torch.rand(1, generator=generator)
    sigma = (options.shift * u / (1 + (options.shift - 1) * u)).to(x0)
    x = (1 - sigma) * x0 + sigma * noise
    return (predict(transformer, x, sigma, clip, options.dtype) - (noise - x0)).square().mean()


def save(
    transformer: Any, optimiser: Any, step: int, losses: list[float], generator: torch.Generator, out: Path
) -> None:
    """Weights in diffusers' LoRA names, and everything that --resume needs; written aside, then renamed."""
    out.mkdir(parents=True, exist_ok=True)
    lora = get_peft_model_state_dict(transformer)
    named = {f"transformer.{name}": tensor.contiguous() for name, tensor in lora.items()}
    save_file(named, out / (WEIGHTS + ".part"))
    state = {"step": step, "lora": lora, "optimiser": optimiser.state_dict(), "generator": generator.get_state()}
    torch.save(state, out / (STATE + ".part"))
    (out / (LOG + ".part")).write_text(json.dumps({"losses": losses}))
    for name in (WEIGHTS, STATE, LOG):
        (out / (name + ".part")).replace(out / name)


def train(options: argparse.Namespace) -> list[float]:
    """Run the training; returns the loss of every step."""
    generator = torch.Generator().manual_seed(options.seed)
    transformer = load_transformer(options.model, options.dtype).to(options.device).train()
    torch.manual_seed(options.seed)
    trained = add_lora(transformer, options.rank)
    if options.checkpointing:
        transformer.enable_gradient_checkpointing()
    optimiser = torch.optim.AdamW(trained, lr=options.lr, weight_decay=1e-4)
    spec = PRESETS[options.preset]["spec"]
    if options.decay is not None:
        spec = type(spec)(**{name: getattr(spec, name) for name in spec.__slots__} | {"decay": options.decay})
    radial = RadialAttention(
        spec=spec, dense_layers=options.dense_layers, backend=options.backend, strict=options.strict
    )
    radial.attach(transformer)  # dense_steps stays 0: training draws timesteps in any order
    step, losses = 0, []
    if options.resume:
        state = torch.load(options.out / STATE, weights_only=True)
        set_peft_model_state_dict(transformer, state["lora"])
        optimiser.load_state_dict(state["optimiser"])
        step, losses = state["step"], json.loads((options.out / LOG).read_text())["losses"]
    data = clips(options.data, torch.Generator().manual_seed(options.seed + 1))
    for _ in range(step):
        next(data)
    if options.resume:
        generator.set_state(state["generator"])
    while step < options.steps:
        loss = flow_loss(transformer, next(data), options, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        losses.append(loss.item())
        if step % options.log_every == 0 or step == options.steps:
            recent = losses[-options.log_every :]
            print(f"step {step}: loss {sum(recent) / len(recent):.4f}", flush=True)
        if step % options.save_every == 0 or step == options.steps:
            save(transformer, optimiser, step, losses, generator, options.out)
    radial.detach()
    return losses


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="pipeline folder or hub id: Wan, HunyuanVideo or Mochi")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", choices=[n for n in PRESETS if n.endswith("-long")], default="wan2.1-14b-long")
    parser.add_argument("--decay", type=float, help="band width factor, in place of the preset's")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--shift", type=float, default=5.0, help="time shift of the noise levels drawn")
    parser.add_argument("--dense-layers", type=int, default=2)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--strict", action="store_true", help="falling back from the backend is an error")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations: less memory, more time")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=None)
    options = parser.parse_args(arguments)
    chosen = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    options.dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[chosen]
    return options


if __name__ == "__main__":
    train(parse())
