import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import methods, scores
from benchmarks.claims import CLAIMS, Claim, judge
from benchmarks.methods import DEFAULT_ENTRIES, Entry, Rows, real_video
from benchmarks.scores import METRICS, Oracle, score_video
from benchmarks.tables import markdown, summarise
from longvid.training import world

SCENE = world.Scene(colour="red", shape="ball", motion="circle", background="stars")


def tables(rng, labels=("self-forcing", "other"), *, prompts=12, **shift):
    """Random tables in which "other" differs from the baseline by ``shift`` in the named metrics."""
    base = {name: rng.uniform(4, 6, (prompts, 2)) for name in METRICS}
    other = {name: v + shift.get(name, 0.0) + rng.normal(0, 0.1, v.shape) for name, v in base.items()}
    return dict(zip(labels, (base, other), strict=True))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("fifo", ("fifo", "fifo", "embedded", None, ())),
        ("fifo@a/b", ("fifo@a/b", "fifo", "a/b", None, ())),
        (
            "deep:deep-forcing@m,cache.sink=3,cache.window=12",
            ("deep", "deep-forcing", "m", None, ("cache.sink=3", "cache.window=12")),
        ),
        (
            "self-forcing,cache.window=9",
            ("self-forcing,cache.window=9", "self-forcing", "embedded", None, ("cache.window=9",)),
        ),
        ("a:fifo,student=base,cache.sink=1", ("a", "fifo", "embedded", "base", ("cache.sink=1",))),
    ],
)
def test_an_entry_is_read(text, want):
    entry = Entry.parse(text, "embedded")
    assert (entry.label, entry.method, entry.model, entry.student, entry.overrides) == want


@pytest.mark.parametrize("text", ["", "@m", "fifo@", ":fifo", "fifo,window"])
def test_a_broken_entry_is_told(text):
    with pytest.raises(ValueError, match=r"must be \[LABEL:\]METHOD"):
        Entry.parse(text, "embedded")


def test_the_default_entries_are_methods_that_resolve_and_that_the_claims_name():
    from longvid.presets import parse_overrides, resolve_method

    entries = [Entry.parse(text, "embedded") for text in DEFAULT_ENTRIES]
    for entry in entries:
        if entry.method not in methods.REFERENCES:
            resolve_method(entry.method, overrides=parse_overrides(entry.overrides))
    known = {entry.label for entry in entries}
    assert {claim.entry for claim in CLAIMS} | {claim.than for claim in CLAIMS} <= known
    assert {claim.metric for claim in CLAIMS} <= set(METRICS)


def test_students_are_told_apart_by_their_adapters():
    base, one, other = (methods.fingerprint("embedded", name) for name in (None, "self-forcing", "rolling-forcing"))
    assert len({base, one, other}) == 3
    renderer = methods.Renderer(None, None)
    facts = [
        renderer.facts(Entry.parse(f"deep-forcing,student={name}", "embedded")) for name in ("base", "self-forcing")
    ]
    assert "student" not in facts[0]
    assert (facts[1]["student"], facts[1]["adapter"]) == ("self-forcing", one)
    assert facts[0]["method"]["schedule"] != facts[1]["method"]["schedule"], "a student brings its own sampling"


def test_real_video_comes_in_blocks_of_three_latent_frames_without_a_gap():
    chunks = list(real_video(SCENE, 0, 2))
    assert [len(c.frames) for c in chunks] == [9, 12, 11]
    assert [c.start_frame for c in chunks] == [0, 9, 21]
    assert np.array_equal(np.concatenate([c.frames for c in chunks]), world.render(SCENE, 0, frames=32))


def test_scores_of_real_video_hold_its_identity_and_its_motion():
    found = score_video(real_video(SCENE, 0, 11), fps=16, scene=SCENE, probe=None, temporal_stride=4, timed=False)
    assert set(found) == set(METRICS)
    assert found["identity_drift"] < 1
    assert found["motion"] > 1.5
    assert found["frozen"] == 0
    assert 0.6 < found["seam"] < 1.6
    assert np.isnan(found["seconds_a_block"])
    assert np.isnan(found["colour_last"])


def test_identity_drift_is_scored_on_still_scenes_alone():
    scene = world.Scene(colour="red", shape="ball", motion="circle", background="sky")
    found = score_video(real_video(scene, 0, 11), fps=16, scene=scene, probe=None, temporal_stride=4, timed=False)
    assert np.isnan(found["identity_drift"])
    assert found["motion"] > 1


def test_the_consumers_time_is_not_the_streams(monkeypatch):
    """A clock that the stream moves by 1 s a chunk and the metrics by 100 s."""
    now = [0.0]
    monkeypatch.setattr(scores.time, "perf_counter", lambda: now[0])
    update = scores.Oracle.update

    def slow(self, frames):
        now[0] += 100
        update(self, frames)

    monkeypatch.setattr(scores.Oracle, "update", slow)

    def chunks():
        for chunk in real_video(SCENE, 0, 3):
            now[0] += 1
            yield chunk

    found = score_video(chunks(), fps=16, scene=SCENE, probe=None, temporal_stride=4, timed=True)
    assert found["seconds_a_block"] == 1
    assert found["frames_a_second"] == pytest.approx((48 - 9) / 4)


def test_the_oracle_judges_first_against_last_and_follows_the_subject(monkeypatch):
    from longvid.training import probe as probes

    def read(frames, probe):
        start, n = probe.pop(0), len(frames)
        late = np.arange(start, start + n) >= 100
        return {
            "colour": np.where(late, "blue", "red"),
            "shape": np.full(n, "ball"),
            "background": np.full(n, "stars"),
            "pattern": np.where(late, "band", "spot"),
            "count": np.ones(n, int),
            "x": np.arange(start, start + n) / 128,
            "y": np.zeros(n),
            "radius": np.where(late, 0.25, 0.20),
        }

    monkeypatch.setattr(probes, "score_frames", read)
    oracle = Oracle(SCENE, [0, 100], fps=16)
    for _ in range(2):
        oracle.update(np.zeros((100, 4, 4, 3), np.uint8))
    found = oracle.scores(128)
    assert (found["colour_first"], found["colour_last"], found["shape_last"]) == (1, 0, 1)
    assert found["accuracy_lost"] == pytest.approx(0.25)
    assert found["subject_motion"] == pytest.approx(1)
    assert found["pattern_kept"] == pytest.approx(20 / 120)
    assert found["size_change"] == pytest.approx(0.1 * 128)


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


def page(found, **facts):
    entry = {"model": "m", "student": None, "weights": None, "failed": [], "cache_bytes": None} | facts
    header = {
        "commit": "abc",
        "command": "python x",
        "machine": {"gpu": None, "processor": "cpu", "threads": 1},
        "versions": {"torch": "2"},
    }
    return markdown(found | {"entries": dict.fromkeys(found["means"], entry)}, header, seconds=60, prompts=12, seeds=2)


@pytest.mark.parametrize(
    ("motion", "mark", "verdict"),
    [(0.0, "**", "better"), (-3.0, "(bought with motion)", "bought with motion")],
    ids=["moving", "standing-still"],
)
def test_less_drift_is_bold_only_where_motion_was_kept(motion, mark, verdict):
    found = summarise(tables(np.random.default_rng(0), identity_drift=-2, motion=motion), "self-forcing", resamples=999)
    assert found["drift_verdicts"]["other"]["verdict"] == verdict
    row = next(line for line in page(found).splitlines() if line.startswith("| `other` |"))
    cell = row.split("|")[2]
    assert mark in cell
    assert ("**" in cell) == (motion == 0)


def test_a_metric_that_no_video_has_is_left_out_and_json_is_strict():
    found = tables(np.random.default_rng(0))
    for table in found.values():
        table["colour_last"][:] = np.nan
        table["identity_drift"][3:9] = np.nan
    figures = summarise(found, "self-forcing", resamples=999)
    json.dumps(figures, allow_nan=False)
    assert figures["means"]["other"]["colour_last"] is None
    assert figures["means"]["other"]["identity_drift"]["prompts"] == 6
    assert METRICS["colour_last"].title not in page(figures)


def test_one_entry_that_failed_leaves_the_others_their_prompts():
    found = tables(np.random.default_rng(0)) | {"broken": {name: np.full((12, 2), np.nan) for name in METRICS}}
    figures = summarise(found, "self-forcing", resamples=999)
    assert figures["differences"]["other"]["motion"]["prompts"] == 12
    assert figures["means"]["broken"]["motion"] is None
    assert figures["drift_verdicts"]["broken"] is None


def test_rows_survive_a_torn_last_line(tmp_path):
    rows = Rows(tmp_path / "a.rows.jsonl")
    rows.add({"video": {"seed": 0}, "failed": None, "scores": {"motion": 1.0}})
    with (tmp_path / "a.rows.jsonl").open("a") as out:
        out.write('{"video": {"seed": 1}, "fai')
    again = Rows(tmp_path / "a.rows.jsonl")
    assert again.get({"seed": 0})["scores"] == {"motion": 1.0}
    assert again.get({"seed": 1}) is None
    again.add({"video": {"seed": 2}, "failed": None, "scores": {}})
    assert Rows(tmp_path / "a.rows.jsonl").get({"seed": 2}) is not None


def test_a_run_renders_scores_and_writes_and_a_second_run_renders_nothing(tmp_path, tiny_model_folder, monkeypatch):
    out, page_file = tmp_path / "m.json", tmp_path / "m.md"
    arguments = ["--model", str(tiny_model_folder), "--probe", "none", "--prompts", "2", "--seeds", "1"]
    arguments += ["--seconds", "3", "--out", str(out), "--markdown", str(page_file)]
    for entry in ("self-forcing,cache.window=9", "streaming-llm", "autoencoder"):
        arguments += ["--entry", entry]
    arguments += ["--baseline", "self-forcing,cache.window=9"]
    methods.main(arguments)
    first = json.loads(out.read_text())["figures"]
    assert first["means"]["streaming-llm"]["seconds_a_block"]["estimate"] > 0
    assert first["entries"]["streaming-llm"]["cache_bytes"] > 0
    assert first["means"]["autoencoder"]["motion"] is not None
    assert "| `streaming-llm` |" in page_file.read_text()
    assert len(out.with_suffix(".rows.jsonl").read_text().splitlines()) == 6

    def never(*_):
        raise AssertionError("rendered again")

    monkeypatch.setattr(methods.Renderer, "stream", never)
    methods.main(arguments)
    assert json.loads(out.read_text())["figures"]["means"] == first["means"]
    with pytest.raises(AssertionError, match="rendered again"):
        methods.main([*arguments, "--entry", "streaming-llm,cache.sink=6"])


def test_an_overflowing_model_is_a_failed_video(monkeypatch):
    def overflow():
        raise FloatingPointError("block 3: latents are not finite")
        yield

    renderer = SimpleNamespace(stream=lambda *_: (overflow(), 16))
    row = methods.scored(renderer, Entry.parse("fifo", "m"), "a", SCENE, 0, 5, None)
    assert row == {"failed": "block 3: latents are not finite", "scores": {}}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--entry", "fifo"], "baseline='self-forcing'"), (["--entry", "fifo", "--entry", "fifo"], "labels repeat")],
)
def test_entries_that_cannot_be_compared_are_told(arguments, told, capsys):
    with pytest.raises(SystemExit):
        methods.main(arguments)
    assert told in capsys.readouterr().err
