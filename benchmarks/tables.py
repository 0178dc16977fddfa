"""From scores by entry, prompt and seed to the figures and the page of benchmarks/methods.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks.claims import CLAIMS, Claim, judge
from benchmarks.scores import METRICS
from longvid.metrics.bootstrap import RESAMPLES, Interval, complete_pairs, judge_drift, mean_interval, paired_difference
from longvid.metrics.report import to_plain

Tables = Mapping[str, Mapping[str, np.ndarray]]

# The page's tables; METRICS that none of them names are in the JSON alone.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Drift and motion": ("identity_drift", "identity_worst", "motion", "subject_motion", "dynamic_degree", "frozen"),
    "Oracle, last 5 s": (
        "colour_last",
        "shape_last",
        "background_last",
        "one_subject_last",
        "accuracy_lost",
        "pattern_kept",
        "size_change",
    ),
    "Looks": ("brightness_change", "contrast_change", "saturation_change", "sharpness_change", "colour_shift"),
    "Time": (
        "smoothness",
        "luma_flutter",
        "seam",
        "seam_latent",
        "consistency_1s",
        "consistency_10s",
        "start_distance",
        "loop_share",
    ),
}


def summarise(
    tables: Tables, baseline: str, claims: Iterable[Claim] = CLAIMS, *, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Means with intervals, paired differences from ``baseline``, drift verdicts and claims, as JSON's own types.

    ``tables[entry][metric]`` is [P, S], NaN where a video has no such score: those prompts are left out, of both sides
    of a pair. A metric with fewer than two complete prompts is None.
    """
    means = {e: {m: _mean(table[m], resamples) for m in METRICS} for e, table in tables.items()}
    base = tables[baseline]
    paired = {
        entry: {m: _difference(table[m], base[m], resamples) for m in METRICS}
        for entry, table in tables.items()
        if entry != baseline
    }
    verdicts = {entry: _verdict(table, base, resamples) for entry, table in tables.items() if entry != baseline}
    judged = [judge(claim, tables, resamples=resamples) for claim in claims]
    return {
        "baseline": baseline,
        "metrics": {name: {"title": m.title, "good": m.good} for name, m in METRICS.items()},
        "means": to_plain(means),
        "differences": to_plain(paired),
        "drift_verdicts": to_plain(verdicts),
        "claims": to_plain(judged),
    }


def _mean(table: np.ndarray, resamples: int) -> Interval | None:
    whole = table[np.isfinite(table).all(axis=1)]
    return mean_interval(whole, resamples=resamples) if len(whole) >= 2 else None


def _difference(table: np.ndarray, base: np.ndarray, resamples: int) -> Interval | None:
    try:
        pair, _ = complete_pairs({"entry": table, "base": base})
    except ValueError:
        return None
    return paired_difference(pair["entry"], pair["base"], resamples=resamples)


def _verdict(table: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray], resamples: int) -> Any:
    named = {
        f"{m} {side}": t[m] for m in ("identity_drift", "motion") for side, t in (("entry", table), ("base", base))
    }
    try:
        pair, _ = complete_pairs(named)
        return judge_drift(
            pair["identity_drift entry"],
            pair["identity_drift base"],
            pair["motion entry"],
            pair["motion base"],
            resamples=resamples,
        )
    except ValueError:
        return None


def markdown(figures: Mapping[str, Any], header: Mapping[str, Any], *, seconds: float, prompts: int, seeds: int) -> str:
    """The page: tables by section, verdicts, claims, and how it was measured."""
    baseline, entries = figures["baseline"], list(figures["means"])
    lines = [
        f"# Methods over {seconds:g} seconds",
        "",
        f"{prompts} held-out prompts x {seeds} seeds, the same for every entry. Means with 95 % bootstrap intervals "
        f"over prompts. **Bold**: clearly better than `{baseline}` in the paired comparison; _italic_: clearly worse; "
        "\\*: clearly different where neither way is better. Identity drift is bold only where motion was kept.",
    ]
    for section, names in SECTIONS.items():
        shown = [m for m in names if any(figures["means"][entry][m] is not None for entry in entries)]
        if not shown:
            continue
        lines += ["", f"## {section}", "", "| | " + " | ".join(METRICS[m].title for m in shown) + " |"]
        lines.append("|---|" + "---|" * len(shown))
        for entry in entries:
            lines.append(f"| `{entry}` | " + " | ".join(cell(figures, entry, m) for m in shown) + " |")
    lines += ["", "## Less drift, and not by standing still", "", *_verdict_lines(figures)]
    lines += [
        "",
        "## The papers' claims on this model",
        "",
        "| claim | paper | verdict | difference |",
        "|---|---|---|---|",
    ]
    for row in figures["claims"]:
        claim, found = row["claim"], row["difference"]
        digits = METRICS[claim["metric"]].digits
        told = _interval(found, digits) if found else row["why"]
        what = f"`{claim['entry']}` - `{claim['than']}`, {METRICS[claim['metric']].title}: {told}"
        lines.append(f"| {claim['text']} | {claim['paper']} | {row['verdict']} | {what} |")
    lines += _cost_lines(figures)
    lines += ["", "## Entries", "", "| entry | model | student | weights | videos | failed |", "|---|" + 5 * "---|"]
    for entry in entries:
        fact = figures["entries"][entry]
        lines.append(
            f"| `{entry}` | {fact['model'] or '-'} | {fact['student'] or 'none'} | {fact['weights'] or '-'} "
            f"| {fact['videos']} | {len(fact['failed'])} |"
        )
    machine = header["machine"]
    lines += [
        "",
        f"Measured at commit {header['commit']} on {machine['gpu'] or machine['processor']}, {machine['threads']} "
        f"threads, torch {header['versions']['torch']}; times include the autoencoder. `{header['command']}`",
        "",
    ]
    return "\n".join(lines)


def _cost_lines(figures: Mapping[str, Any]) -> list[str]:
    costs, baseline = figures["costs"], figures["baseline"]
    if baseline not in costs:
        return []
    lines = [
        "",
        "## Cost",
        "",
        "One video at a time, autoencoder included, entry after entry in one run; the first ten seconds are not timed.",
        "",
        f"| | ms a frame, median (p95) | frames a second | time against `{baseline}` | cache (MB) |",
        "|---|" + 4 * "---|",
    ]
    for entry, cost in costs.items():
        size = "-" if cost["cache_bytes"] is None else f"{cost['cache_bytes'] / 1e6:.1f}"
        ratio = cost["ms_a_frame"] / costs[baseline]["ms_a_frame"]
        lines.append(
            f"| `{entry}` | {cost['ms_a_frame']:.1f} ({cost['p95_ms_a_frame']:.1f}) | {cost['frames_a_second']:.0f} "
            f"| {ratio:.2f} | {size} |"
        )
    return lines


def _interval(found: Mapping[str, Any], digits: int) -> str:
    return f"{found['estimate']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def cell(figures: Mapping[str, Any], entry: str, metric: str) -> str:
    found = figures["means"][entry][metric]
    if found is None:
        return "-"
    text = _interval(found, METRICS[metric].digits)
    change = figures["differences"].get(entry, {}).get(metric)
    if change is None or not Interval(**change).clear:
        return text
    gain = change["estimate"] * METRICS[metric].good
    if gain == 0:
        return f"{text}\\*"
    if gain > 0 and metric in ("identity_drift", "identity_worst"):
        verdict = figures["drift_verdicts"][entry]
        return f"**{text}**" if verdict and verdict["verdict"] == "better" else f"{text} (bought with motion)"
    return f"**{text}**" if gain > 0 else f"_{text}_"


def _verdict_lines(figures: Mapping[str, Any]) -> list[str]:
    lines = [f"| against `{figures['baseline']}` | verdict | drift difference | motion ratio |", "|---|---|---|---|"]
    for entry, verdict in figures["drift_verdicts"].items():
        if verdict is not None:
            cells = verdict["verdict"], _interval(verdict["drift"], 2), _interval(verdict["motion"], 2)
            lines.append(f"| `{entry}` | " + " | ".join(cells) + " |")
    return lines
