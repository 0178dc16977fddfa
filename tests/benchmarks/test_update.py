"""Entries that were rendered later, put into a record whose other videos are gone."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import methods
from benchmarks.scores import METRICS
from benchmarks.tables import how, summarise
from benchmarks.update import updated

ASKED = {"seconds": 60.0, "prompts": 12, "seeds": 2, "skipped": 0, "still": False}
MACHINE = {"gpu": None, "processor": "cpu", "threads": 1}
LABELS = ("self-forcing", "streaming-llm", "fifo", "ouroboros", "world")


def a_run(commit, labels=LABELS, **short):
    """A record of random videos, the same ones in every run; ``short``: prompts that an entry has, of 12."""
    tables = {}
    for place, label in enumerate(labels):
        rng = np.random.default_rng(LABELS.index(label))
        tables[label] = {name: rng.uniform(4, 6, (12, 2)) + place / 9 for name in METRICS}
        for table in tables[label].values():
            table[short.get(label, 12) :] = np.nan
    figures = summarise(tables, "self-forcing", resamples=200)
    facts = {"model": "m", "dtype": "bfloat16", "failed": []}
    entries = {label: facts | {"videos": 2 * short.get(label, 12)} for label in labels}
    figures |= {"entries": entries}
    header = {"command": "c", "commit": commit, "machine": MACHINE, "versions": {"torch": "2"}}
    return {**header, **ASKED, "figures": json.loads(json.dumps(figures))}


def keep_videos(record, new):
    """Entries that were whole before have the scores that they had: their videos are the same."""
    for label, fact in record["figures"]["entries"].items():
        if label in new["figures"]["means"] and fact["videos"] == 24:
            new["figures"]["means"][label] = copy.deepcopy(record["figures"]["means"][label])


def put(record, new):
    return updated(record, new, new["figures"])


def of(figures, label):
    return {part: figures[part].get(label) for part in ("means", "differences", "drift_verdicts", "entries")}


def test_entries_rendered_later_stand_beside_those_that_are_kept():
    record = a_run("old", fifo=4, ouroboros=4)
    new = a_run("new", ("self-forcing", "fifo", "ouroboros", "world"))
    # The same videos have the same scores wherever their entry stands in a run.
    for part in ("means", "differences", "drift_verdicts"):
        assert new["figures"][part] != record["figures"][part]
    keep_videos(record, new)
    found = put(record, new)
    assert (found["commit"], found["command"]) == ("old", "c")
    figures = found["figures"]
    assert list(figures["means"]) == list(LABELS)
    assert of(figures, "streaming-llm") == of(record["figures"], "streaming-llm")
    for label in ("fifo", "ouroboros"):
        assert of(figures, label) == of(new["figures"], label)
        assert figures["entries"][label]["videos"] == 24
    assert [u["entries"] for u in figures["updates"]] == [["fifo", "ouroboros"]]  # the others served the pairs
    assert "commit old (rendered later: `fifo`, `ouroboros` at new on cpu)" in how(found)
    figures["entries"]["fifo"]["products"] = "rounded from float32"
    assert "`ouroboros` at new on cpu, products rounded from float32)" in how(found)


def test_a_report_of_the_same_videos_adds_no_update():
    record, new = a_run("old"), a_run("new")
    found = put(record, new)
    assert found["figures"]["updates"] == []
    assert found["figures"]["means"] == record["figures"]["means"]


def test_claims_are_judged_anew_where_both_sides_are_new_and_kept_where_not():
    record, new = a_run("old", fifo=4, ouroboros=4), a_run("new", ("self-forcing", "fifo", "ouroboros", "world"))
    keep_videos(record, new)
    prompts = {}
    for row in put(record, new)["figures"]["claims"]:
        pair = (row["claim"]["entry"], row["claim"]["than"])
        prompts[pair] = row["difference"] and row["difference"]["prompts"]
    assert prompts["ouroboros", "fifo"] == 12
    assert prompts["streaming-llm", "self-forcing"] == 12
    assert prompts["rolling-forcing", "self-forcing"] is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda new: new.update(seconds=300.0), r"seconds=300.0: the record has 60.0"),
        (lambda new: new["figures"]["entries"]["world"].update(videos=0), r"world is missing"),
        (lambda new: new["figures"].update(baseline="fifo"), r"baseline='fifo': the record's is 'self-forcing'"),
        (lambda new: new["figures"]["entries"]["fifo"].update(videos=10), r"'fifo': 10 videos, the record has 24"),
        (lambda new: new["figures"]["entries"]["fifo"].update(dtype="float32"), r"rendered in float32.*bfloat16"),
        (
            lambda new: new["figures"]["means"]["self-forcing"]["motion"].update(estimate=9.0, low=8.5, high=9.5),
            r"'self-forcing': motion is 9, the record has .*render all entries again",
        ),
    ],
    ids=["length", "no-world", "baseline", "fewer", "dtype", "other-videos"],
)
def test_videos_of_another_kind_are_refused(change, told):
    record = a_run("old")
    new = copy.deepcopy(record)
    change(new)
    with pytest.raises(ValueError, match=told):
        put(record, new)


def test_a_rare_event_that_only_one_side_has_makes_no_other_videos():
    record = a_run("old")
    record["figures"]["means"]["fifo"]["loop_share"] |= {"estimate": 0.0, "low": 0.0, "high": 0.0}
    for high, same in ((0.008, True), (0.001, False)):
        new = copy.deepcopy(record)
        new["figures"]["means"]["fifo"]["loop_share"] |= {
            "estimate": 0.001,
            "low": 0.0 if same else 0.0005,
            "high": high,
        }
        if same:
            put(record, new)
        else:
            with pytest.raises(ValueError, match=r"'fifo': loop_share is 0\.001, the record has 0"):
                put(record, new)


def test_the_benchmark_says_why_it_cannot_update(tmp_path, tiny_model_folder, capsys):
    arguments = [
        "--model",
        str(tiny_model_folder),
        "--probe",
        "none",
        "--prompts",
        "2",
        "--seeds",
        "1",
        "--seconds",
        "1",
    ]
    arguments += ["--entry", "self-forcing", "--update", "--out", str(tmp_path / "none.json")]
    with pytest.raises(SystemExit):
        methods.main([*arguments, "--report-only"])
    assert "update:" in capsys.readouterr().err
