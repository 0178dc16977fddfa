"""From scores to the page: claims, verdicts, tables."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import scores
from benchmarks.claims import CLAIMS, Claim, judge
from benchmarks.scores import METRICS
from benchmarks.tables import how, markdown, summarise, with_speed_error

RECORD = {
    "commit": "abc",
    "machine": {"gpu": None, "processor": "cpu", "threads": 1},
    "versions": {"torch": "2"},
    "seconds": 60,
    "prompts": 12,
    "seeds": 2,
}


def tables(rng, labels=("self-forcing", "other"), *, prompts=12, **shift):
    """Random tables in which "other" differs from the baseline by ``shift`` in the named metrics."""
    base = {name: rng.uniform(4, 6, (prompts, 2)) for name in METRICS}
    other = {name: v + shift.get(name, 0.0) + rng.normal(0, 0.1, v.shape) for name, v in base.items()}
    return dict(zip(labels, (base, other), strict=True))


@pytest.mark.parametrize(
    ("shift", "direction", "verdict"),
    [(-1, -1, "shown"), (1, -1, "contradicted"), (0, -1, "not shown"), (1, 1, "shown")],
)
def test_a_claim_is_judged_by_its_paired_interval(shift, direction, verdict):
    claim = Claim(text="", paper="", metric="motion", entry="other", than="self-forcing", direction=direction)
    assert judge(claim, tables(np.random.default_rng(0), motion=shift)).verdict == verdict


@pytest.mark.parametrize(("shift", "verdict"), [(0, "shown"), (0.5, "contradicted"), (0.2, "not shown")])
def test_a_claim_of_equality_needs_the_whole_interval_inside_its_margin(shift, verdict):
    """No clear difference is no proof of none."""
    claim = Claim(text="", paper="", metric="motion", entry="other", than="self-forcing", direction=0, within=0.2)
    assert judge(claim, tables(np.random.default_rng(1), motion=shift)).verdict == verdict


def test_a_claim_about_an_entry_that_was_not_run_is_not_judged():
    found = judge(CLAIMS[0], tables(np.random.default_rng(0)))
    assert (found.verdict, found.difference) == ("not run", None)
    assert "streaming-llm" in found.why


def page(found):
    entry = {"model": "m", "student": None, "weights": None, "failed": [], "videos": 24, "dtype": None}
    return markdown(RECORD | {"figures": found | {"entries": dict.fromkeys(found["means"], entry)}})


@pytest.mark.parametrize(
    ("motion", "mark", "verdict"),
    [(0.0, "**", "better"), (-3.0, "(bought with motion)", "bought with motion")],
    ids=["moving", "standing-still"],
)
def test_less_drift_is_bold_only_where_motion_was_kept(motion, mark, verdict):
    shifts = {"scene_drift": -2, "subject_motion": motion, "motion": 1.0}  # flow is more for both: jumps count as flow
    found = summarise(tables(np.random.default_rng(0), **shifts), "self-forcing", resamples=999)
    assert found["drift_verdicts"]["other"]["verdict"] == verdict
    row = next(line for line in page(found).splitlines() if line.startswith("| `other` |"))
    cell = row.split("|")[2]
    assert mark in cell
    assert ("**" in cell) == (motion == 0)


def test_without_an_oracle_drift_is_judged_with_flow():
    found = tables(np.random.default_rng(0), scene_drift=-2, motion=-3.0)
    for table in found.values():
        table["subject_motion"][:] = np.nan
    verdicts = summarise(found, "self-forcing", resamples=999)["drift_verdicts"]
    assert verdicts["other"]["verdict"] == "bought with motion"


def test_speed_is_compared_with_the_worlds_in_octaves():
    found = {name: {"subject_motion": np.array([[speed, 2.0]])} for name, speed in (("fast", 4.0), ("still", 0.0))}
    found["world"] = {"subject_motion": np.array([[1.0, 2.0]])}
    errors = {name: table["speed_error"].tolist() for name, table in with_speed_error(found).items()}
    assert errors["fast"] == [[2.0, 0.0]]
    assert errors["world"] == [[0.0, 0.0]]
    assert errors["still"] == [[pytest.approx(np.log2(1 / scores.SLOWEST)), 0.0]]
    without = with_speed_error({"fast": found["fast"]})
    assert np.isnan(without["fast"]["speed_error"]).all()


def test_the_page_says_which_entries_have_fewer_videos_and_on_how_many_prompts_drift_rests():
    table = tables(np.random.default_rng(0))
    for side in table.values():
        side["scene_drift"][5:] = np.nan
    found = summarise(table, "self-forcing", resamples=99)
    entry = {"dtype": None, "videos": 24}
    whole = how(RECORD | {"figures": found | {"entries": {"self-forcing": entry, "other": entry}}})
    assert "the same for every entry, the model's" in whole
    assert "scenes that stand still (5 prompts)" in whole
    short = how(RECORD | {"figures": found | {"entries": {"self-forcing": entry, "other": entry | {"videos": 16}}}})
    assert "the same for every entry but for 16 videos of `other`" in short


def test_every_row_of_a_table_has_the_cells_of_its_head():
    found = summarise(tables(np.random.default_rng(0)), "self-forcing", resamples=99)
    blocks = [block.splitlines() for block in page(found).split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 6
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1, block[0]


def test_a_metric_that_no_video_has_is_left_out_and_json_is_strict():
    found = tables(np.random.default_rng(0))
    for table in found.values():
        table["colour_last"][:] = np.nan
        table["scene_drift"][3:9] = np.nan
    figures = summarise(found, "self-forcing", resamples=999)
    json.dumps(figures, allow_nan=False)
    assert figures["means"]["other"]["colour_last"] is None
    assert figures["means"]["other"]["scene_drift"]["prompts"] == 6
    assert METRICS["colour_last"].title not in page(figures)


def test_one_entry_that_failed_leaves_the_others_their_prompts():
    found = tables(np.random.default_rng(0)) | {"broken": {name: np.full((12, 2), np.nan) for name in METRICS}}
    figures = summarise(found, "self-forcing", resamples=999)
    assert figures["differences"]["other"]["motion"]["prompts"] == 12
    assert figures["means"]["broken"]["motion"] is None
    assert figures["drift_verdicts"]["broken"] is None
