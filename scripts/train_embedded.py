"""Train the embedded model from nothing: ``python scripts/train_embedded.py --stage all``.

Stages, each resumable from its last checkpoint (bit for bit) and each with a JSON log beside it:

    world        render short clips for the autoencoder
    probe        the judge: a net trained on rendered frames, with its own held-out accuracy
    autoencoder  frames <-> latents
    videos       render 81-frame clips, held-out captions left out
    encode       their latents, and the latents' statistics
    decoder      the autoencoder's decoder alone, for sharper pictures from the same latents
    diffusion    flow matching on the stock WanTransformer3DModel
    export       the moving average as float16 safetensors into a model folder (the package's, by default)

``--layout`` is what the diffusion stage trains on: the mixture that made the embedded model, or a base trained by
teacher forcing or diffusion forcing alone. On several GPUs: ``accelerate launch scripts/train_embedded.py --stage
diffusion``, and so autoencoder and decoder; the other stages run on one process. docs/training.md is the guide.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STAGES = ("world", "probe", "autoencoder", "videos", "encode", "decoder", "diffusion", "export")
TRAINED = ("autoencoder", "decoder", "diffusion")  # on any number of processes; their logs can be drawn


def run_stage(stage: str, args: argparse.Namespace, accelerator: Any) -> None:
    from longvid.config import require
    from longvid.models.autoencoder import AutoencoderTinyVideo
    from longvid.training import autoencoder_stage, diffusion_stage, encode_stage, probe

    folder: Path = args.folder
    if stage not in TRAINED:
        rule = f"runs on one process, and there are {accelerator.num_processes}; run it without accelerate launch"
        require(accelerator.num_processes == 1, "stage", stage, rule)
    if stage == "world":
        autoencoder_stage.world_stage(folder, clips=args.clips)
    elif stage == "probe":
        path = folder / "probe.safetensors"
        if not path.exists():
            (folder / "probe.json").write_text(json.dumps(probe.train_probe(path)))
    elif stage == "autoencoder":
        vae = autoencoder_stage.autoencoder_stage(folder, steps=args.ae_steps, accelerator=accelerator)
        if accelerator.is_main_process:
            vae.save_pretrained(folder / "vae")
    elif stage == "videos":
        encode_stage.videos_stage(folder, clips=args.videos)
    elif stage == "encode":
        vae = AutoencoderTinyVideo.from_pretrained(folder / "vae")
        encode_stage.encode_stage(folder, vae.to(accelerator.device))
    elif stage == "decoder":
        autoencoder_stage.decoder_stage(folder, steps=args.decoder_steps, accelerator=accelerator)
    elif stage == "diffusion":
        how: dict[str, Any] = {"layout": args.layout, "compiled": args.compile, "accelerator": accelerator}
        diffusion_stage.diffusion_stage(folder, steps=args.steps, **how)
    else:
        from longvid.training import export

        export.export_stage(folder, args.out)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--folder", type=Path, default=Path("runs/embedded"), help="work folder, about 25 GB")
    parser.add_argument("--out", type=Path, default=Path("longvid/models/embedded"), help="where export writes")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU run")
    parser.add_argument("--clips", type=int, default=6000, help="clips of 9 frames for the autoencoder")
    parser.add_argument("--ae-steps", type=int, default=5000)
    parser.add_argument("--videos", type=int, default=5000, help="clips of 81 frames for the diffusion model")
    parser.add_argument("--decoder-steps", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=6000, help="steps of the diffusion stage")
    parser.add_argument(
        "--layout",
        choices=("mixed", "teacher-forcing", "diffusion-forcing"),
        default="mixed",
        help="of the diffusion stage: the embedded model's mixture, or one way alone",
    )
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--plot", action="store_true", help="draw the curves of a stage that trains to STAGE.png in the work folder"
    )
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    import torch
    from accelerate import Accelerator

    torch.set_num_threads(args.threads)
    accelerator = Accelerator(mixed_precision="no")
    for stage in STAGES if args.stage == "all" else (args.stage,):
        run_stage(stage, args, accelerator)
        if args.plot and stage in TRAINED and accelerator.is_main_process:
            from longvid.training.curves import plot_training

            plot_training(args.folder / f"{stage}.jsonl", args.folder / f"{stage}.png")
    accelerator.end_training()


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input (one line says what), 130 interrupted (the last checkpoint stands)."""
    args = parse(arguments)
    from longvid.errors import InputError

    try:
        run(args)
    except InputError as error:
        print(f"train_embedded: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train_embedded: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
