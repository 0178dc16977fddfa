"""Captions: synonyms, open slots, colours of backgrounds, unknown words by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longvid.errors import InputError
from longvid.models.captions import CaptionEncoder, read_caption
from longvid.models.vocabulary import CONCEPTS, FILLERS, PHRASES, WORDS
from longvid.training import world
from longvid.training.describe import describe, held_out_prompts, scene_of, understood


@pytest.mark.parametrize(
    ("caption", "concepts"),
    [
        ("a red ball bounces over green hills", ("red", "ball", "bounce", "hills", None)),
        ("A crimson donut slowly circles in the night sky!", ("red", "ring", "circle", "stars", "slow")),
        ("purple heart at sunset, swinging back and forth", ("purple", "heart", "swing", "sunset", None)),
        ("blue waves and a white cube", ("white", "box", None, "sea", None)),
        ("time lapse of day and night: a star", (None, "star", None, "daynight", None)),
        ("", (None,) * 5),
    ],
)
def test_captions_are_read_as_concepts(caption: str, concepts: tuple[str | None, ...]) -> None:
    assert tuple(read_caption(caption).concepts.get(slot) for slot in CONCEPTS) == concepts


def test_unknown_words_are_reported_by_name_once() -> None:
    report = read_caption("two red cats and two dogs bounce")
    assert report.unknown == ("two", "cats", "dogs")
    assert "cats" in report.message()


def test_a_second_choice_is_reported() -> None:
    assert read_caption("a red yellow ball").unused == ("yellow",)


def test_about_three_hundred_words_are_known_and_each_has_one_meaning() -> None:
    assert 280 <= len(WORDS) + len(FILLERS) <= 400
    assert not set(WORDS) & FILLERS
    for slot, concept in [*WORDS.values(), *PHRASES.values()]:
        assert concept in CONCEPTS[slot]
    assert set(WORDS.values()) == {(s, c) for s, cs in CONCEPTS.items() for c in cs}


def test_every_generated_caption_is_read_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        scene = world.random_scene(rng)
        text = describe(scene, rng)
        assert understood(text, scene), text
        assert scene_of(text) == scene, text


@pytest.mark.parametrize(
    ("prompt", "rule"),
    [
        ("a red ball bounces", r"names no background \(sky, sea, stars, sunset, hills, desert, daynight\)"),
        ("a cat over the sea", "names no colour .*names no shape .*names no motion .*not the world's: cat"),
        ("a red ball bounces over the blurry sea", "words that are not the world's: blurry"),
        ("a red yellow ball bounces over the sea", "names a second choice: yellow"),
        ("a red ball hops at sunset[5s] | a blue box hops at sunset", "2 prompts in turn"),
    ],
)
def test_a_caption_that_is_no_scene_says_what_is_missing(prompt: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        scene_of(prompt)


def test_a_schedule_of_one_part_is_a_caption() -> None:
    assert scene_of("a blue box hops at sunset[20s]") == scene_of("a cobalt cube leaps in the evening")


def test_held_out_prompts_are_of_held_out_scenes() -> None:
    prompts = held_out_prompts(24)
    assert all(world.is_held_out(scene) for _, scene in prompts)
    assert len({text for text, _ in prompts}) == 24
    assert {scene.shape for _, scene in prompts} == set(world.SHAPES)


def test_synonyms_encode_alike_and_survive_saving(tmp_path) -> None:
    encoder = CaptionEncoder(text_dim=8)
    a, b = encoder.encode(["a red ball bounces", "crimson sphere bouncing"])
    assert torch.equal(a, b)
    encoder.save_pretrained(tmp_path)
    again = CaptionEncoder.from_pretrained(tmp_path)
    prompt = ["a pink star hops in the desert"]
    assert torch.equal(encoder.encode(prompt), again.encode(prompt))
    assert not torch.equal(encoder.encode([""]), encoder.encode(prompt))
