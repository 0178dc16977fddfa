import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import costs, methods
from benchmarks.claims import CLAIMS
from benchmarks.entries import (
    DEFAULT_ENTRIES,
    REFERENCES,
    Entry,
    Renderer,
    chosen_prompts,
    excerpts,
    fingerprint,
    real_video,
    reference,
)
from benchmarks.methods import Rows, scored_parts
from benchmarks.scores import METRICS, Oracle, VideoScore
from benchmarks.tables import cost_how, cost_table
from longvid.metrics.oracle import STATIC
from longvid.training import world

SCENE = world.Scene(colour="red", shape="ball", motion="circle", background="stars")


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
        if entry.method not in REFERENCES:
            resolve_method(entry.method, overrides=parse_overrides(entry.overrides))
    known = {entry.label for entry in entries}
    assert {claim.entry for claim in CLAIMS} | {claim.than for claim in CLAIMS} <= known
    assert {claim.metric for claim in CLAIMS} <= set(METRICS)


def test_students_are_told_apart_by_their_adapters():
    base, one, other = (fingerprint("embedded", name) for name in (None, "self-forcing", "rolling-forcing"))
    assert len({base, one, other}) == 3
    renderer = Renderer(None, None)
    facts = [
        renderer.facts(Entry.parse(f"deep-forcing,student={name}", "embedded")) for name in ("base", "self-forcing")
    ]
    assert "student" not in facts[0]
    assert (facts[1]["student"], facts[1]["adapter"]) == ("self-forcing", one)
    assert facts[0]["method"]["schedule"] != facts[1]["method"]["schedule"], "a student brings its own sampling"


def test_real_video_comes_in_blocks_of_three_latent_frames_without_a_gap():
    chunks = list(real_video(SCENE, 0, 0, 32))
    assert [len(c.frames) for c in chunks] == [9, 12, 11]
    assert [c.start_frame for c in chunks] == [0, 9, 21]
    assert np.array_equal(np.concatenate([c.frames for c in chunks]), world.render(SCENE, 0, frames=32))


def scores_of(scene, chunks, probe=None):
    score = VideoScore(16, scene=scene, probe=probe, temporal_stride=4)
    for chunk in chunks:
        score.update(chunk)
    return score.result()


def test_scores_of_real_video_hold_its_identity_and_its_motion():
    found = scores_of(SCENE, real_video(SCENE, 0, 0, 176))
    assert set(found) == set(METRICS)
    assert found["identity_drift"] < 1
    assert found["motion"] > 1.5
    assert found["frozen"] == 0
    assert 0.6 < found["seam"] < 1.6
    assert np.isnan(found["colour_last"])


def test_identity_drift_is_scored_on_still_scenes_alone():
    scene = world.Scene(colour="red", shape="ball", motion="circle", background="sky")
    found = scores_of(scene, real_video(scene, 0, 0, 176))
    assert np.isnan(found["identity_drift"])
    assert found["motion"] > 1


def test_of_a_long_video_the_first_segment_and_the_last_minute_are_scored():
    assert scored_parts(60, 16) == [(0, 960)]
    assert scored_parts(300, 16) == [(0, 80), (3840, 4800)]


def test_still_prompts_come_from_behind_those_that_are_skipped():
    every, still = chosen_prompts(40), chosen_prompts(6, skip=10, backgrounds=STATIC)
    assert {scene.background for _, scene in still} == set(STATIC)
    places = [every.index(prompt) for prompt in still]
    assert places == sorted(places)
    assert places[0] >= 10


def test_what_is_left_out_between_two_parts_moves_no_score():
    parts = [(0, 80), (1120, 1200)]
    apart = [scores_of(SCENE, reference(None, SCENE, 0, [part])) for part in parts]
    joined = scores_of(SCENE, reference(None, SCENE, 0, parts))
    for name in ("motion", "smoothness"):
        assert joined[name] == pytest.approx(np.mean([found[name] for found in apart]), rel=1e-6)


def test_the_subject_does_not_move_across_what_is_left_out(monkeypatch):
    from longvid.training import probe as probes

    def read(frames, probe):
        start, n = probe.pop(0), len(frames)
        names = {name: np.full(n, name) for name in ("colour", "shape", "background", "pattern")}
        return names | {
            "count": np.ones(n, int),
            "x": np.arange(start, start + n) / 128,
            "y": np.zeros(n),
            "radius": np.ones(n),
        }

    monkeypatch.setattr(probes, "score_frames", read)
    oracle = Oracle(SCENE, [0, 1000], fps=16)
    for part in range(2):
        if part:
            oracle.cut()
        oracle.update(np.zeros((100, 4, 4, 3), np.uint8))
    assert oracle.scores(128)["subject_motion"] == pytest.approx(1)


def test_parts_of_a_batch_are_the_frames_of_each_video_alone(tiny_model_folder):
    pipe = Renderer(None, None).pipe(Entry.parse("self-forcing", str(tiny_model_folder)))
    alone = np.concatenate([c.frames for c in pipe.stream("a red ball", seconds=9, seed=7)])
    parts, found = [(0, 20), (100, 144)], []
    for chunks in excerpts(pipe, ["a blue box", "a red ball"], [3, 7], 9, parts):
        assert len(chunks) == 2
        found.append(chunks[1])
    assert [c.start_frame for c in found][:4] == [0, 9, 100, 105]
    wanted = np.concatenate([alone[start:stop] for start, stop in parts])
    assert np.abs(np.concatenate([c.frames for c in found]).astype(int) - wanted).max() <= 1


def test_the_consumers_time_is_not_the_streams(monkeypatch):
    """A clock that the stream moves by 1 s a chunk and the consumer by 100 s."""
    now = [0.0]
    monkeypatch.setattr(costs.time, "perf_counter", lambda: now[0])

    def chunks():
        for chunk in real_video(SCENE, 0, 0, 48):
            now[0] += 1
            yield chunk

    taken = []
    for _, seconds in costs.clocked(chunks()):
        now[0] += 100
        taken.append(seconds)
    assert taken == [1.0] * 5


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


def test_density_is_told_of_what_attention_reads(tiny_model_folder):
    renderer = Renderer(None, None)
    dense, radial = (
        costs.attention_density(
            renderer.pipe(Entry.parse(f"self-forcing,attention.kind={kind}", str(tiny_model_folder))), "a ball", 3
        )
        for kind in ("dense", "radial")
    )
    assert dense == 1
    assert 0 < radial < 1


def test_costs_are_a_record_of_their_own(tmp_path, tiny_model_folder):
    out = tmp_path / "costs.json"
    arguments = ["--model", str(tiny_model_folder), "--rounds", "1", "--warm-up", "0.5", "--seconds", "1"]
    for entry in ("self-forcing", "streaming-llm", "autoencoder", "world"):
        arguments += ["--entry", entry]
    costs.main([*arguments, "--out", str(out)])
    record = json.loads(out.read_text())
    figures = record["figures"]
    assert list(figures["costs"]) == ["self-forcing", "streaming-llm"], "real video costs nothing that a user pays"
    assert figures["costs"]["streaming-llm"]["ms_a_frame"] > 0
    assert figures["costs"]["streaming-llm"]["cache_bytes"] > 0
    assert record["vae_included"]
    assert figures["dtype"] == "float32"
    assert "1 of each" in cost_how(record)
    assert "float32" in cost_how(record)
    assert "| `self-forcing` |" in cost_table(figures)
    with pytest.raises(SystemExit):
        costs.main([*arguments, "--baseline", "dense", "--out", str(out)])


def video(seed):
    return {"seed": seed, "scoring": 1}


def test_rows_survive_a_torn_last_line(tmp_path):
    rows = Rows(tmp_path / "a.rows.jsonl")
    rows.add({"video": video(0), "failed": None, "scores": {"motion": 1.0}, "drifts": []})
    with (tmp_path / "a.rows.jsonl").open("a") as out:
        out.write('{"video": {"seed": 1}, "fai')
    again = Rows(tmp_path / "a.rows.jsonl")
    assert again.get(video(0))["scores"] == {"motion": 1.0}
    assert again.get(video(1)) is None
    again.add({"video": video(2), "failed": None, "scores": {}})
    assert Rows(tmp_path / "a.rows.jsonl").get(video(2)) is not None


def test_a_packed_record_is_gone_on_from_elsewhere_and_newer_lines_go_before_it(tmp_path):
    """Videos that a report rests on are lost with the machine unless they lie beside it."""
    rows = Rows(tmp_path / "here.rows.jsonl")
    for seed in range(3):
        rows.add({"video": video(seed), "failed": None, "scores": {"motion": seed / 3}, "drifts": [None]})
    rows.pack(tmp_path / "record.rows.xz", [video(2), video(0), video(7)])

    there = Rows(tmp_path / "there.rows.jsonl", tmp_path / "record.rows.xz")
    assert there.get(video(2)) == rows.get(video(2))
    assert there.get(video(1)) is None, "only what the report rests on"
    there.add({"video": video(0), "failed": None, "scores": {"motion": 9.0}, "drifts": []})
    again = Rows(tmp_path / "there.rows.jsonl", tmp_path / "record.rows.xz")
    assert again.get(video(0))["scores"] == {"motion": 9.0}
    again.add({"video": video(5), "failed": None, "scores": {}, "drifts": []})
    again.pack(tmp_path / "record.rows.xz", [video(5)], keep=True)  # an update of one entry
    kept = Rows(tmp_path / "none.rows.jsonl", tmp_path / "record.rows.xz")
    assert [seed for seed in range(8) if kept.get(video(seed))] == [0, 2, 5]
    kept.pack(tmp_path / "record.rows.xz", [video(2)])
    assert Rows(tmp_path / "none.rows.jsonl", tmp_path / "record.rows.xz").get(video(5)) is None


def test_videos_recorded_before_a_setting_existed_are_not_rendered_again(tmp_path, tiny_model_folder):
    facts = Renderer(None, None).facts(Entry.parse("rolling-forcing", str(tiny_model_folder)))
    now = facts | video(0)
    older = json.loads(json.dumps(now))
    del older["scoring"], older["method"]["cache"]["static"], older["method"]["attention"]["recency"]
    (tmp_path / "a.rows.jsonl").write_text(
        json.dumps({"video": older, "failed": None, "scores": {}, "drifts": []}) + "\n"
    )
    rows = Rows(tmp_path / "a.rows.jsonl")
    assert rows.get(now) is not None
    changed = now | {"method": now["method"] | {"cache": now["method"]["cache"] | {"static": 3}}}
    assert rows.get(changed) is None
    assert rows.get(now | {"scoring": 2}) is None, "scores have another meaning now"


def test_a_run_renders_scores_and_writes_and_a_second_run_renders_nothing(tmp_path, tiny_model_folder, monkeypatch):
    out, page_file = tmp_path / "m.json", tmp_path / "m.md"
    arguments = ["--model", str(tiny_model_folder), "--probe", "none", "--prompts", "2", "--seeds", "1"]
    arguments += ["--seconds", "3", "--batch", "2", "--out", str(out), "--markdown", str(page_file)]
    for entry in ("self-forcing,cache.window=9", "streaming-llm", "autoencoder"):
        arguments += ["--entry", entry]
    arguments += ["--baseline", "self-forcing,cache.window=9"]
    methods.main(arguments)
    first = json.loads(out.read_text())["figures"]
    assert first["entries"]["autoencoder"]["videos"] == 2
    assert first["means"]["autoencoder"]["motion"] is not None
    assert "| `streaming-llm` |" in page_file.read_text()
    assert len(out.with_suffix(".rows.jsonl").read_text().splitlines()) == 6

    def never(*_):
        raise AssertionError("rendered again")

    monkeypatch.setattr(methods.Renderer, "videos", never)
    out.with_suffix(".rows.jsonl").unlink()  # another machine: what lies beside the record is enough
    methods.main(arguments)
    assert json.loads(out.read_text())["figures"]["means"] == first["means"]
    with pytest.raises(AssertionError, match="rendered again"):
        methods.main([*arguments, "--entry", "streaming-llm,cache.sink=6"])


def test_an_overflowing_model_is_a_failed_video_and_takes_no_other_with_it():
    def videos(entry, jobs, seconds, parts):
        if any(prompt == "bad" for prompt, _, _ in jobs):
            raise FloatingPointError("block 3: latents are not finite")
        yield from zip(*(real_video(scene, seed, 0, 96) for _, scene, seed in jobs), strict=True)

    renderer = SimpleNamespace(videos=videos, fps=lambda _: 16)
    rows = methods.scored(renderer, Entry.parse("fifo", "m"), [("good", SCENE, 0), ("bad", SCENE, 0)], 6, None)
    assert [row["failed"] for row in rows] == [None, "block 3: latents are not finite"]
    assert rows[0]["scores"]["motion"] > 1
    assert rows[1]["scores"] == {}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--entry", "fifo"], "baseline='self-forcing'"), (["--entry", "fifo", "--entry", "fifo"], "labels repeat")],
)
def test_entries_that_cannot_be_compared_are_told(arguments, told, capsys):
    with pytest.raises(SystemExit):
        methods.main(arguments)
    assert told in capsys.readouterr().err
