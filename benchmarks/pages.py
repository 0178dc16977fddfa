"""Tables inside documents: what lies between `<!-- table: NAME -->` and the next `<!-- end -->` belongs to a script."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Tables = Mapping[str, tuple[str, Callable[[], str]]]
"""Name of a table -> (document, relative to the repository's root; what makes the table)."""


def rendered(tables: Tables) -> dict[Path, str]:
    """Every document with its tables filled in. Raises SystemExit where a marker is missing."""
    texts: dict[Path, str] = {}
    for name, (document, make) in tables.items():
        path = ROOT / document
        text = texts.get(path) or path.read_text(encoding="utf-8")
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{document}: lacks the marker <!-- table: {name} --> ... <!-- end -->")
        table = make()
        texts[path] = pattern.sub(lambda m, table=table: f"{m[1]}\n{table}\n\n{m[2]}", text)
    return texts


def write(tables: Tables, script: str, *, check: bool) -> int:
    """Fill the documents in; with `check` only say which are out of date, and give 1 if any is."""
    stale = {path: text for path, text in rendered(tables).items() if path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        if check:
            print(f"{path.relative_to(ROOT)}: out of date; run python {script}", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if check and stale else 0
