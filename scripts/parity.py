"""Run golden cases through longvid's public classes: ``python scripts/parity.py DIR [DIR ...]``.

A directory holds ``cases.json``, a list of cases ``{file, kind, ..., atol}``, with their tensors beside it, and for
cases that need a model ``config.json`` and ``weights_*.safetensors``. Prints ``case max_abs_err limit ok|FAIL`` a line;
exits 1 when a case fails, raises or is of a kind that nobody here knows, and 2 when a directory has no cases.
``--json FILE`` records the same; ``scripts/rollout_tables.py`` makes the table of docs/parity.md of it.

Kinds live in ``parity_kinds/``: every module there has ``RUNNERS``, kind -> ``run(case, directory) -> max abs error``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import pkgutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DEFAULT_LIMIT = 1e-4
Runner = Callable[[dict[str, Any], Path], float]


def runners() -> dict[str, Runner]:
    """All kinds. Two modules that claim the same kind are an error."""
    for path in (HERE, HERE.parent):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    found: dict[str, Runner] = {}
    for module in pkgutil.iter_modules([str(HERE / "parity_kinds")]):
        for kind, run in getattr(importlib.import_module(f"parity_kinds.{module.name}"), "RUNNERS", {}).items():
            if kind in found:
                raise RuntimeError(f"parity_kinds.{module.name}: kind {kind!r} is taken")
            found[kind] = run
    return found


def case_name(case: dict[str, Any]) -> str:
    return Path(str(case.get("file") or case.get("generator") or case.get("kind"))).stem


def run_case(case: dict[str, Any], directory: Path, known: dict[str, Runner]) -> tuple[float, float, str]:
    """(max abs error, limit, what went wrong or "")."""
    limit = float(case.get("atol", case.get("rtol", DEFAULT_LIMIT)))
    kind = case.get("kind")
    if kind not in known:
        return math.inf, limit, f"unknown kind {kind!r}"
    try:
        error = float(known[kind](case, directory))
    except Exception as problem:  # a case that cannot be run is a failed case; the others still count
        traceback.print_exc(file=sys.stderr)
        return math.inf, limit, f"{type(problem).__name__}: {problem}"
    return error, limit, "" if error <= limit else "differs"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--only", help="run only cases whose name or kind contains this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="record the results there too")
    options = parser.parse_args(arguments)
    known = runners()
    failed, rows = 0, []
    for directory in options.directories:
        path = directory / "cases.json"
        if not path.is_file():
            print(f"{directory}: no cases.json here; give a directory of golden cases", file=sys.stderr)
            return 2
        for case in json.loads(path.read_text()):
            name = case_name(case)
            if options.only and options.only not in name and options.only != case.get("kind"):
                continue
            error, limit, problem = run_case(case, directory, known)
            verdict = f"FAIL ({problem})" if problem else "ok"
            print(f"{directory.name}/{name} {error:.3e} {limit:.0e} {verdict}", flush=True)
            failed += bool(problem)
            facts = {"directory": directory.name, "case": name, "kind": case.get("kind")}
            rows.append(facts | {"max_abs_err": error, "limit": limit, "ok": not problem})
    if options.json:
        from benchmarks.record import Record

        record = Record(vae=True, warm_up=0, dtype="float32")
        record.facts["command"] = "python scripts/parity.py DIR [DIR ...] --json FILE"  # not whose folders they were
        record.write(options.json, {"cases": rows})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
