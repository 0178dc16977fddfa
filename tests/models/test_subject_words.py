"""Which words name the subject, and where they stand."""

from types import SimpleNamespace

import pytest

from longvid.models.captions import CaptionEncoder
from longvid.models.subject_words import check_words, subject_words, token_positions


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a red ball bounces over green hills", ("red", "ball")),
        ("An astronaut riding a horse on the moon", ("astronaut",)),
        ("two dogs run along a beach", ("dogs",)),
        ("the glass dress is floating", ("glass", "dress")),
        ("in a forest, an old fox runs", ("old", "fox")),
        ("a white-haired woman walks slowly", ("white-haired", "woman")),
        ("fireworks", ("fireworks",)),
        ("Ein roter Ball", ("Ein", "roter", "Ball")),
    ],
)
def test_first_noun_phrase(prompt: str, words: tuple[str, ...]) -> None:
    assert subject_words(prompt) == words


@pytest.mark.parametrize("prompt", ["", "1234 !!", "is it", "slowly walking"])
def test_a_prompt_without_a_subject_asks_for_one(prompt: str) -> None:
    with pytest.raises(ValueError, match="no subject found"):
        subject_words(prompt)


def test_a_word_that_is_not_in_the_prompt_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'bal': not in the prompt .*nearest 'ball'"):
        check_words("a red ball", ("bal",))
    with pytest.raises(ValueError, match="its words: a, red, ball"):
        check_words("a red ball", ("zebra",))
    with pytest.raises(ValueError, match="at least one word"):
        check_words("a red ball", ())
    check_words("a Red ball", ("red ball",))


class PieceTokenizer:
    """Splits words into pieces of three letters, the first of each marked, and ends with one more token."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        pieces = [
            ("_" if at == 0 else "") + word[at : at + 3] for word in text.split() for at in range(0, len(word), 3)
        ]
        ids = [self.ids.setdefault(piece, len(self.ids) + 10) for piece in pieces]
        return SimpleNamespace(input_ids=ids + ([1] if add_special_tokens else []))


def test_pieces_of_words_are_found_as_runs() -> None:
    tokenizer = PieceTokenizer()
    found = token_positions("a reddish balloon flies", ("reddish", "balloon"), tokenizer=tokenizer, text_encoder=None)
    assert found == (1, 2, 3, 4, 5, 6)
    assert token_positions("A Cat", ("cat",), tokenizer=tokenizer, text_encoder=None) == (1,)


def test_a_word_that_the_tokenizer_splits_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="splits it differently"):
        token_positions("a red,ball", ("ball",), tokenizer=PieceTokenizer(), text_encoder=None)


def test_the_embedded_model_s_slots() -> None:
    encoder = CaptionEncoder()
    prompt = "a crimson ball leaps over green hills"
    assert token_positions(prompt, ("crimson", "ball"), tokenizer=None, text_encoder=encoder) == (0, 1)
    assert token_positions(prompt, ("ball",), tokenizer=None, text_encoder=encoder) == (1,)
    with pytest.raises(ValueError, match="reads none of them"):
        token_positions("a zebra and a ball", ("zebra",), tokenizer=None, text_encoder=encoder)
