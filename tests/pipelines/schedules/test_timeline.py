"""Latent and video frames in videos with hard cuts, on integers; and where a request puts its prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid.errors import InputError
from longvid.pipelines.request import ModelFacts, Request, resolve
from longvid.pipelines.schedules.blocks import BlockGrid
from longvid.pipelines.schedules.timeline import Timeline
from longvid.plan import planned_blocks

FACTS = ModelFacts(spatial=16, temporal=4, fps=16.0, height=64, width=64, defaults={})


def video_frames(scenes: list[int], temporal: int) -> list[list[int]]:
    """The truth by counting: video frames of every latent frame, scene by scene."""
    found, video = [], 0
    for latents in scenes:
        for i in range(latents):
            count = 1 if i == 0 else temporal
            found.append(list(range(video, video + count)))
            video += count
    return found


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.sampled_from([1, 2, 4, 8]))
def test_equals_counting(scenes: list[int], temporal: int) -> None:
    timeline, latent, truth = Timeline(temporal), 0, video_frames(scenes, temporal)
    for latents in scenes:
        timeline = timeline.cut(latent)
        for index in range(latent, latent + latents):
            assert timeline.video_frame(index) == truth[index][0]
            assert {timeline.latent_frame(video) for video in truth[index]} == {index}
            for video in truth[index]:
                assert timeline.latents_until(video + 1) == index - latent + 1
        latent += latents
    assert timeline.video_frame(latent) == truth[-1][-1] + 1


@given(st.integers(1, 4), st.booleans(), st.integers(0, 40))
def test_the_next_block_is_found(n: int, alone: bool, frame: int) -> None:
    grid = BlockGrid(n, alone)
    index = grid.next_block(frame)
    assert grid[index].start >= frame
    assert index == 0 or grid[index - 1].start < frame


def request(prompt: str, method: str = "self-forcing", **arguments: object) -> Request:
    return resolve(method, FACTS, prompt, seed=0, **arguments)


@given(
    st.lists(st.tuples(st.integers(8, 60), st.booleans()), min_size=1, max_size=5),
    st.sampled_from(["self-forcing", "rolling-forcing"]),
    st.booleans(),
)
def test_a_schedule_gives_the_length_that_was_asked_for(
    parts: list[tuple[int, bool]], method: str, alone: bool
) -> None:
    """Each scene begins with one picture; the last block fills up the rest."""
    text = " | ".join(f"p{i}[{tenths / 10}s{'#' * (cut and i > 0)}]" for i, (tenths, cut) in enumerate(parts))
    overrides = {"schedule": {"independent_first_frame": True}} if alone else {}
    made = request(text, method, overrides=overrides)
    assert made.frames == round(sum(tenths for tenths, _ in parts) / 10 * 16)
    blocks = list(planned_blocks(made, 4))
    assert len(blocks) == made.blocks
    assert blocks[-1].latent_frames[1] == made.latent_frames
    assert [block.video_frames[0] for block in blocks[1:]] == [block.video_frames[1] for block in blocks[:-1]]
    assert blocks[-1].video_frames[1] == made.frames
    assert blocks[-1].video_frames[0] < made.frames  # no block is made for nothing
    assert {block.prompt for block in blocks} == set(range(len(parts)))
    begun = 0.0
    for part, (tenths, _) in enumerate(parts):
        first = next(block for block in blocks if block.prompt == part)
        # A prompt waits for the next block; parts pass it on to each other, so it never adds up.
        assert -4 < first.video_frames[0] - begun * 16 < 12 + 1
        begun += tenths / 10


def test_a_cut_costs_three_frames_and_not_the_length() -> None:
    flowing, cut = request("a[5s] | b[5s]"), request("a[5s] | b[5s#]")
    assert (flowing.frames, cut.frames) == (160, 160)
    assert (flowing.latent_frames, cut.latent_frames) == (42, 42)
    assert [block.video_frames for block in planned_blocks(flowing, 4)][6:9] == [(69, 81), (81, 93), (93, 105)]
    assert [block.video_frames for block in planned_blocks(cut, 4)][6:9] == [(69, 81), (81, 90), (90, 102)]
    assert request("a[1s] | b[1s#] | c[1s#] | d[1s#] | e[1s#]").latent_frames == 24
    assert request("a[1s] | b[1s] | c[1s] | d[1s] | e[1s]").latent_frames == 21


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            "a[1s] | b[0.2s] | c[3s]",
            "part 2 would never be shown: a prompt begins with a block .0.75 s., and before the",
        ),
        ("a[1.1s] | b[0.2s#]", "part 2 would never be shown.*at 1.3125 s, the video ends; give it more seconds"),
    ],
    ids=["between-two-blocks", "behind-the-last-block"],
)
def test_a_part_that_no_block_would_show_is_refused(prompt: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        request(prompt)


def test_given_frames_come_before_the_first_cut() -> None:
    made = request("a[0.5s] | b[2s#]", given_frames=6)
    assert [(s.frame, s.cut) for s in made.switches] == [(6, True)]
    assert made.latent_frames == 12
