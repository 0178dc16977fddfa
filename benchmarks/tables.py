"""From scores by entry, prompt and seed to the figures and the page of benchmarks/methods.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks.claims import CLAIMS, Claim, judge
from benchmarks.scores import METRICS, Metric, speed_error
from longvid.metrics.bootstrap import RESAMPLES, Interval, complete_pairs, judge_drift, mean_interval, paired_difference
from longvid.metrics.report import to_plain

Tables = Mapping[str, Mapping[str, np.ndarray]]

# The page's tables; METRICS that none of them names are in the JSON alone.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Drift and motion": (
        "scene_drift",
        "scene_worst",
        "identity_drift",
        "motion",
        "subject_motion",
        "speed_error",
        "dynamic_degree",
        "frozen",
    ),
    "Oracle, last 5 s": (
        "colour_last",
        "shape_last",
        "background_last",
        "one_subject_last",
        "accuracy_lost",
        "pattern_kept",
        "subject_colour",
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
    means, paired = compared(tables, baseline, METRICS, resamples)
    base = tables[baseline]
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


def compared(
    tables: Tables, baseline: str, metrics: Iterable[str], resamples: int
) -> tuple[dict[str, dict[str, Interval | None]], dict[str, dict[str, Interval | None]]]:
    """Means of every entry, and paired differences from ``baseline`` of every other one, by entry and metric."""
    names, base = list(metrics), tables[baseline]
    means = {entry: {m: _mean(table[m], resamples) for m in names} for entry, table in tables.items()}
    paired = {
        entry: {m: _difference(table[m], base[m], resamples) for m in names}
        for entry, table in tables.items()
        if entry != baseline
    }
    return means, paired


def with_speed_error(tables: Tables) -> dict[str, dict[str, np.ndarray]]:
    """``tables`` with the metric that takes two videos, the entry's and the world's of the same scene and seed; NaN
    throughout where no entry is called "world"."""
    found = {entry: dict(table) for entry, table in tables.items()}
    for table in found.values():
        speed = table["subject_motion"]
        table["speed_error"] = speed_error(
            speed, found.get("world", {}).get("subject_motion", np.full_like(speed, np.nan))
        )
    return found


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
    # Flow counts a jump between two blocks as motion, so the oracle's eye on the subject goes before it.
    motion = "subject_motion" if np.isfinite(table["subject_motion"]).any() else "motion"
    named = {f"{m} {side}": t[m] for m in ("scene_drift", motion) for side, t in (("entry", table), ("base", base))}
    try:
        pair, _ = complete_pairs(named)
        return judge_drift(
            pair["scene_drift entry"],
            pair["scene_drift base"],
            pair[f"{motion} entry"],
            pair[f"{motion} base"],
            resamples=resamples,
        )
    except ValueError:
        return None


def markdown(record: Mapping[str, Any]) -> str:
    """The page of a record of benchmarks/methods.py: tables by section, verdicts, claims, how it was measured."""
    figures = record["figures"]
    parts = {f"## {name}": section_table(figures, metrics) for name, metrics in SECTIONS.items()}
    parts["## Less drift, and not by standing still"] = verdict_table(figures)
    parts["## The papers' claims on this model"] = claim_table(figures)
    parts["## Entries"] = entry_table(figures)
    lines = [f"# Methods over {record['seconds']:g} seconds", "", how(record)]
    for title, table in parts.items():
        if table:
            lines += ["", title, "", table]
    return "\n".join([*lines, ""])


def how(record: Mapping[str, Any]) -> str:
    """What was rendered and where, and what the marks in the tables mean."""
    figures, machine = record["figures"], record["machine"]
    drift = "scene_drift" if "scene_drift" in figures["metrics"] else "identity_drift"  # of a record before scene drift
    dtype = next(iter(figures["entries"].values()))["dtype"] or "the model's own dtype"
    return (
        f"{record['prompts']} held-out prompts x {record['seeds']} seeds x {record['seconds']:g} s, {shared(figures)}, "
        f"{dtype}, on {machine['gpu'] or machine['processor']}, {machine['threads']} thread, torch "
        f"{record['versions']['torch']}; commit {record['commit']}{later(figures)}. Means with 95 % bootstrap "
        "intervals over prompts. "
        f"**Bold**: clearly better than `{figures['baseline']}` in the paired comparison; _italic_: clearly worse; "
        "\\*: clearly different where neither way is better. Drift is told of scenes that stand still "
        f"({counted(figures, drift)}), and is bold only where the subject's motion is shown to be kept."
    )


def later(figures: Mapping[str, Any]) -> str:
    """Which entries were rendered later (benchmarks/update.py), where, and with what products."""
    renewed = []
    for update in figures.get("updates", []):
        named, machine = update["entries"], update["machine"]
        how = {figures["entries"][entry].get("products", "native") for entry in named} - {"native"}
        products = f", products {', '.join(how)}" if how else ""
        told = ", ".join(f"`{entry}`" for entry in named)
        renewed.append(f"{told} at {update['commit']} on {machine['gpu'] or machine['processor']}{products}")
    return f" (rendered later: {'; '.join(renewed)})" if renewed else ""


def shared(figures: Mapping[str, Any]) -> str:
    """Whether every entry has all its videos."""
    counts = {entry: fact["videos"] for entry, fact in figures["entries"].items() if "videos" in fact}
    short = [f"{n} videos of `{entry}`" for entry, n in counts.items() if n < max(counts.values())]
    return "the same for every entry" + (f" but for {', '.join(short)}" if short else "")


def counted(figures: Mapping[str, Any], metric: str) -> str:
    """How many prompts a metric rests on, over the entries."""
    counts = sorted({row[metric]["prompts"] for row in figures["means"].values() if row[metric] is not None})
    return f"{counts[0]} to {counts[-1]} prompts" if len(counts) > 1 else f"{counts[0] if counts else 0} prompts"


def section_table(figures: Mapping[str, Any], names: Iterable[str], metrics: Mapping[str, Metric] = METRICS) -> str:
    """Entries by ``names`` of ``metrics``, those left out that no entry has; empty where none is left."""
    means = figures["means"]
    shown = [name for name in names if any(row[name] is not None for row in means.values())]
    if not shown:
        return ""
    lines = ["| | " + " | ".join(metrics[m].title for m in shown) + " |", "|---|" + "---|" * len(shown)]
    for entry, row in means.items():
        if any(row[name] is not None for name in shown):
            lines.append(f"| `{entry}` | " + " | ".join(cell(figures, entry, m, metrics) for m in shown) + " |")
    return "\n".join(lines)


def verdict_table(figures: Mapping[str, Any]) -> str:
    """Drift judged together with motion, against the baseline."""
    lines = [
        f"| against `{figures['baseline']}` | verdict | drift difference | subject motion ratio |",
        "|---|---|---|---|",
    ]
    for entry, verdict in figures["drift_verdicts"].items():
        if verdict is not None:
            cells = verdict["verdict"], interval(verdict["drift"], 2), interval(verdict["motion"], 2)
            lines.append(f"| `{entry}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def claim_table(figures: Mapping[str, Any], metrics: Mapping[str, Metric] = METRICS) -> str:
    """Each claim with its verdict and the paired difference that it rests on."""
    lines = ["| claim | paper | verdict | difference |", "|---|---|---|---|"]
    for row in figures["claims"]:
        claim, found = row["claim"], row["difference"]
        told = (
            f"{interval(found, metrics[claim['metric']].digits)} ({found['prompts']} prompts)" if found else row["why"]
        )
        what = f"`{claim['entry']}` - `{claim['than']}`, {metrics[claim['metric']].title}: {told}"
        lines.append(f"| {claim['text']} | {claim['paper']} | {row['verdict']} | {what} |")
    return "\n".join(lines)


def cost_table(figures: Mapping[str, Any]) -> str:
    """Of benchmarks/costs.py: time a frame and a block, memory of the cache, share of pairs that attention reads."""
    costs, baseline = figures["costs"], figures["baseline"]
    lines = [
        f"| | ms a frame, median (p95) | seconds a block | frames a second | time against `{baseline}` | cache (MB) "
        "| attention density |",
        "|---|" + 6 * "---|",
    ]
    for entry, cost in costs.items():
        size = "-" if cost["cache_bytes"] is None else f"{cost['cache_bytes'] / 1e6:.1f}"
        ratio = cost["ms_a_frame"] / costs[baseline]["ms_a_frame"]
        lines.append(
            f"| `{entry}` | {cost['ms_a_frame']:.1f} ({cost['p95_ms_a_frame']:.1f}) | {cost['seconds_a_block']:.3f} "
            f"| {cost['frames_a_second']:.0f} | {ratio:.2f} | {size} | {cost['density']:.2f} |"
        )
    return "\n".join(lines)


def cost_how(record: Mapping[str, Any]) -> str:
    """How the costs were measured and where."""
    machine, dtype = record["machine"], record["figures"]["dtype"]
    return (
        f"One video at a time, {record['rounds']} of each, autoencoder included, entry after entry in one run; the "
        f"first {record['warm_up']} are not timed, the next {record['seconds']:g} s are. {dtype}, on "
        f"{machine['gpu'] or machine['processor']}, {machine['threads']} thread, torch {record['versions']['torch']}; "
        f"commit {record['commit']}."
    )


def entry_table(figures: Mapping[str, Any]) -> str:
    """What each entry is, and how many of its videos there are."""
    lines = ["| entry | model | student | weights | videos | failed |", "|---|" + 5 * "---|"]
    for entry, fact in figures["entries"].items():
        lines.append(
            f"| `{entry}` | {fact['model'] or '-'} | {fact['student'] or 'none'} | {fact['weights'] or '-'} "
            f"| {fact['videos']} | {len(fact['failed'])} |"
        )
    return "\n".join(lines)


def interval(found: Mapping[str, Any], digits: int) -> str:
    return f"{found['estimate']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def cell(figures: Mapping[str, Any], entry: str, metric: str, metrics: Mapping[str, Metric] = METRICS) -> str:
    found = figures["means"][entry][metric]
    if found is None:
        return "-"
    text = interval(found, metrics[metric].digits)
    change = figures["differences"].get(entry, {}).get(metric)
    if change is None or not Interval(**change).clear:
        return text
    gain = change["estimate"] * metrics[metric].good
    if gain == 0:
        return f"{text}\\*"
    if gain > 0 and metric in ("scene_drift", "scene_worst", "identity_drift"):
        kept = figures["drift_verdicts"][entry]
        if kept and kept["motion"]["low"] >= kept["least_motion"]:
            return f"**{text}**"
        return f"{text} ({'bought with motion' if kept and kept['motion']['high'] < 1 else 'motion unclear'})"
    return f"**{text}**" if gain > 0 else f"_{text}_"
