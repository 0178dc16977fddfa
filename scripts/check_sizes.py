"""Modules stay readable in one sitting: no Python file above 400 lines, no file in git above 25 MB.

python scripts/check_sizes.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_LINES = 400
MOST_BYTES = 25_000_000


def too_big(root: Path = ROOT) -> list[str]:
    """What breaks the caps, one line each."""
    wrong = []
    for path in tracked(root):
        if path.stat().st_size > MOST_BYTES:
            wrong.append(f"{path.relative_to(root)}: {path.stat().st_size:,} bytes; at most {MOST_BYTES:,}")
        if path.suffix == ".py":
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > MOST_LINES:
                wrong.append(f"{path.relative_to(root)}: {lines} lines; split it, at most {MOST_LINES}")
    return wrong


def tracked(root: Path) -> list[Path]:
    """Files that git tracks, or all below the usual folders where there is no git."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    if done.returncode == 0:
        files = [root / name for name in done.stdout.split("\0") if name]
    else:
        folders = ("longvid", "tests", "scripts", "benchmarks", "configs", "docs")
        files = [path for folder in folders for path in (root / folder).rglob("*")]
    return sorted(path for path in files if path.is_file())


if __name__ == "__main__":
    found = too_big()
    print("\n".join(found) or "sizes: fine")
    sys.exit(1 if found else 0)
