"""The configuration schema: what is refused and how it is said, presets, precedence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import longvid
from longvid.config import (
    DEFAULT_METHOD,
    AttentionConfig,
    CacheConfig,
    MethodConfig,
    ScheduleConfig,
    from_mapping,
    to_mapping,
)
from longvid.errors import InputError, UnknownNameError, nearest
from longvid.presets import config_root, load_method, merge, method_names, parse_overrides, read_yaml, resolve_method

PAPERS = {
    # what the papers and their released code say; a changed preset is a changed method
    "self-forcing": {"steps": [1000, 750, 500, 250], "window": 21, "sink": 0},
    "streaming-llm": {"steps": [1000, 750, 500, 250], "window": 21, "sink": 3},
    "deep-forcing": {"steps": [1000, 750, 500, 250], "window": 21, "sink": 10, "budget": 16, "recent": 4},
    "rolling-forcing": {"steps": [1000, 800, 600, 400, 200], "window": 21, "sink": 3, "cache_frames": 24},
    "reward-forcing": {"steps": [1000, 750, 500, 250], "window": 9, "sink": 3, "ema_alpha": 0.999},
}


@pytest.mark.parametrize("name", method_names())
def test_every_preset_loads_and_names_its_pipeline(name: str) -> None:
    method = MethodConfig.load(name)
    assert method.name == name
    assert method.title
    assert method.paper.startswith("arXiv ")
    assert method.summary.endswith(".")
    assert method.pipeline in longvid.__all__
    assert from_mapping(MethodConfig, to_mapping(method)) == method


@pytest.mark.parametrize("name", PAPERS)
def test_presets_carry_their_papers_numbers(name: str) -> None:
    method = load_method(name)
    assert method.schedule.shift == 5.0
    assert method.schedule.frames_per_block == 3
    for key, value in PAPERS[name].items():
        found = getattr(method.schedule if key == "steps" else method.cache, key)
        assert (list(found) if key == "steps" else found) == value


def test_the_default_method_exists() -> None:
    assert DEFAULT_METHOD in method_names()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ScheduleConfig(kind="chunks"), "did you mean 'chunk'"),
        (lambda: ScheduleConfig(frames_per_block=0), "schedule.frames_per_block=0: must be a whole number, 1 or more"),
        (lambda: ScheduleConfig(frames_per_block=True), "must be a whole number"),
        (lambda: ScheduleConfig(steps=()), "must hold one timestep"),
        (lambda: ScheduleConfig(steps=(1000.0, 1000.0)), "must fall"),
        (lambda: ScheduleConfig(steps=(1000.0, 0.0)), "must end above 0"),
        (lambda: ScheduleConfig(steps=(2000.0,)), "at most 1000"),
        (lambda: ScheduleConfig(steps=(math.nan,)), "must be a finite number"),
        (lambda: ScheduleConfig(shift=0.0), "schedule.shift=0.0: must be above 0"),
        (lambda: ScheduleConfig(guidance_scale=math.inf), "must be a finite number"),
        (lambda: ScheduleConfig(sampler="ab2"), 'needs schedule.kind="fifo"'),
        (lambda: CacheConfig(policy="windows"), "did you mean 'window'"),
        (lambda: CacheConfig(window=0), "or -1 for all"),
        (lambda: CacheConfig(window=-2), "or -1 for all"),
        (lambda: CacheConfig(window=6, sink=6), "must be below cache.window=6: set cache.sink=5 or less"),
        (lambda: CacheConfig(sink=-1), "cache.sink=-1"),
        (lambda: CacheConfig(ema_alpha=1.5), "at most 1"),
        (lambda: CacheConfig(context_noise=-1.0), "at least 0"),
        (
            lambda: CacheConfig(policy="participative", window=21, sink=14, budget=16, recent=4),
            "at least sink + recent = 18",
        ),
        (lambda: CacheConfig(policy="participative", window=-1, sink=10), "needs a window"),
        (lambda: CacheConfig(policy="participative", window=12, sink=2, budget=16), "at most cache.window=12"),
        (lambda: AttentionConfig(kind="sparse"), "'sparse'"),
        (lambda: AttentionConfig(backend=""), "must be"),
        (lambda: MethodConfig(name="x", cache=CacheConfig(window=2)), "must be at least schedule.frames_per_block=3"),
        (lambda: MethodConfig(name="x", cache=CacheConfig(window=9, sink=7)), "leaves no room for a block of 3"),
        (lambda: MethodConfig(name=""), "must name the method"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"name": "x", "schedul": {}}, "unknown key 'schedul': did you mean 'schedule'"),
        ({"name": "x", "cache": {"sinks": 3}}, "unknown key 'cache.sinks': did you mean 'cache.sink'"),
        ({"name": "x", "cache": 3}, "must be a mapping"),
        ({"name": "x", "cache": {"window": 2.5}}, "cache.window=2.5: must be a whole number"),
        ({"name": "x", "cache": {"hole_free": 1}}, "must be true or false"),
        ({"name": "x", "schedule": {"steps": 1000}}, "must be a list"),
        ({"name": "x", "schedule": {"shift": "five"}}, "must be a number"),
        ({}, "name"),
    ],
)
def test_plain_values_of_the_wrong_kind(plain: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        from_mapping(MethodConfig, plain)
    assert said in str(caught.value)


def test_configurations_are_frozen() -> None:
    with pytest.raises(AttributeError):
        ScheduleConfig().shift = 3.0  # type: ignore[misc]
    with pytest.raises((AttributeError, TypeError)):
        ScheduleConfig().other = 3.0  # type: ignore[attr-defined]


def test_precedence_is_method_then_model_then_the_user() -> None:
    model = {"steps": [1000, 500], "shift": 3, "sampler": "euler", "guidance_scale": None, "fps": 16}
    method = resolve_method("self-forcing", model_defaults=model)
    assert (method.schedule.steps, method.schedule.shift, method.schedule.sampler) == ((1000.0, 500.0), 3.0, "euler")
    assert method.schedule.guidance_scale == 1.0
    assert method.cache == load_method("self-forcing").cache
    method = resolve_method("self-forcing", model_defaults=model, overrides={"schedule": {"shift": 7.0}})
    assert (method.schedule.shift, method.schedule.sampler) == (7.0, "euler")
    assert load_method("self-forcing").schedule.shift == 5.0  # the preset itself is untouched


def test_a_queue_keeps_its_own_levels() -> None:
    model = {"steps": [1000, 500], "shift": 3, "sampler": "euler", "train_frames": 9, "frames_per_block": 3}
    method, preset = resolve_method("fifo", model_defaults=model), load_method("fifo")
    assert method.schedule.shift == 3.0
    assert method.schedule.window_frames == 9
    assert (method.schedule.sampler, method.schedule.steps) == (preset.schedule.sampler, preset.schedule.steps)
    assert method.schedule.frames_per_block == preset.schedule.frames_per_block


def test_overrides_from_the_command_line() -> None:
    found = parse_overrides(
        ["cache.window=12", "schedule.steps=[1000, 500]", "prompt=a=b", "seed= 3", "schedule.warp=no"]
    )
    assert found["cache"] == {"window": 12}
    assert found["schedule"]["steps"] == [1000, 500]
    assert (found["prompt"], found["seed"]) == ("a=b", 3)
    for bad in ("cache.window", "=3", "a b=3", "cache..x=3", ""):
        with pytest.raises(InputError, match="must be key=value"):
            parse_overrides([bad])


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for text, said in (("- 1\n- 2\n", "must hold keys and values"), ("a: [1", "is no YAML"), ("a: ${b}", "is no YAML")):
        path.write_text(text)
        with pytest.raises(InputError, match=said) as caught:
            read_yaml(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")


def test_presets_can_live_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("title: Mine\ncache: {policy: window, window: 6}\n")
    monkeypatch.setenv("LONGVID_CONFIGS", str(tmp_path))
    assert config_root() == tmp_path
    assert method_names() == ("mine",)
    assert load_method("mine").cache.window == 6
    with pytest.raises(UnknownNameError, match="known: mine"):
        load_method("self-forcing")


def test_nearest_names() -> None:
    assert nearest("deep_forcing", ["deep-forcing", "self-forcing"]) == "deep-forcing"
    assert nearest("Rolling-Forcing", ["rolling-forcing"]) == "rolling-forcing"
    assert nearest("xyz", ["deep-forcing"]) is None


@given(
    st.recursive(st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8)
)
def test_merging_with_nothing_changes_nothing(plain: Any) -> None:
    base = {"x": plain}
    assert merge(base, {}) == base
    assert merge({}, base) == base
    assert merge(base, base) == base


@given(window=st.integers(1, 60), sink=st.integers(0, 60), block=st.integers(1, 8))
def test_a_method_that_is_accepted_has_room_for_a_block(window: int, sink: int, block: int) -> None:
    try:
        method = MethodConfig(
            name="x",
            schedule=ScheduleConfig(frames_per_block=block),
            cache=CacheConfig(policy="sink", window=window, sink=sink),
        )
    except InputError:
        assert sink + block > window
    else:
        assert method.cache.sink + method.schedule.frames_per_block <= method.cache.window
