"""The tables of docs/parity.md and docs/rollout_speed.md, from what parity.py and benchmarks/rollout.py recorded.

python scripts/rollout_tables.py            writes them between their markers
python scripts/rollout_tables.py --check    fails when a document is out of date
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pages

RESULTS = pages.ROOT / "benchmarks" / "results"
RECORDED = (
    ("tiny", "rollout_tiny_cpu.json"),
    ("mid", "rollout_mid_cpu.json"),
    ("mid", "rollout_mid_cpu_bf16.json"),
)
TARGET = 2.0


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def parity_table() -> str:
    """Every recorded case with its largest error."""
    record = _read("parity.json")
    lines = ["| recording | case | kind | max abs error | limit | |", "|---|---|---|---|---|---|"]
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in record["figures"]["cases"]:
        grouped.setdefault((row["directory"], row["case"]), []).append(row)
    for (directory, case), rows in grouped.items():
        verdict = "ok" if all(row["ok"] for row in rows) else "**FAIL**"
        times = f" ({len(rows)} settings)" if len(rows) > 1 else ""
        error, limit = max(row["max_abs_err"] for row in rows), min(row["limit"] for row in rows)
        lines.append(f"| {directory} | {case}{times} | {rows[0]['kind']} | {error:.1e} | {limit:.0e} | {verdict} |")
    good = sum(row["ok"] for row in record["figures"]["cases"])
    versions = record["versions"]
    lines += [
        "",
        f"{good} of {len(record['figures']['cases'])} within their limits; commit {record['commit']}, torch "
        f"{versions['torch']}, diffusers {versions['diffusers']}, float32 on a CPU.",
    ]
    return "\n".join(lines)


def speed_table() -> str:
    """A row a method, size and dtype."""
    lines = [
        "| model | dtype | method | ms a block: ours | naive cache | naive | over naive cache | over naive "
        "| cache alone, ms: ours / naive | attention | cache writes, MB: ours / naive "
        "| tensors allocated: ours / naive | differs by |",
        "|" + 13 * "---|",
    ]
    for size, name in RECORDED:
        record = _read(name)
        for method, row in record["figures"][size].items():
            ours, cache, naive = (row[key] for key in ("ours", "naive cache", "naive"))
            times = " | ".join(f"{contestant['median_process_s'] * 1e3:,.1f}" for contestant in (ours, cache, naive))
            lines.append(
                f"| {size} | {record['dtype']} | {method} | {times} | {row['speedup over naive cache']:.2f}x "
                f"| {row['speedup over naive']:.2f}x "
                f"| {ours['median_cache_process_s'] * 1e3:,.1f} / {cache['median_cache_process_s'] * 1e3:,.1f} "
                f"({row['speedup of the cache alone']:.1f}x) | {row['attention_share']:.0%} "
                f"| {ours['cache_bytes_written'] / 1e6:.1f} / {naive['cache_bytes_written'] / 1e6:.1f} "
                f"| {ours['cache_tensors_allocated']} / {naive['cache_tensors_allocated']} "
                f"| {row['largest_difference_of_the_first_block']:.0e} |"
            )
    return "\n".join(lines)


def speed_facts() -> str:
    """Which rows reach the target and which do not, and what was measured where."""
    lines = []
    for size, name in RECORDED:
        record = _read(name)
        rows = {method: row["speedup over naive"] for method, row in record["figures"][size].items()}
        reached = [f"{method} ({ratio:.2f}x)" for method, ratio in rows.items() if ratio >= TARGET]
        short = [f"{method} ({ratio:.2f}x)" for method, ratio in rows.items() if ratio < TARGET]
        said = f"reach {TARGET:g}x: {', '.join(reached) or 'none'}; do not: {', '.join(short) or 'none'}"
        alone = [row["speedup of the cache alone"] for row in record["figures"][size].values()]
        said += f"; the cache alone: {min(alone):.1f}x to {max(alone):.1f}x"
        machine = record["machine"]
        lines.append(
            f"- **{size}, {record['dtype']}**: whole blocks that {said}. Blocks timed: {record['rounds']}, after "
            f"{record['warm_up']}; median process time of one thread on {machine['processor']} "
            f"({machine['cores']} cores, load {machine['load_average'][0]:.0f}), commit {record['commit']}: "
            f"`{record['command']}`."
        )
    grown = [
        (record["dtype"], size, method)
        for size, record in ((size, _read(name)) for size, name in RECORDED)
        for method, row in record["figures"][size].items()
        if any(row["ours"][key] for key in ("text_mlp_rows", "text_key_rows", "storage_growth_bytes"))
    ]
    lines.append(
        "- Rows of the text MLP and of text keys computed, and bytes of storage grown, in a steady-state block: "
        + (f"not 0 for {grown}." if grown else "0 in every row.")
    )
    return "\n".join(lines)


TABLES = {
    "parity": ("docs/parity.md", parity_table),
    "rollout speed": ("docs/rollout_speed.md", speed_table),
    "rollout speed facts": ("docs/rollout_speed.md", speed_facts),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    return pages.write(TABLES, "scripts/rollout_tables.py", check=parser.parse_args(arguments).check)


if __name__ == "__main__":
    sys.exit(main())
