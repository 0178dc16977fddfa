"""Light of scenes that are to change: known curves, the world's own, and what a run leaves behind."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import light
from benchmarks.entries import DEFAULT_ENTRIES, Entry, chosen_prompts
from longvid.metrics.oracle import LIT
from longvid.training import world

DAY = world.DAY_SECONDS


def curve(seconds=64, *, half=50.0, day=DAY, phase=0.3):
    """A value a second of light that comes and goes around 100, ``half`` grey levels up and down."""
    return (100 + half * np.sin(2 * np.pi * (np.arange(seconds) / day + phase))).tolist()


def test_light_as_in_real_video_swings_by_one_and_turns_twice_a_day():
    assert light.swing(curve(), curve()) == 1
    assert light.turns(curve(), curve()) == pytest.approx(2 * 60 / DAY, abs=60 / 64)


@pytest.mark.parametrize(
    ("held", "swing", "turns"),
    [
        pytest.param([150.0] * 64, 0, 0, id="held-by-day"),
        pytest.param(curve(half=10), 0.2, 0, id="flickers-around-dusk"),
        pytest.param([150.0] * 32 + [50.0] * 32, None, 60 / 64, id="night-falls-once"),
    ],
)
def test_light_that_is_held_is_told(held, swing, turns):
    assert light.turns(held, curve()) == pytest.approx(turns)
    if swing is not None:
        assert light.swing(held, curve()) == pytest.approx(swing, abs=1e-6)


def test_light_around_one_threshold_is_no_turn():
    shaky = [116.0, 117.5, 116.0, 118.0] * 16  # the upper third of 50..150 begins at 116.7
    assert light.turns(shaky, curve()) == 0


def test_the_meter_gives_a_value_a_second_whatever_the_chunks():
    frames = np.repeat(np.arange(40, dtype=np.uint8)[:, None, None, None], 3, axis=-1)
    whole, parts = light.LightMeter(16), light.LightMeter(16)
    whole.update(frames)
    for start in range(0, 40, 9):
        parts.update(frames[start : start + 9])
    assert parts.result() == whole.result() == pytest.approx([7.5, 23.5])


def test_swing_is_told_by_the_hour_that_a_video_begins_with():
    real = [0.0, 100.0, 0.0, 100.0]
    videos = [[real, [60.0, 70.0, 60.0, 70.0]], [[100.0, 0.0, 100.0, 0.0], None]]
    found = light.by_first_hour(videos, [[real, real], [real, real]])
    assert found == {
        "day": {"swing": pytest.approx((0.1 + 1) / 2), "videos": 2},
        "night": {"swing": 1.0, "videos": 1},
    }
    table = light.hours_table({"first_hours": {"a": found, "b": light.by_first_hour([[None]], [[real]])}})
    assert table.splitlines()[2:] == ["| `a` | 0.55 | 2 | 1.00 | 1 |", "| `b` | - | 0 | - | 0 |"]


def test_prompts_ask_for_day_and_night_and_claims_name_entries():
    assert {scene.background for _, scene in chosen_prompts(5, backgrounds=(LIT,))} == {LIT}
    known = {Entry.parse(text, "embedded").label for text in DEFAULT_ENTRIES}
    assert {c.entry for c in light.CLAIMS} | {c.than for c in light.CLAIMS} <= known
    assert {c.metric for c in light.CLAIMS} <= light.SCORES.keys() == light.METRICS.keys()


def test_a_run_reports_means_differences_and_claims_and_goes_on_from_its_lines(tmp_path, capsys, monkeypatch):
    out = tmp_path / "light.json"
    entries = ["--entry", "sf:self-forcing,student=base", "--entry", "world", "--baseline", "sf"]
    command = [*entries, "--prompts", "2", "--seconds", "2", "--out", str(out)]
    light.main(command)
    record = json.loads(out.read_text(encoding="utf-8"))
    figures = record["figures"]
    assert figures["means"]["world"]["swing"]["estimate"] == 1
    assert figures["differences"].keys() == {"world"}
    assert {row["verdict"] for row in figures["claims"]} == {"not run"}
    assert [len(values) for values in figures["curves"].values()] == [2, 2]
    assert figures["entries"]["sf"]["videos"] == 2
    (tmp_path / "light.rows.jsonl").unlink()
    monkeypatch.setattr(light, "rendered", lambda *_: pytest.fail("what is packed is not rendered again"))
    light.main(command)
    assert json.loads(out.read_text(encoding="utf-8"))["figures"] == figures
    assert "| `world` | 1.00 [1.00, 1.00]" in capsys.readouterr().out


def test_a_video_that_overflows_fails_alone(monkeypatch):
    class Overflows:
        def fps(self, entry):
            return 16.0

        def videos(self, entry, jobs, seconds, parts):
            if any(seed == 1 for *_, seed in jobs):
                raise FloatingPointError("block 3")
            frames = np.full((16, 4, 4, 3), 9, np.uint8)
            yield [type("Chunk", (), {"frames": frames}) for _ in jobs]

    lines = light.rendered(Overflows(), None, [("p", None, 0), ("p", None, 1)], 1)
    assert lines == [{"failed": None, "light": [9.0]}, {"failed": "block 3", "light": []}]


def test_a_run_without_the_world_is_refused(capsys):
    with pytest.raises(SystemExit):
        light.main(["--entry", "self-forcing"])
    assert "'world' must be among them" in capsys.readouterr().err
