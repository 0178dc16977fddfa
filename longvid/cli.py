"""The command line: ``longvid render | serve | eval | bench | convert | models | methods | env``.

Exit codes: 0 done; 2 bad input, and one line on stderr says what and how to mend it; 130 interrupted, and what was
rendered plays. Nothing here imports torch: a typing error costs a fraction of a second.
"""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import longvid
from longvid.errors import DiskFullError, InputError, Interrupted

DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130

#: Modules that add commands, each by its ``register(app)``, in the order of ``--help``.
_COMMANDS = (
    "longvid.render_cli",
    "longvid.serve.cli",
    "longvid.metrics.cli",
    "longvid.bench_cli",
    "longvid.models.checkpoints.cli",
    "longvid.models.cli",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    signal.signal(signal.SIGTERM, _terminated)  # as Ctrl-C: what was rendered is kept and plays
    try:
        code = build_app()(args=arguments, prog_name="longvid", standalone_mode=False)
        return _complain("interrupted", INTERRUPTED) if code == INTERRUPTED else code if isinstance(code, int) else DONE
    except (InputError, DiskFullError) as error:
        return _complain(error.strerror if isinstance(error, DiskFullError) else error, BAD_INPUT)
    except Interrupted as interrupt:
        return _complain(interrupt, INTERRUPTED)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except Exception as error:
        if callable(getattr(error, "format_message", None)):  # a usage error of typer's
            return _complain(error.format_message(), BAD_INPUT)  # type: ignore[attr-defined]
        if type(error).__name__ == "OutOfMemoryError":
            return _complain("the GPU's memory is full; use a smaller size or window, or --device cpu", BAD_INPUT)
        raise


def build_app() -> typer.Typer:
    """The application with every command whose module is there."""
    app = typer.Typer(
        name="longvid",
        help="Long video from short-clip diffusion models.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_version_option)
    package = Path(longvid.__file__).parent
    for name in _COMMANDS:
        path = package.joinpath(*name.split(".")[1:])
        if path.with_suffix(".py").is_file():
            importlib.import_module(name).register(app)
    app.command("methods")(methods)
    app.command("env")(env)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        print(longvid.__version__)
        raise typer.Exit


def _version_option(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Long video from short-clip diffusion models."""


def methods(
    name: Annotated[str | None, typer.Argument(help="Print this method in full, as YAML.", show_default=False)] = None,
) -> None:
    """List the methods: paper, constants, and what a block costs."""
    from longvid.config import DEFAULT_METHOD, to_mapping
    from longvid.plan import cost_per_block
    from longvid.presets import load_method, method_names

    out = Console(highlight=False)
    if name is not None:
        from omegaconf import OmegaConf

        text = OmegaConf.to_yaml(OmegaConf.create(to_mapping(load_method(name)))).rstrip()
        Console(highlight=False, soft_wrap=True).print(text, markup=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("method", "published as", "constants", "a block costs"):
        table.add_column(heading, overflow="fold")
    for known in method_names():
        method = load_method(known)
        cost = cost_per_block(method)
        star = " *" if known == DEFAULT_METHOD else ""
        table.add_row(
            known + star,
            f"{method.title}, {method.paper}",
            _constants(method),
            f"{cost.calls:g} calls over {cost.frames:g} latent frames for {cost.latent_frames}",
        )
    out.print(table)
    out.print(f"* when --method is not given. More: longvid methods {DEFAULT_METHOD}", markup=False)


def _constants(method: Any) -> str:
    schedule, cache = method.schedule, method.cache
    if schedule.kind == "fifo":
        parts = [f"{schedule.num_partitions} partitions", schedule.sampler]
        parts += [f"tail {schedule.tail_gain:g}"] if schedule.tail_gain else []
        parts += [f"subject {schedule.subject_attention}"] if schedule.subject_attention != "none" else []
        parts += [f"guidance {schedule.memory_guidance:g}"] if schedule.memory_guidance else []
        return ", ".join(parts)
    steps = f"{len(schedule.steps)} steps"
    window = "all history" if cache.window < 0 else f"window {cache.window}"
    parts = [steps, window, f"sink {cache.sink}", f"{cache.positions} positions"]
    if cache.policy == "participative":
        parts += [f"budget {cache.budget}", f"recent {cache.recent}"]
    if cache.policy == "ema-sink":
        parts.append(f"alpha {cache.ema_alpha:g}")
    if cache.policy == "radial":
        parts.append(f"recent {cache.recent}")
    return ", ".join(parts)


def env() -> None:
    """Print facts about this machine and installation, for bug reports."""
    from longvid.environment import environment

    for what, value in environment():
        print(f"{what + ':':24} {value}")


def _terminated(*_: object) -> None:
    raise KeyboardInterrupt


def _complain(message: object, code: int) -> int:
    text = " ".join(str(message).split())
    print(f"longvid: {text}", file=sys.stderr)
    return code


def run() -> None:
    """Entry point of the ``longvid`` script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
