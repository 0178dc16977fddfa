"""Train the embedded model from nothing: ``python scripts/train_embedded.py --stage all``.

Stages, each resumable from its last checkpoint and each with a JSON-lines log beside it:
world (render clips), autoencoder, encode (latents of long clips), diffusion, export (into the package).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STAGES = ("world", "autoencoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--folder", type=Path, default=Path("runs/embedded"), help="work folder, a few GB")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clips", type=int, default=6000, help="clips of 9 frames for the autoencoder")
    parser.add_argument("--ae-steps", type=int, default=5000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from longvid.training import autoencoder_stage

    for stage in STAGES if args.stage == "all" else (args.stage,):
        if stage == "world":
            autoencoder_stage.world_stage(args.folder, clips=args.clips)
        elif stage == "autoencoder":
            vae = autoencoder_stage.autoencoder_stage(args.folder, steps=args.ae_steps)
            vae.save_pretrained(args.folder / "vae")


if __name__ == "__main__":
    main()
