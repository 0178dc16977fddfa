"""The command line: what it prints, what it refuses, and its exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

import longvid
from longvid.cli import main
from longvid.media.journal import journal_folder, read_sidecar
from longvid.media.writer import open_writer
from longvid.metrics.blocks import rendered_blocks
from longvid.metrics.reader import VideoReader

PROMPT = "a red ball bounces over green hills"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is a failure."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(longvid, "load", load)


def frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_render_writes_a_video(run: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    code, out, err = run(
        "render", PROMPT, "--model", tiny_model_folder, "-s", 2, "--method", "self-forcing", "-o", "a.mp4"
    )
    assert code == 0, err
    assert out.startswith("wrote a.mp4: 2 s, 32 frames")
    assert frames_of(tmp_path / "a.mp4") == 32
    assert read_sidecar(tmp_path / "a.mp4") is not None
    code, _, err = run("render", PROMPT, "--model", tiny_model_folder, "-s", 2, "-o", "a.mp4")
    assert code == 2
    assert "a.mp4" in err
    assert "--overwrite" in err
    code, out, _ = run(
        "render", PROMPT, "--model", tiny_model_folder, "-s", 2, "--method", "self-forcing", "-o", "a.mp4", "--resume"
    )
    assert (code, out) == (0, "a.mp4 was already finished\n")


def test_unknown_words_are_named(run: Any, tiny_model_folder: Path) -> None:
    code, _, err = run("render", "a red zyzzyva bounces", "--model", tiny_model_folder, "-s", 1)
    assert code == 0
    assert "zyzzyva" in err


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["render", "dry run"])
def test_options_that_do_nothing_are_noted_once(
    run: Any, tiny_model_folder: Path, given_files: None, dry: list[str]
) -> None:
    Path("prompts.txt").write_text("a red ball\na blue star\n")
    options = ("--negative-prompt", "blurry", "--crf", 20, "--image", "first.png")
    arguments = ("render", "--prompts-file", "prompts.txt", "--model", tiny_model_folder, "-s", 1, "-o", "b.gif", *dry)
    code, _, err = run(*arguments, *options)
    assert code == 0, err
    assert err.count("note:") == 2
    assert "note: negative_prompt='blurry': is not used at schedule.guidance_scale=1; set" in err
    assert "note: crf=20: is not used for .gif; render to .mp4, or leave it out" in err
    assert "note:" not in run(*arguments, *options, "--quiet", "--overwrite")[2]


def test_prompts_from_a_file_are_numbered(run: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("# two\na red ball\na blue star[1s]\n")
    arguments = ("render", "--prompts-file", "prompts.txt", "--model", tiny_model_folder, "-s", 1, "--seed", 5)
    assert run(*arguments)[0] == 0
    assert frames_of(tmp_path / "001-a-red-ball-5.mp4") == 16
    assert frames_of(tmp_path / "002-a-blue-star-6.mp4") == 16
    assert run(*arguments, "-o", "clip.webp")[0] == 0
    assert (tmp_path / "clip-001.webp").is_file()
    assert (tmp_path / "clip-002.webp").is_file()
    (tmp_path / "out").mkdir()
    assert run("render", "a red ball", "--model", tiny_model_folder, "-s", 1, "-o", "out")[0] == 0
    assert frames_of(tmp_path / "out" / "a-red-ball-0.mp4") == 16


def test_dry_run_prints_what_config_takes_back(
    run: Any, no_weights: None, tiny_model_folder: Path, tmp_path: Path
) -> None:
    arguments = ("render", "a[5s] | b[20s#]", "--model", tiny_model_folder, "--set", "cache.sink=6", "--dry-run")
    code, out, err = run(*arguments)
    assert code == 0, err
    plain = OmegaConf.to_container(OmegaConf.create(out))
    assert isinstance(plain, dict)
    assert plain["cache"]["sink"] == 6
    assert plain["schedule"]["steps"] == [1000.0, 500.0]  # the model folder's, over the method's
    assert "# video: 25 s, 400 frames of 64x64 at 16 fps" in out
    assert "# blocks: 34, each 3 model calls over 9 latent frames" in out
    assert "prompt 2: b" in out
    assert "# memory: " in out
    (tmp_path / "saved.yaml").write_text(out)
    assert run("render", "--config", "saved.yaml", "--dry-run")[1] == out
    # options are stronger than the file, --set is stronger than options
    again = run(
        "render", "--config", "saved.yaml", "--dry-run", "--seed", 4, "--set", "seed=5", "--set", "cache.sink=3"
    )
    plain = OmegaConf.to_container(OmegaConf.create(again[1]))
    assert isinstance(plain, dict)
    assert (plain["seed"], plain["cache"]["sink"], plain["cache"]["window"]) == (5, 3, 21)


def test_the_examples_of_set_work_with_the_default_method(run: Any, no_weights: None, tiny_model_folder: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "rendering.md").read_text("utf-8")
    told = page + run("render", "--help")[1] + run("render", PROMPT, "--set", "window")[2]
    pairs = re.findall(r"(?:--set |such as )'?([a-z]+\.\w+=[\w\[\],]+)", told)
    assert len(pairs) == 4, "two in the page, one in the help and one in the message"
    code, _, err = run(
        "render", PROMPT, "--model", tiny_model_folder, "--dry-run", *(f"--set={pair}" for pair in pairs)
    )
    assert code == 0, err


@pytest.mark.parametrize("method", ["self-forcing", "rolling-forcing", "reward-forcing", "fifo"])
def test_the_plan_is_what_is_rendered(run: Any, tiny_model_folder: Path, tmp_path: Path, method: str) -> None:
    arguments = ("render", PROMPT, "--model", tiny_model_folder, "-s", 2, "--method", method, "-o", "a.mp4")
    code, plan, err = run(*arguments, "--dry-run")
    assert code == 0, err
    assert run(*arguments)[0] == 0
    assert frames_of(tmp_path / "a.mp4") == 32
    assert "# video: 2 s, 32 frames of 64x64 at 16 fps" in plan


BAD = {
    "no prompt": ([], "give a prompt or a file of prompts"),
    "empty prompt": ([" "], "must not be empty"),
    "huge prompt": (["x" * 100_000], "100000 characters in one part"),
    "broken schedule": (["a | b[5s]"], "character 3"),
    "nan seconds": ([PROMPT, "--seconds", "nan"], "seconds=nan"),
    "negative seconds": ([PROMPT, "--seconds=-3"], "seconds=-3"),
    "huge seconds": ([PROMPT, "--seconds", "1e300"], "at most 604800 (a week)"),
    "no number": ([PROMPT, "--seconds", "long"], "'--seconds' / '-s'"),
    "frames": ([PROMPT, "--frames", "82"], "nearest 81 or 85"),
    "both lengths": ([PROMPT, "--frames", "81", "-s", "5"], "not both"),
    "height": ([PROMPT, "--height", "100"], "nearest 96 or 128"),
    "seed": ([PROMPT, "--seed=-1"], "seed=-1"),
    "method": ([PROMPT, "--method", "deep-forcin"], "did you mean 'deep-forcing'"),
    "set key": ([PROMPT, "--set", "cache.windw=3"], "did you mean 'cache.window'"),
    "set other key": ([PROMPT, "--set", "secnds=3"], "did you mean 'seconds'"),
    "set syntax": ([PROMPT, "--set", "window"], "must be key=value"),
    "set value": ([PROMPT, "--set", "cache.window=wide"], "must be a whole number"),
    "set section": ([PROMPT, "--set", "cache=3"], "must be a mapping"),
    "sink": ([PROMPT, "--set", "cache.sink=21"], "must be below cache.window=21"),
    "window": ([PROMPT, "--method", "self-forcing", "--set", "cache.window=2"], "must be at least schedule.frames_per"),
    "option": ([PROMPT, "--secnds", "3"], "--secnds"),
    "ending": ([PROMPT, "--out", "a.avi"], "must be one of .mp4, .gif, .webp, .png"),
    "folder": ([PROMPT, "--out", "none/a.mp4"], "there is no folder"),
    "model": ([PROMPT, "--model", "./none"], "no such folder"),
    "device": ([PROMPT, "--device", "tpu"], "device='tpu'"),
    "no gpu": ([PROMPT, "--device", "cuda:99"], "is not on this machine"),
    "dtype": ([PROMPT, "--dtype", "float8"], "dtype"),
    "crf": ([PROMPT, "--crf", "90"], "crf=90"),
    "prompts file": (["--prompts-file", "none.txt"], "cannot be read"),
    "config": ([PROMPT, "--config", "none.yaml"], "cannot be read"),
    "image": ([PROMPT, "--image", "none.png"], "no such file"),
    "attention": ([PROMPT, "--attention", "radail"], "did you mean 'radial'"),
    "both wishes": ([PROMPT, "--resume", "--overwrite"], "not both"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Any, no_weights: None, tiny_model_folder: Path, tmp_path: Path, case: str
) -> None:
    arguments, rule = BAD[case]
    model = [] if "--model" in arguments else ["--model", tiny_model_folder]
    code, out, err = run("render", *arguments, *model)
    assert (code, out) == (2, "")
    assert rule in err
    assert err.count("\n") == 1
    assert len(err) < 400
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_model_is_refused(run: Any, make_tiny_pipe: Any, tmp_path: Path) -> None:
    make_tiny_pipe().save_pretrained(tmp_path / "model")
    weights = next((tmp_path / "model" / "transformer").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    code, _, err = run("render", PROMPT, "--model", "model", "-s", 1)
    assert code == 2
    assert "is damaged" in err
    assert err.count("\n") == 1
    weights.write_bytes(whole)
    (tmp_path / "model" / "vae" / "config.json").write_text("{")
    code, _, err = run("render", PROMPT, "--model", "model", "-s", 1)
    assert code == 2
    assert "vae/config.json cannot be read" in err
    (tmp_path / "model" / "model_index.json").unlink()
    code, _, err = run("render", PROMPT, "--model", "model", "-s", 1)
    assert code == 2
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*.mp4*"))


def test_ctrl_c_leaves_a_video_and_resume_goes_on(
    run: Any, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longvid.progress import RenderDisplay

    arguments = ("render", PROMPT, "--model", tiny_model_folder, "-s", 3, "-o", "a.mp4")

    def stop(self: RenderDisplay, progress: Any) -> None:
        self.last = progress
        if progress.block == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RenderDisplay, "update", stop)
        code, out, err = run(*arguments)
    assert (code, out) == (130, "")
    assert err == "longvid: interrupted: a.mp4 plays (1.3 s); the same command with --resume goes on\n"
    assert frames_of(tmp_path / "a.mp4") == 21
    code, _, err = run(*arguments)
    assert code == 2
    assert "unfinished render" in err
    code, _, err = run(*arguments, "--seed", 1, "--resume")
    assert code == 2
    assert "seed was" in err
    assert run(*arguments, "--resume")[0] == 0
    assert frames_of(tmp_path / "a.mp4") == 48
    assert not journal_folder(tmp_path / "a.mp4").exists()


def test_a_full_disk_is_one_line(
    run: Any, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limit[1]))
    try:
        code, _, err = run("render", PROMPT, "--model", tiny_model_folder, "-s", 20, "-o", "a.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert code == 2
    assert err.count("\n") == 1
    assert "no room on the disk" in err


def test_an_image_and_a_video_to_begin_with(run: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (80, 64), (200, 30, 30)).save(tmp_path / "first.png")
    common = ("--model", tiny_model_folder, "--method", "self-forcing", "-s", 2)
    code, _, err = run("render", PROMPT, *common, "--image", "first.png", "-o", "i.mp4")
    assert code == 0, err
    assert frames_of(tmp_path / "i.mp4") == 32
    code, _, err = run("render", PROMPT, *common, "--video", "i.mp4", "-s", 3, "-o", "v.mp4")
    assert code == 0, err
    assert frames_of(tmp_path / "v.mp4") == 48
    (tmp_path / "bad.png").write_bytes(b"no picture")
    code, _, err = run("render", PROMPT, *common, "--image", "bad.png", "-o", "b.mp4")
    assert code == 2
    assert "is no picture" in err
    code, _, err = run("render", PROMPT, *common, "--video", "bad.png", "-o", "b.mp4")
    assert code == 2
    assert err.count("\n") == 1


def planned_starts(plan: str) -> list[int]:
    """The video frames at which a printed plan's blocks begin."""
    return [int(start) for start in re.findall(r"# +block \d+: .*video frames (\d+)-", plan)]


@pytest.fixture
def given_files(tmp_path: Path) -> None:
    """first.png, and first.mp4 of 33 frames."""
    picture = np.full((33, 64, 64, 3), (200, 30, 30), np.uint8)
    Image.fromarray(picture[0]).save(tmp_path / "first.png")
    writer = open_writer(tmp_path / "first.mp4", width=64, height=64, fps=16)
    writer.append(picture)
    writer.finish()


@pytest.mark.parametrize(
    ("option", "name", "starts"),
    [("--image", "first.png", [0, 1, 13, 25, 37]), ("--video", "first.mp4", [0, 9, 21, 33])],
)
def test_the_plan_counts_what_is_given(
    run: Any, given_files: None, tiny_model_folder: Path, tmp_path: Path, option: str, name: str, starts: list[int]
) -> None:
    arguments = ("render", PROMPT, "--model", tiny_model_folder, "-s", 2.5, option, name, "-o", "a.mp4")
    code, plan, err = run(*arguments, "--dry-run")
    assert code == 0, err
    assert planned_starts(plan) == starts
    assert run(*arguments)[0] == 0
    made = rendered_blocks(VideoReader(tmp_path / "a.mp4"))
    assert made is not None
    assert sorted(made.boundaries) == starts[1:]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["render", "dry run"])
@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["-s", 4, "--image", "first.png"], "part 2 would never be shown"),
        (["-s", 0.5, "--video", "first.mp4"], "seconds=0.5: what it goes on from has 2.0625 s already; ask for more"),
        (["--frames", 9, "--video", "first.mp4"], "num_frames=9: what it goes on from has 33 frames already"),
    ],
)
def test_what_is_given_is_counted_before_weights_load(
    run: Any, no_weights: None, given_files: None, tiny_model_folder: Path, arguments: Any, rule: str, dry: list[str]
) -> None:
    """Of a file of prompts none is rendered when a later one cannot be."""
    prompt = "a red ball[1.4s] | a blue box[0.3s] | a pink star" if "--image" in arguments else PROMPT
    Path("prompts.txt").write_text(f"a red ball[3s]\n{prompt}\n")
    for asked in ([prompt], ["--prompts-file", "prompts.txt"]):
        code, out, err = run("render", *asked, "--model", tiny_model_folder, *arguments, *dry)
        assert (code, out) == (2, "")
        assert rule in err


def test_methods_are_listed_and_printed(run: Any) -> None:
    code, out, _ = run("methods")
    assert code == 0
    for name in (
        "deep-forcing *",
        "self-forcing",
        "rolling-forcing",
        "arXiv 2512.05081",
        "5 calls over 15 latent frames",
        "all history, sink 1",
    ):
        assert name in out
    code, out, _ = run("methods", "reward-forcing")
    assert code == 0
    assert OmegaConf.create(out).cache.ema_alpha == 0.999
    assert run("methods", "reward")[0] == 2


def test_env_and_version(run: Any) -> None:
    code, out, _ = run("env")
    assert code == 0
    for word in ("python:", "torch:", "diffusers:", "h264 encoder:", "methods:"):
        assert word in out
    assert run("--version")[:2] == (0, longvid.__version__ + "\n")


def test_bench_measures_and_prints(run: Any, tiny_model_folder: Path) -> None:
    import json

    arguments = ("bench", "--model", tiny_model_folder, "-s", 2, "--runs", 2, "--method", "self-forcing")
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    figures = json.loads(out)
    assert figures["speed"]["frames"] == 32
    assert len(figures["speed"]["render_seconds"]["runs"]) == 2
    assert figures["speed"]["times_real_time"]["median"] > 0
    assert min(figures["stages"].values()) > 0
    assert "x real time" in run(*arguments)[1]
    assert run("bench", "--runs", 0)[0] == 2


def test_typing_errors_do_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom longvid.cli import main\n"
        "code = main(['render', 'a ball', '--method', 'nothing'])\n"
        "assert code == 2\nassert main(['--help']) == 0\nassert main(['methods']) == 0\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
