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
from benchmarks.scores import METRICS
from benchmarks.tables import cell

RESULTS = pages.ROOT / "benchmarks" / "results"
SHOWN = {
    "subject": ("pattern_kept", "size_change", "shape_last", "one_subject_last"),
    "scene": ("identity_drift", "consistency_10s", "seam", "smoothness", "luma_flutter"),
    "motion": ("motion", "subject_motion", "dynamic_degree", "frozen"),
}


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def evidence_table(part: str) -> str:
    """Entries by metrics of a part, with intervals; bold and italic as benchmarks/methods.py has them."""
    figures = _read("ouroboros_60s.json")["figures"]
    names = SHOWN[part]
    lines = ["| | " + " | ".join(METRICS[name].title for name in names) + " |", "|---|" + "---|" * len(names)]
    for entry in figures["means"]:
        lines.append(f"| `{entry}` | " + " | ".join(cell(figures, entry, name) for name in names) + " |")
    return "\n".join(lines)


def how() -> str:
    """One line: what was rendered, where, and by which commit."""
    record = _read("ouroboros_60s.json")
    figures, machine = record["figures"], record["machine"]
    dtype = next(iter(figures["entries"].values()))["dtype"] or "float32"
    return (
        f"{record['prompts']} held-out prompts x {record['seeds']} seeds x {record['seconds']:g} s, {dtype}, on "
        f"{machine['gpu'] or machine['processor']}, {machine['threads']} thread; commit {record['commit']}. Means with "
        f"95 % bootstrap intervals over prompts; **bold**: clearly better than `{figures['baseline']}` in the paired "
        "comparison, _italic_: clearly worse, \\*: clearly different where neither way is better. Drift is bold only "
        "where motion was kept."
    )


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
    "evidence": ("docs/methods/ouroboros.md", how),
    **{part: ("docs/methods/ouroboros.md", lambda part=part: evidence_table(part)) for part in SHOWN},
    "cost": ("docs/methods/fifo.md", cost_table),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    return pages.write(TABLES, "scripts/fifo_tables.py", check=parser.parse_args(arguments).check)


if __name__ == "__main__":
    sys.exit(main())
