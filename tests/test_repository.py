"""The shape of the repository: sizes, docstrings, the structure page, what files may and may not say."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "longvid").rglob("*.py"))


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_module_is_above_400_lines() -> None:
    assert script("check_sizes").too_big() == []


def test_a_module_that_is_too_big_is_found(tmp_path: Path) -> None:
    (tmp_path / "longvid").mkdir()
    (tmp_path / "longvid" / "big.py").write_text("x = 1\n" * 401)
    (tmp_path / "longvid" / "fine.py").write_text("x = 1\n" * 400)
    assert [line.split(":")[0] for line in script("check_sizes").too_big(tmp_path)] == ["longvid/big.py"]


def test_every_module_is_on_the_structure_page() -> None:
    text = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    listed = set()
    folder = ""
    for line in text.splitlines():
        if heading := re.match(r"## (\S+)/$", line):
            folder = heading[1]
        elif row := re.match(r"\| (\S+\.py) \|", line):
            listed.add(f"{folder}/{row[1]}")
    missing = {str(path.relative_to(ROOT)) for path in PACKAGE if path.name != "__init__.py"} - listed
    assert not missing, "run: make docs"
    assert not [name for name in listed if not (ROOT / name).is_file()], "run: make docs"


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    if path.stat().st_size:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_no_folder_is_called_like_a_pipeline_of_diffusers() -> None:
    """diffusers would record a component in ``.../wan/x.py`` as its own library's, and could not load it."""
    import diffusers.pipelines

    theirs = {path.name for path in Path(diffusers.pipelines.__file__).parent.iterdir() if path.is_dir()}
    ours = {path.name for path in (ROOT / "longvid").rglob("*") if path.is_dir() and path.name != "__pycache__"}
    assert not ours & theirs


def test_every_field_of_every_configuration_has_a_docstring() -> None:
    for name in ("config.py", "render_config.py"):
        tree = ast.parse((ROOT / "longvid" / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                for before, after in zip(node.body, [*node.body[1:], None], strict=True):
                    if isinstance(before, ast.AnnAssign):
                        documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                        assert documented, f"{name}: {node.name}.{ast.unparse(before.target)}"


def test_make_and_ci_name_what_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("render", "check", "test", "test-gpu", "bench", "docs", "serve"):
        assert re.search(rf"^{target}:", makefile, re.M)
    for path in re.findall(
        r"(?:scripts|benchmarks)/\w+\.py", makefile + (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    ):
        assert (ROOT / path).is_file(), path
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {hook["id"] for repo in hooks["repos"] for hook in repo["hooks"]} >= {
        "ruff-lint",
        "ruff-format",
        "mypy",
        "codespell",
    }


def make(*arguments: str) -> str:
    done = subprocess.run(["make", "-n", "-B", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_make_render_hands_over_any_prompt_and_its_own_seconds() -> None:
    """SECONDS is a counter of bash; a prompt may hold anything that a shell would read."""
    recipe = make("render")
    assert '--seconds "$LONGVID_SECONDS"' in recipe
    assert '-- "$LONGVID_PROMPT"' in recipe
    show = ["--eval", 'show: ; @printf \'%s\\n\' "$$LONGVID_SECONDS" "$$LONGVID_PROMPT"', "show"]
    prompt = "a 'red' \"ball\" | $(HOME) `id` [5s] $5 \\ *"
    run = ["make", "-s", *show, f"PROMPT={prompt}", "SECONDS=7"]
    assert subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout == f"7\n{prompt}\n"
    environment = {"PATH": "/usr/bin:/bin", "SECONDS": "1234"}
    run = ["make", "-s", *show]
    shown = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True, env=environment).stdout
    assert shown == "60\na red ball bounces over green hills\n"
