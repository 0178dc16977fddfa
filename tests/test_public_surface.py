"""What people build on: the names of `longvid` and the options of the command line. Changing them is a choice."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import longvid
from longvid.cli import build_app

NAMES = [
    "AttentionConfig",
    "AutoencoderTinyVideo",
    "CacheConfig",
    "CaptionEncoder",
    "DeepForcingPipeline",
    "FifoPipeline",
    "InputError",
    "LongVideoPipeline",
    "LongVideoPipelineOutput",
    "MethodConfig",
    "OuroborosPipeline",
    "RewardForcingPipeline",
    "RollingForcingPipeline",
    "ScheduleConfig",
    "SelfForcingPipeline",
    "StreamingLLMPipeline",
    "VideoChunk",
    "__version__",
    "load",
]
RENDER = [
    *("--attention", "--config", "--crf", "--device", "--dry-run", "--dtype", "--frames", "--height", "--image"),
    *("--method", "--model", "--negative-prompt", "--out", "--overwrite", "--prompts-file", "--quiet", "--resume"),
    *("--seconds", "--seed", "--set", "--student", "--video", "--width", "-m", "-o", "-q", "-s", "prompt"),
]
COMMANDS = {"render", "serve", "eval", "bench", "convert", "models", "methods", "env"}


def command(name: str) -> Any:
    import typer

    return typer.main.get_command(build_app()).commands[name]  # type: ignore[attr-defined]


def test_names_of_the_package() -> None:
    assert sorted(longvid.__all__) == NAMES
    assert dir(longvid) == sorted(longvid.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there(name: str) -> None:
    assert getattr(longvid, name) is getattr(longvid, name)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        longvid.Pipeline  # noqa: B018


def test_commands_and_options_of_render() -> None:
    import typer

    group: Any = typer.main.get_command(build_app())
    assert set(group.commands) >= COMMANDS
    options = [option for parameter in command("render").params for option in parameter.opts]
    assert sorted(options) == RENDER


def test_every_command_has_help() -> None:
    import typer

    group: Any = typer.main.get_command(build_app())
    for name, each in group.commands.items():
        assert each.help, name


def test_importing_is_cheap_and_does_not_import_torch() -> None:
    """0.3 s is the promise. The clock is the process's own CPU time, so a busy machine changes nothing."""
    code = (
        "import sys, time\nbegun = time.process_time()\nimport longvid\n"
        "print(time.process_time() - begun)\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'diffusers', 'numpy'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.splitlines()
    assert float(seconds) < 0.3
    assert heavy == "[]"


def test_configuration_and_prompts_do_without_torch() -> None:
    code = (
        "import sys\nimport longvid.config, longvid.presets, longvid.prompts, longvid.render_config, longvid.cli\n"
        "from longvid.presets import method_names, load_method\n[load_method(name) for name in method_names()]\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_diffusers_can_save_and_load_longvids_classes(make_tiny_pipe: Any, tmp_path: Any) -> None:
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    make_tiny_pipe().save_pretrained(tmp_path)
    assert "ModelMixin" in LOADABLE_CLASSES["longvid"]
    again = longvid.SelfForcingPipeline.from_pretrained(tmp_path)
    assert type(again.vae).__name__ == "AutoencoderTinyVideo"
    assert type(again.text_encoder).__name__ == "CaptionEncoder"
