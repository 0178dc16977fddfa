"""Put what benchmarks/embedded.py measured of base and students where users read it.

    python scripts/student_figures.py

benchmarks/results/embedded-METHOD.json (base) and student-STUDENT-METHOD.json -> figures.json beside the
students, which `longvid models` shows, and the table in docs/training.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

KEPT = (
    *("method", "seconds", "videos", "first", "last", "world_motion", "identity_drift", "identity_drift_other_seed"),
    "frames_per_second_median",
)
SHARES = ("shape", "colour", "background", "one_subject")


def read_results(results: Path) -> dict[str, list[dict[str, Any]]]:
    """Figures by student, "base" first, each a list over methods."""
    found: dict[str, list[dict[str, Any]]] = {"base": []}
    for path in [*sorted(results.glob("embedded-*.json")), *sorted(results.glob("student-*.json"))]:
        record = json.loads(path.read_text(encoding="utf-8"))
        figures = record["figures"]
        entry = {name: figures[name] for name in KEPT} | {"commit": record["commit"]}
        found.setdefault(figures.get("student", "base"), []).append(entry)
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """A row a (method, student): methods together, base above its students."""
    head = ["method", "student", "videos", "shape", "colour", "background", "one subject", "motion", "drift"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    rows = [(seen["method"], student != "base", student, seen) for student, all_ in found.items() for seen in all_]
    for method, _, student, seen in sorted(rows, key=lambda row: row[:3]):
        ends = (seen["first"], seen["last"])
        shares = [" / ".join(f"{100 * part[key]:.1f}" for part in ends) for key in SHARES]
        motion = " / ".join(f"{part['motion'] / seen['world_motion']:.2f}" for part in ends)
        drift = seen["identity_drift"]
        mean = f"{sum(drift[1:]) / (len(drift) - 1):.1f}, {drift[-1]:.1f}" if len(drift) > 1 else ""
        lines.append("| " + " | ".join([method, student, str(seen["videos"]), *shares, motion, mean]) + " |")
    return "\n".join(lines)


def main() -> None:
    found = read_results(ROOT / "benchmarks" / "results")
    out = ROOT / "longvid" / "models" / "embedded" / "students" / "figures.json"
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = ROOT / "docs" / "training.md"
    before, _, rest = page.read_text(encoding="utf-8").partition("<!-- students -->")
    _, _, after = rest.partition("<!-- /students -->")
    page.write_text(f"{before}<!-- students -->\n{table(found)}\n<!-- /students -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
