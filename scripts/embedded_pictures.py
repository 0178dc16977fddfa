"""Pictures for docs/embedded_model.md: training curves, and contact sheets of prompts that were not trained on.

    python scripts/embedded_pictures.py --out docs/images

Needs matplotlib (extra ``eval``). The curves come from the logs that the training stages wrote beside the weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def read_log(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def curves(logs: Path, out: Path) -> None:
    """Autoencoder PSNR and the diffusion loss of each layout over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name in ("autoencoder", "decoder"):
        if (logs / f"{name}.jsonl").exists():
            rows = read_log(logs / f"{name}.jsonl")
            left.plot([r["step"] for r in rows], [r["psnr_db"] for r in rows], label=name)
    left.set(xlabel="step", ylabel="held-out PSNR (dB)", title="autoencoder")
    left.legend()
    rows = read_log(logs / "diffusion.jsonl")
    for kind in sorted({k for r in rows for k in r} - {"step", "seconds", "lr"}):
        points = [(r["step"], r[kind]) for r in rows if kind in r]
        window = max(1, len(points) // 40)
        smooth = np.convolve([p[1] for p in points], np.ones(window) / window, "valid")
        right.plot([p[0] for p in points][window - 1 :], smooth, label=kind)
    right.set(xlabel="step", ylabel="weighted velocity error", title="diffusion", yscale="log")
    right.legend()
    figure.savefig(out / "embedded_training.png", dpi=90)


def contact_sheet(pipe, prompts: list[str], seconds: list[float], seed: int) -> Image.Image:
    """One row a prompt, one column a time in seconds."""
    rows = []
    for prompt in prompts:
        wanted = {round(s * pipe.fps): None for s in seconds}
        for chunk in pipe.stream(prompt, seconds=max(seconds) + 0.5, seed=seed):
            for at in wanted:
                if chunk.start_frame <= at < chunk.start_frame + len(chunk.frames):
                    wanted[at] = chunk.frames[at - chunk.start_frame]
        rows.append(np.concatenate(list(wanted.values()), axis=1))
    return Image.fromarray(np.concatenate(rows, axis=0))


def main() -> None:
    from longvid import load
    from longvid.pipelines.loading import model_folder
    from longvid.training.describe import held_out_prompts

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--method", default=None, help="the default method when not given")
    parser.add_argument("--seconds", type=float, nargs="+", default=[0, 1, 2, 5, 15, 30, 45, 59])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = model_folder(args.model)
    if folder is not None and (folder / "training" / "diffusion.jsonl").exists():
        curves(folder / "training", args.out)
    prompts = [text for text, _ in held_out_prompts(12)]
    sheet = contact_sheet(load(args.model, method=args.method), prompts, args.seconds, args.seed)
    sheet.save(args.out / "embedded_prompts.webp", quality=88)
    hero = contact_sheet(
        load(args.model, method=args.method), ["a red ball bounces over green hills"], args.seconds, args.seed
    )
    hero.save(args.out / "minute.webp", quality=90)
    print("\n".join(prompts))


if __name__ == "__main__":
    main()
