"""Put what benchmarks/methods.py measured of base and students where users read it.

    python scripts/student_figures.py           writes figures.json and the table
    python scripts/student_figures.py --check   fails when one is out of date, or a preset breaks the rule

benchmarks/results/methods_60s.json -> figures.json beside the students, which `longvid models` shows, and the table in
docs/training.md. Base and students were measured on the same prompts and seeds; a record in which they were not is
refused. The rule for presets: see `earned`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pages
from benchmarks.entries import DEFAULT_ENTRIES, REFERENCES, Entry
from benchmarks.scores import METRICS
from benchmarks.tables import cell
from longvid.metrics.bootstrap import Interval
from longvid.models.cli import FIGURES
from longvid.models.folder import EMBEDDED
from longvid.models.students import BASE, FOLDER
from longvid.presets import load_method

PAGE = "docs/training.md"
RECORD = pages.ROOT / "benchmarks" / "results" / "methods_60s.json"
COSTS = pages.ROOT / "benchmarks" / "results" / "methods_costs.json"
SHIPPED = EMBEDDED / FOLDER / FIGURES
KEPT = (
    *("colour_first", "colour_last", "shape_first", "shape_last", "background_first", "background_last"),
    *("one_subject_first", "one_subject_last", "subject_motion", "scene_drift", "smoothness"),
)
COLUMNS = ("shape_first", "shape_last", "one_subject_last", "subject_motion", "scene_drift", "smoothness")


def read_record(path: Path) -> dict[str, Any]:
    """A record of benchmarks/methods.py or costs.py."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def compared(record: Mapping[str, Any]) -> list[tuple[Entry, str]]:
    """(entry, student) of every default entry with a student, and of the same methods on the base: by method, the base
    first. Raises SystemExit where they do not all have the same number of videos."""
    entries = [Entry.parse(text, "embedded") for text in DEFAULT_ENTRIES]
    facts = record["figures"]["entries"]
    known = [
        (entry, facts[entry.label]["student"] or BASE)
        for entry in entries
        if entry.method not in REFERENCES and not entry.overrides and entry.label in facts
    ]
    taught = {entry.method for entry, student in known if student != BASE}
    shown = [(entry, student) for entry, student in known if entry.method in taught]
    counts = {entry.label: facts[entry.label]["videos"] for entry, _ in shown}
    if len(set(counts.values())) > 1:
        raise SystemExit(
            f"{RECORD.name}: videos={counts}: must be the same number for all; render those that are missing"
        )
    return sorted(shown, key=lambda pair: (pair[0].method, pair[1] != BASE, pair[1]))


EARNED = ("better", "motion unclear")


def earned(figures: Mapping[str, Any], label: str) -> bool:
    """Whether a method picks the student of an entry: in the paired comparison with the baseline, shapes at the end are
    clearly better, and drift clearly less without being shown to cost motion (the verdicts "better" and "motion
    unclear"). A student costs half the passes, for it needs no guidance."""
    shape = Interval(**figures["differences"][label]["shape_last"])
    verdict = figures["drift_verdicts"][label]
    return shape.clear and shape.estimate > 0 and verdict is not None and verdict["verdict"] in EARNED


def broken_rules(record: Mapping[str, Any]) -> list[str]:
    """Methods that were measured on base and student, and whose preset picks otherwise than the rule says."""
    shown = compared(record)
    with_base = {entry.method for entry, student in shown if student == BASE}
    broken = []
    for entry, student in shown:
        if student == BASE or entry.method not in with_base:
            continue
        picks, may = load_method(entry.method).student == student, earned(record["figures"], entry.label)
        if picks != may:
            told = "picks it, but it has not earned it" if picks else "does not pick it, but it has earned it"
            broken.append(f"configs/{entry.method}.yaml: student={student!r}: the preset {told} by {RECORD.name}")
    return broken


def by_student(record: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Figures by student, "base" first, each a list over methods: means and, where the entry is not the baseline
    itself, paired differences from it, with their intervals; the world's own means beside them."""
    figures = record["figures"]
    found: dict[str, list[dict[str, Any]]] = {BASE: []}
    for entry, student in compared(record):
        label = entry.label
        found.setdefault(student, []).append(
            {
                "method": entry.method,
                "entry": label,
                "seconds": record["seconds"],
                "prompts": record["prompts"],
                "videos": figures["entries"][label]["videos"],
                "commit": record["commit"],
                "means": {name: figures["means"][label][name] for name in KEPT},
                "baseline": figures["baseline"],
                "differences": {name: figures["differences"][label][name] for name in KEPT}
                if label != figures["baseline"]
                else None,
                "world": {name: figures["means"]["world"][name]["estimate"] for name in KEPT},
            }
        )
    return found


def table(record: Mapping[str, Any], costs: Mapping[str, Any]) -> str:
    """A row a (method, student): methods together, base above its students; then what was measured. costs: by entry,
    of benchmarks/costs.py."""
    figures = record["figures"]
    head = ["method", "student", "videos", *(METRICS[name].title for name in COLUMNS), "frames a second"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for entry, student in compared(record):
        cost = costs.get(entry.label)
        lines.append(
            f"| {entry.method} | {student} | {figures['entries'][entry.label]['videos']} | "
            + " | ".join(cell(figures, entry.label, name) for name in COLUMNS)
            + (f" | {cost['frames_a_second']:.0f} |" if cost else " | - |")
        )
    still = figures["means"][figures["baseline"]]["scene_drift"]["prompts"]
    return "\n".join(
        [
            *lines,
            "",
            f"{record['prompts']} held-out prompts x {record['seeds']} seeds x {record['seconds']:g} s, the same for "
            f"every row; drift on the {still} of them whose scenes stand still; commit {record['commit']}. Means with "
            f"95 % intervals over prompts. **Bold**: clearly better than {figures['baseline']} on the base in the "
            "paired comparison; _italic_: clearly worse; \\*: clearly different where neither way is better.",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    record = read_record(RECORD)
    stale = pages.write(
        {"students": (PAGE, lambda: table(record, read_record(COSTS)["figures"]["costs"]))},
        "scripts/student_figures.py",
        check=check,
    )
    text = json.dumps(by_student(record), indent=1) + "\n"
    if not check:
        SHIPPED.write_text(text, encoding="utf-8")
    elif SHIPPED.read_text(encoding="utf-8") != text:
        print(f"{SHIPPED.name}: out of date; run python scripts/student_figures.py", file=sys.stderr)
        stale = 1
    broken = broken_rules(record)
    print("\n".join(broken), file=sys.stderr, end="\n" if broken else "")
    return 1 if stale or broken else 0


if __name__ == "__main__":
    sys.exit(main())
