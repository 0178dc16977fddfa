"""The tables of docs/results.md, from the recorded figures of benchmarks/methods.py, light.py and costs.py.

python scripts/results_tables.py            writes them between their markers
python scripts/results_tables.py --check    fails when the document is out of date
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pages
from benchmarks.claims import PAPERS
from benchmarks.light import METRICS as OF_LIGHT
from benchmarks.light import hours_table, light_how
from benchmarks.scores import METRICS
from benchmarks.tables import (
    SECTIONS,
    cell,
    claim_table,
    cost_how,
    cost_table,
    entry_table,
    how,
    interval,
    section_table,
    verdict_table,
)

PAGE = "docs/results.md"
RESULTS = pages.ROOT / "benchmarks" / "results"
GLANCE = ("scene_drift", "subject_motion", "speed_error", "shape_last", "one_subject_last", "consistency_10s")
COSTS, LIGHT = "methods_costs.json", "light_60s.json"
LENGTHS = {"minute": "methods_60s.json", "five": "methods_300s.json"}
SINKS = ("sinks_60s.json", "sinks_light_60s.json")  # of scenes that stand still, and of those that are to change
SEARCHES = {"beyond": "beyond_60s.json", "ideas": "ideas_60s.json", "held-out": "held_out_60s.json"}


@cache
def read(name: str) -> dict[str, Any]:
    """A record of benchmarks/results."""
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def glance() -> str:
    """What a reader wants first: a few figures of the minute, drift after five, and what it costs."""
    figures = read(LENGTHS["minute"])["figures"]
    later = read(LENGTHS["five"])["figures"]
    costs = read(COSTS)["figures"]["costs"]
    heads = [METRICS[name].title for name in GLANCE]
    heads = [heads[0], "the same after five minutes", *heads[1:], "frames a second", "cache (MB)"]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for entry in (name for name, fact in figures["entries"].items() if fact["videos"]):
        cost = costs.get(entry)
        size = cost and cost["cache_bytes"]
        price = [f"{cost['frames_a_second']:.0f}" if cost else "-", f"{size / 1e6:.1f}" if size else "-"]
        drift, *cells = [cell(figures, entry, name) for name in GLANCE]
        after = cell(later, entry, GLANCE[0]) if entry in later["means"] else "-"
        lines.append(f"| `{entry}` | " + " | ".join([drift, after, *cells, *price]) + " |")
    return "\n".join(lines)


def claims() -> str:
    """Every claim of the papers, with its verdict at each length."""
    told_by = {claim.text for claim in PAPERS}
    judged = {title: read(name)["figures"]["claims"] for title, name in LENGTHS.items()}
    records = {title: [row for row in rows if row["claim"]["text"] in told_by] for title, rows in judged.items()}
    lines = ["| claim | paper | entries, metric | 60 s | 300 s |", "|---|---|---|---|---|"]
    for short, long in zip(*records.values(), strict=True):
        claim = short["claim"]
        title, digits = METRICS[claim["metric"]].title, METRICS[claim["metric"]].digits
        told = []
        for row in (short, long):
            found = row["difference"]
            told.append(f"**{row['verdict']}** {interval(found, digits) if found else row['why']}")
        prompts = sorted({row["difference"]["prompts"] for row in (short, long) if row["difference"]})
        what = f"`{claim['entry']}` - `{claim['than']}`, {title}; {' and '.join(map(str, prompts))} prompts"
        lines.append(f"| {claim['text']} | {claim['paper']} | {what} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def ours() -> str:
    """What is claimed of our own method, against each other one of the prompts that it was not found on."""
    lines = ["| against | " + " | ".join(OURS.values()) + " |", "|---|" + "---|" * len(OURS)]
    rows = [row for row in read(SEARCHES["held-out"])["figures"]["claims"] if row["claim"]["entry"] == "longvid"]
    for than in dict.fromkeys(row["claim"]["than"] for row in rows if row["difference"]):
        found = {row["claim"]["metric"]: row for row in rows if row["claim"]["than"] == than}
        told = [f"**{found[m]['verdict']}** {interval(found[m]['difference'], METRICS[m].digits)}" for m in OURS]
        lines.append(f"| `{than}` | " + " | ".join(told) + " |")
    return "\n".join(lines)


def sinks() -> str:
    """What a larger sink gains where a scene is to stay, and loses where it is to change."""
    still, lit = (read(name)["figures"] for name in SINKS)
    heads = [METRICS["scene_drift"].title, METRICS["subject_motion"].title, OF_LIGHT["swing"].title]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for entry in still["means"]:
        cells = [cell(still, entry, "scene_drift"), cell(still, entry, "subject_motion"),
                 cell(lit, entry, "swing", OF_LIGHT)]  # fmt: skip
        lines.append(f"| `{entry}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sinks_how() -> str:
    """What was rendered for it and where."""
    still, lit = map(read, SINKS)
    machine, dtype = still["machine"], next(iter(still["figures"]["entries"].values()))["dtype"]
    return (
        f"{still['prompts']} held-out prompts of scenes that stand still and {lit['prompts']} of day and night, none "
        f"of them among those of the tables above, x {still['seeds']} seeds x {still['seconds']:g} s, {dtype}, on "
        f"{machine['gpu'] or machine['processor']}, {machine['threads']} thread, torch {still['versions']['torch']}; "
        f"commit {still['commit']}. Means with 95 % bootstrap intervals over prompts; marks against "
        f"`{still['figures']['baseline']}`, as above."
    )


OURS = {
    "scene_drift": "drifts less",
    "subject_motion": "subjects move more (px/frame)",
    "speed_error": "keeps speed better (octaves)",
}


def tables() -> dict[str, tuple[str, Callable[[], str]]]:
    """The page's tables, those of the records that there are."""
    found: dict[str, Callable[[], str]] = {"glance": glance, "claims": claims}
    for length, name in LENGTHS.items():
        found[f"{length}-how"] = lambda name=name: how(read(name))  # type: ignore[misc]
        for section, metrics in SECTIONS.items():
            key = section.split()[0].rstrip(",").lower()
            found[f"{length}-{key}"] = lambda name=name, metrics=metrics: section_table(read(name)["figures"], metrics)  # type: ignore[misc]
        found[f"{length}-verdicts"] = lambda name=name: verdict_table(read(name)["figures"])  # type: ignore[misc]
    found["cost-how"] = lambda: cost_how(read(COSTS))
    found["cost"] = lambda: cost_table(read(COSTS)["figures"])
    found["light-how"] = lambda: light_how(read(LIGHT))
    found["light"] = lambda: section_table(read(LIGHT)["figures"], OF_LIGHT, OF_LIGHT)
    found["light-hours"] = lambda: hours_table(read(LIGHT)["figures"])
    found["light-claims"] = lambda: claim_table(read(LIGHT)["figures"], OF_LIGHT)
    found["sinks"], found["sinks-how"] = sinks, sinks_how
    found["entries"] = lambda: entry_table(read(LENGTHS["minute"])["figures"])
    for key, name in SEARCHES.items():
        if (RESULTS / name).exists():
            found[f"{key}-how"] = lambda name=name: how(read(name))  # type: ignore[misc]
            found[key] = lambda name=name: section_table(read(name)["figures"], BEYOND)  # type: ignore[misc]
            found[f"{key}-verdicts"] = lambda name=name: verdict_table(read(name)["figures"])  # type: ignore[misc]
    if (RESULTS / SEARCHES["held-out"]).exists():
        found["ours"] = ours
    return {name: (PAGE, make) for name, make in found.items()}


BEYOND = (
    "scene_drift",
    "scene_worst",
    "identity_drift",
    "motion",
    "subject_motion",
    "speed_error",
    "shape_last",
    "one_subject_last",
    "frozen",
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    return pages.write(tables(), "scripts/results_tables.py", check=parser.parse_args(arguments).check)


if __name__ == "__main__":
    sys.exit(main())
