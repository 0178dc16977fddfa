"""The tables of docs/methods/fifo.md and ouroboros.md, from the recorded figures.

    python scripts/fifo_tables.py            writes them between their markers
    python scripts/fifo_tables.py --check    fails when a document is out of date

The figures: benchmarks/methods.py (ouroboros_60s.json) and benchmarks/fifo.py (fifo_*_cpu.json).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pages
from benchmarks.tables import how, section_table

RESULTS = pages.ROOT / "benchmarks" / "results"
OUROBOROS, EVIDENCE = "docs/methods/ouroboros.md", "ouroboros_60s.json"
SHOWN = {
    "subject": ("pattern_kept", "size_change", "shape_last", "one_subject_last"),
    "scene": ("identity_drift", "consistency_10s", "seam", "smoothness", "luma_flutter"),
    "motion": ("motion", "subject_motion", "dynamic_degree", "frozen"),
}


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def cost_table() -> str:
    """Seconds a latent frame of every variant and model that was timed."""
    records = [_read(path.name) for path in sorted(RESULTS.glob("fifo_*_cpu.json"))]
    heads = [
        f"{f['model']}, dim {f['dim']}, f = {f['window_frames']}, n = {f['partitions']}, "
        f"{f['tokens_a_latent_frame']} tokens, {f['dtype']}"
        for f in (record["figures"] for record in records)
    ]
    lines = ["| seconds a latent frame, median (p95) | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    variants = dict.fromkeys(row["variant"] for record in records for row in record["figures"]["rows"])
    for variant in variants:
        cells = []
        for record in records:
            row = next((r for r in record["figures"]["rows"] if r["variant"] == variant), None)
            median, p95 = "median_seconds_a_latent_frame", "p95_seconds_a_latent_frame"
            cells.append("" if row is None else f"{row[median]:.3f} ({row[p95]:.3f})")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES: pages.Tables = {
    "evidence": (OUROBOROS, lambda: how(_read(EVIDENCE))),
    **{
        part: (OUROBOROS, lambda names=names: section_table(_read(EVIDENCE)["figures"], names))
        for part, names in SHOWN.items()
    },
    "cost": ("docs/methods/fifo.md", cost_table),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    return pages.write(TABLES, "scripts/fifo_tables.py", check=parser.parse_args(arguments).check)


if __name__ == "__main__":
    sys.exit(main())
