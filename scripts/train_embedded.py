"""Train the embedded model from nothing: ``python scripts/train_embedded.py --stage all``.

Stages, each resumable from its last checkpoint and each with a JSON log beside it:

    world        render short clips for the autoencoder
    probe        the judge: a net trained on rendered frames, with its own held-out accuracy
    autoencoder  frames <-> latents
    videos       render 81-frame clips, held-out captions left out
    encode       their latents, and the latents' statistics
    decoder      the autoencoder's decoder alone, for sharper pictures from the same latents
    diffusion    flow matching on the stock WanTransformer3DModel
    export       the moving average as float16 safetensors into a model folder (the package's, by default)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STAGES = ("world", "probe", "autoencoder", "videos", "encode", "decoder", "diffusion", "export")


def run_stage(stage: str, args: argparse.Namespace) -> None:
    from longvid.models.autoencoder import AutoencoderTinyVideo
    from longvid.training import autoencoder_stage, diffusion_stage, encode_stage, probe

    folder: Path = args.folder
    if stage == "world":
        autoencoder_stage.world_stage(folder, clips=args.clips)
    elif stage == "probe":
        path = folder / "probe.safetensors"
        if not path.exists():
            (folder / "probe.json").write_text(json.dumps(probe.train_probe(path)))
    elif stage == "autoencoder":
        autoencoder_stage.autoencoder_stage(folder, steps=args.ae_steps).save_pretrained(folder / "vae")
    elif stage == "videos":
        encode_stage.videos_stage(folder, clips=args.videos)
    elif stage == "encode":
        encode_stage.encode_stage(folder, AutoencoderTinyVideo.from_pretrained(folder / "vae"))
    elif stage == "decoder":
        autoencoder_stage.decoder_stage(folder, steps=args.decoder_steps)
    elif stage == "diffusion":
        diffusion_stage.diffusion_stage(folder, steps=args.steps, compiled=args.compile)
    else:
        from longvid.training import export

        export.export_stage(folder, args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--folder", type=Path, default=Path("runs/embedded"), help="work folder, about 25 GB")
    parser.add_argument("--out", type=Path, default=Path("longvid/models/embedded"), help="where export writes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clips", type=int, default=6000, help="clips of 9 frames for the autoencoder")
    parser.add_argument("--ae-steps", type=int, default=5000)
    parser.add_argument("--videos", type=int, default=5000, help="clips of 81 frames for the diffusion model")
    parser.add_argument("--decoder-steps", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=6000, help="steps of the diffusion stage")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for stage in STAGES if args.stage == "all" else (args.stage,):
        run_stage(stage, args)


if __name__ == "__main__":
    main()
