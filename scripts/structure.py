"""docs/structure.md: one line a module, from the first line of its docstring.

python scripts/structure.py            writes it
python scripts/structure.py --check    fails when it is out of date
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "structure.md"
HEAD = """# Where things are

One line a module, from its docstring (`make docs` writes this file anew). Imports point one way:
command line, server -> pipelines -> schedules, cache, models, media -> kernels. The cache knows no model; the kernels
know nobody. Policies and schedules are pure and are tested on integers.
"""
FOLDERS = ("longvid", "scripts", "benchmarks")


def purpose(path: Path) -> str:
    """The first sentence of a module's docstring. Raises ``ValueError`` when there is none."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{path.relative_to(ROOT)}: needs a docstring whose first line says what it is for")
    return " ".join(text.split("\n\n")[0].split())


def structure() -> str:
    """The page."""
    lines = [HEAD]
    for folder in FOLDERS:
        packages: dict[Path, list[Path]] = {}
        for path in sorted((ROOT / folder).rglob("*.py")):
            packages.setdefault(path.parent, []).append(path)
        for package, paths in sorted(packages.items()):
            own = package / "__init__.py"
            lines.append(f"\n## {package.relative_to(ROOT)}/\n")
            if own in paths and own.stat().st_size:
                lines.append(purpose(own) + "\n")
            modules = [path for path in paths if path != own]
            if modules:
                lines += ["| module | what it is for |", "|---|---|"]
                lines += [f"| {path.name} | {purpose(path).replace('|', chr(92) + '|')} |" for path in modules]
    return "\n".join(lines) + "\n"


def main() -> int:
    text = structure()
    if "--check" in sys.argv[1:]:
        same = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text
        print("structure: fine" if same else "docs/structure.md is out of date: make docs")
        return 0 if same else 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
