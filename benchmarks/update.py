"""Putting entries that were rendered later into a record of benchmarks/methods.py, whose other videos are gone.

What was rendered again must stand where it stood: of an entry of which the record has as many videos, each metric's
old or new mean must lie in the other one's interval. So a record never mixes weights or code that make other videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.entries import REFERENCES

SAME = ("seconds", "prompts", "seeds", "skipped", "still")
"""What both must have been asked for."""


def updated(record: Mapping[str, Any], header: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """``record`` with the ``figures`` of a new run in place of its own for the entries of that run, in its order.

    record: {**header, "figures": ...}, which keeps its header. header: of the new run. Claims are judged anew where
    both of their entries are in the new run, and kept where not. The figures have "updates": which entries
    came later, with commit, machine and versions. Raises ValueError, one line, when the two are not of the same videos.
    """
    before = record["figures"]
    for name in SAME:
        if record[name] != header[name]:
            raise ValueError(
                f"{name}={header[name]!r}: the record has {record[name]!r}; ask for the same, or give --out"
            )
    if before["baseline"] != figures["baseline"]:
        raise ValueError(
            f"baseline={figures['baseline']!r}: the record's is {before['baseline']!r}; differences need the same one"
        )
    rendered = [label for label, fact in figures["entries"].items() if fact["videos"]]
    if "world" in before["entries"] and "world" not in rendered:
        raise ValueError("entries: world is missing, which speeds are held against; name it too")
    for label in rendered:
        _require_same_videos(label, before, figures)
    added = [label for label in rendered if label not in before["entries"]]
    labels = sorted([*before["entries"], *added], key=lambda label: label in REFERENCES)  # those stay at the end
    result: dict[str, Any] = dict(figures)
    for part in ("means", "differences", "drift_verdicts", "entries"):
        sides = ((label, figures if label in rendered else before) for label in labels)
        result[part] = {label: side[part][label] for label, side in sides if label in side[part]}
    known = {row["claim"]["text"]: row for row in before["claims"]}
    result["claims"] = [
        row if {row["claim"]["entry"], row["claim"]["than"]} <= set(rendered) else known.get(row["claim"]["text"], row)
        for row in figures["claims"]
    ]
    own = {name: header[name] for name in ("command", "commit", "machine", "versions")}
    # An entry that is only reported again, for the pairs, was not rendered again.
    renewed = [label for label in rendered if before["means"].get(label) != figures["means"][label]]
    result["updates"] = [*before.get("updates", []), *([{"entries": renewed, **own}] if renewed else [])]
    return {**record, "figures": result}


def _require_same_videos(label: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    old, new = before["entries"].get(label), now["entries"][label]
    if old is None:
        return
    if old["videos"] > new["videos"]:
        raise ValueError(
            f"entry {label!r}: {new['videos']} videos, the record has {old['videos']}; render the rest, too"
        )
    if old["dtype"] != new["dtype"]:
        raise ValueError(f"entry {label!r}: rendered in {new['dtype']}, the record in {old['dtype']}; use --dtype")
    if old["videos"] < new["videos"]:
        return
    for metric, mean in now["means"][label].items():
        was = before["means"][label].get(metric)
        if mean is not None and was is not None and _apart(was, mean):
            raise ValueError(
                f"entry {label!r}: {metric} is {mean['estimate']:.4g}, the record has {was['estimate']:.4g} "
                f"[{was['low']:.4g}, {was['high']:.4g}]; these are other videos, so render all entries again"
            )


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    # Either will do: an event that none of the videos had leaves an interval without width, which one video leaves.
    return not any(a["low"] <= b["estimate"] <= a["high"] for a, b in ((one, other), (other, one)))
