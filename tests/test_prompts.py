"""Prompt schedules: what parses, what does not and where, and that writing and parsing are inverse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid.errors import InputError, PromptSyntaxError
from longvid.prompts import MAX_PART_CHARACTERS, PromptPart, PromptSchedule, parse_prompt, parse_switch, read_prompts


def test_plain_text_is_one_endless_part() -> None:
    schedule = parse_prompt("  a red ball  bounces over green hills ")
    assert schedule.parts == (PromptPart("a red ball bounces over green hills", None, False),)
    assert schedule.seconds is None
    assert schedule.length(60) == 60


def test_parts_lengths_and_cuts() -> None:
    schedule = parse_prompt("a man walks[5s] | he runs [ 2.5 s ]|night falls[10s#]")
    assert schedule.parts == (
        PromptPart("a man walks", 5.0, False),
        PromptPart("he runs", 2.5, False),
        PromptPart("night falls", 10.0, True),
    )
    assert schedule.starts == (0.0, 5.0, 7.5)
    assert schedule.seconds == 17.5
    assert [schedule.index_at(second) for second in (0, 4.99, 5, 7.4, 7.5, 99)] == [0, 0, 1, 1, 2, 2]


def test_the_last_part_may_be_endless_and_still_cut() -> None:
    assert parse_prompt("a[5s] | b[#]").parts[1] == PromptPart("b", None, True)
    assert parse_prompt("a[5s] | b").length(8) == 8


def test_escapes_take_the_character_itself() -> None:
    assert parse_prompt(r"a sign \[x\] \| \\").parts[0].text == r"a sign [x] | \ ".strip()


@pytest.mark.parametrize(
    ("source", "position"),
    [
        ("a | b[5s]", 2),
        ("a[5s] | ", 7),
        ("a[5s] || b", 7),
        ("a[5s] b", 6),
        ("a[5x]", 2),
        ("a[]", 2),
        ("a[-5s]", 2),
        ("a[nans]", 2),
        ("a[0s]", 2),
        ("a[5s", 1),
        ("a 5s]", 4),
        ("a[5s#] | b", 4),
        ("a \\b", 2),
        ("a\x00b", 1),
        ("[5s]", 0),
    ],
)
def test_errors_name_the_character(source: str, position: int) -> None:
    with pytest.raises(PromptSyntaxError, match=f"character {position + 1}:") as caught:
        parse_prompt(source)
    assert caught.value.position == position
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["", "   ", "\n\t", "x" * 100_000, None, 3])
def test_empty_huge_and_foreign_prompts_are_refused(source: object) -> None:
    with pytest.raises(InputError, match="prompt"):
        parse_prompt(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 0.0])
def test_lengths_that_cannot_be(seconds: float) -> None:
    with pytest.raises(InputError, match="finite number above 0"):
        parse_prompt("a").length(seconds)


def test_a_part_that_would_never_be_shown_is_refused() -> None:
    with pytest.raises(InputError, match="part 3 of the prompt begins at 15 s"):
        parse_prompt("a[5s] | b[10s] | c").length(12)
    with pytest.raises(InputError, match="no length of its own"):
        parse_prompt("a").length(None)


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Z")), min_size=1, max_size=12)
texts = st.lists(words, min_size=1, max_size=4).map(lambda found: " ".join(" ".join(found).split())).filter(bool)
lengths = st.integers(1, 10**6).map(lambda hundredths: hundredths / 100)


@given(first=st.lists(st.tuples(texts, lengths, st.booleans()), max_size=4), last=st.tuples(texts, st.none() | lengths))
def test_writing_and_parsing_are_inverse(first: list[tuple[str, float, bool]], last: tuple[str, float | None]) -> None:
    parts = [PromptPart(text, seconds, cut and index > 0) for index, (text, seconds, cut) in enumerate(first)]
    schedule = PromptSchedule((*parts, PromptPart(*last, cut=False)))
    assert parse_prompt(str(schedule)) == schedule
    for index, start in enumerate(schedule.starts):
        assert schedule.index_at(start) == index


@given(st.text(max_size=60))
def test_any_text_parses_or_says_why(source: str) -> None:
    try:
        schedule = parse_prompt(source)
    except InputError as error:
        message = str(error)
        schedule = PromptSchedule(())
    else:
        message = ""
    assert "\n" not in message
    assert bool(message) != bool(schedule.parts)
    assert all(part.text and len(part.text) <= MAX_PART_CHARACTERS for part in schedule.parts)


def test_a_file_of_prompts(tmp_path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# heading\n\na red ball\n a[5s] | b \n", encoding="utf-8")
    assert read_prompts(path) == ["a red ball", "a[5s] | b"]
    path.write_text("fine\nbroken[5s\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 2: prompt, character 7"):
        read_prompts(path)
    path.write_text("# only a heading\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no prompt"):
        read_prompts(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_prompts(path)
    with pytest.raises(InputError, match="No such file"):
        read_prompts(tmp_path / "none.txt")


def test_a_switch_is_one_prompt_without_a_length() -> None:
    assert parse_switch(r" a \[red\]   ball ") == "a [red] ball"
    with pytest.raises(InputError, match="has 2 parts; a switch takes one prompt without a length: give each"):
        parse_switch("a[2s] | b")
    with pytest.raises(InputError, match=r"has a length of 2\.5 s; .+ drop the brackets"):
        parse_switch("a[2.5s]")
    with pytest.raises(InputError, match="must not be empty"):
        parse_switch(" ")
