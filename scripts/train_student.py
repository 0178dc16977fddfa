"""Distil a few-step student from a base model: ``python scripts/train_student.py --kind self-forcing --model FOLDER``.

    self-forcing     DMD on the student's own rollouts, block after block
    rolling-forcing  the same, half of the passes with Rolling Forcing's joint windows
    reward-forcing   Re-DMD: every clip weighted by exp(beta * reward), under Reward Forcing's cache

Published settings are the defaults; ``--set key=value`` changes any of them (``--dry-run`` prints them all). A run goes
on from its folder's checkpoint by itself. On several GPUs: ``accelerate launch scripts/train_student.py ...``.
docs/training.md is the guide.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", required=True, choices=("self-forcing", "rolling-forcing", "reward-forcing"))
    parser.add_argument("--model", required=True, help="base: a local model folder, or 'embedded'")
    parser.add_argument("--steps", type=int, required=True, help="critic updates in all; the generator has fewer")
    parser.add_argument("--folder", type=Path, help="checkpoint and log; runs/students/KIND when not given")
    parser.add_argument(
        "--out", type=Path, help="where the student is written: a model folder, or an adapter (lora_rank)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the student at --out")
    parser.add_argument("--initial", help="model or adapter folder that the student starts from")
    parser.add_argument("--teacher", help="model folder of the real score, in place of the base")
    parser.add_argument("--prompts", type=Path, help="text file, one prompt a line; the embedded model has its own")
    parser.add_argument("--config", type=Path, help="YAML file of settings")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting, over --config")
    parser.add_argument("--log-every", type=int, default=10, metavar="STEPS")
    parser.add_argument("--save-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--threads", type=int, help="threads of a CPU run")
    parser.add_argument("--plot", type=Path, help="draw the curves to this PNG at the end")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    from longvid.models.folder import model_defaults
    from longvid.presets import merge, parse_overrides, read_yaml
    from longvid.training.distill.config import plain, student_config

    overrides = merge(read_yaml(args.config) if args.config else {}, parse_overrides(args.set))
    config = student_config(args.kind, model_defaults(args.model), overrides)
    if args.dry_run:
        print(json.dumps(plain(config), indent=1))
        return

    import torch
    from accelerate import Accelerator

    from longvid.training.distill.prompts import find_prompts
    from longvid.training.distill.student import LOG, check_out, export_adapter, export_student, load_parts
    from longvid.training.distill.trainer import Distiller

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.out:
        check_out(args.out, args.overwrite)
    accelerator = Accelerator(mixed_precision="no")
    folder = args.folder or Path("runs") / "students" / args.kind
    parts = load_parts(
        args.model, initial=args.initial, teacher=args.teacher, lora_rank=config.lora_rank, seed=config.seed
    )
    prompts = find_prompts(args.prompts, parts.pipe.text_encoder)
    distiller = Distiller(parts, config, prompts, folder, accelerator=accelerator)
    distiller.train(args.steps, log_every=args.log_every, save_every=args.save_every)
    if accelerator.is_main_process:
        if args.out:
            how: dict[str, Any] = {"log": folder / LOG, "overwrite": args.overwrite}
            if config.lora_rank:
                name = args.initial and Path(args.initial).name
                export_adapter(parts, distiller.weights, config, args.out, steps=distiller.step, initial=name, **how)
            else:
                export_student(parts, distiller.weights, config, args.out, **how)
        if args.plot:
            from longvid.training.curves import plot_training

            plot_training(folder / LOG, args.plot)
    accelerator.end_training()


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input (one line says what), 130 interrupted (the last checkpoint stands)."""
    args = parse(arguments)
    from longvid.errors import InputError

    try:
        run(args)
    except InputError as error:
        print(f"train_student: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train_student: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
