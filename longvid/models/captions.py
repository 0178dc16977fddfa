"""The embedded model's text encoder: about 300 words, read as five concepts.

A caption is read once, left to right, into the five slots that the procedural world knows: colour, shape, motion,
background, speed. Synonyms share a concept ("crimson" is red, "leaps" is hop), so a word never seen in training means
what its concept means. A slot that the caption leaves open gets its own learned "unspecified" embedding, and the model
chooses. Words that are not known are reported by name, never ignored in silence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from longvid.models.vocabulary import CONCEPTS, FILLERS, PHRASES, WORDS

SLOTS = tuple(CONCEPTS)


@dataclass(frozen=True, slots=True)
class PromptReport:
    """How a caption was read.

    Attributes:
        concepts: slot -> concept, only the slots that the caption fills.
        unknown: words that are in no list, in order.
        unused: known words that lost against an earlier word of the same slot ("a red blue ball": blue).
    """

    concepts: dict[str, str]
    unknown: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def open_slots(self) -> tuple[str, ...]:
        return tuple(s for s in SLOTS if s not in self.concepts)

    def message(self) -> str:
        """One line for the user, empty when everything was understood."""
        parts = []
        if self.unknown:
            parts.append("words the embedded model does not know: " + ", ".join(self.unknown))
        if self.unused:
            parts.append("a second choice that was not used: " + ", ".join(self.unused))
        if "shape" in self.open_slots:
            parts.append("no subject named (one of " + ", ".join(CONCEPTS["shape"]) + "): the model picks one")
        return "; ".join(parts)


def read_caption(prompt: str) -> PromptReport:
    """Read a caption into concepts.

    A colour belongs to the subject when it stands before it or when no subject follows; a colour that stands right
    before a background word ("green hills", "blue sky") describes that background and is not the subject's.
    """
    text = prompt.lower()
    tokens = re.findall(r"[a-z]+(?:-[a-z]+)*", text)
    tokens = [part for token in tokens for part in ([token] if token in WORDS else token.split("-"))]
    concepts: dict[str, str] = {}
    unknown: list[str] = []
    unused: list[str] = []
    i = 0
    while i < len(tokens):
        phrase = next((n for n in (4, 3, 2) if " ".join(tokens[i : i + n]) in PHRASES and i + n <= len(tokens)), 0)
        word = " ".join(tokens[i : i + phrase]) if phrase else tokens[i]
        i += max(phrase, 1)
        found = PHRASES.get(word) if phrase else WORDS.get(word)
        if found is None:
            if word not in FILLERS and word not in unknown:
                unknown.append(word)
            continue
        slot, concept = found
        if slot == "colour" and i < len(tokens):
            follower = PHRASES.get(" ".join(tokens[i : i + 2])) or WORDS.get(tokens[i])
            if follower and follower[0] == "background":
                continue
        if slot in concepts:
            if concepts[slot] != concept:
                unused.append(word)
            continue
        concepts[slot] = concept
    return PromptReport(concepts, tuple(unknown), tuple(unused))


class CaptionEncoder(ModelMixin, ConfigMixin):
    """Caption -> [B, 5, text_dim]: one embedding a slot, learned together with the diffusion model.

    The empty caption (every slot open) is the unconditional branch of classifier-free guidance.
    """

    @register_to_config
    def __init__(self, text_dim: int = 64, concepts: list[list[Any]] | None = None) -> None:
        """concepts: (slot, its concepts) pairs; a list, because a saved config sorts the keys of a mapping."""
        super().__init__()
        table = concepts or [[slot, list(values)] for slot, values in CONCEPTS.items()]
        self.register_to_config(concepts=table)
        self._rows: dict[str, dict[str | None, int]] = {}
        rows = 0
        for slot, values in table:
            # the first row of a slot: unspecified
            self._rows[slot] = {value: rows + i for i, value in enumerate([None, *values])}
            rows += 1 + len(values)
        self.embedding = nn.Embedding(rows, text_dim)

    @property
    def max_length(self) -> int:
        """Tokens of an encoded caption."""
        return len(self._rows)

    def report(self, prompt: str) -> PromptReport:
        return read_caption(prompt)

    def ids(self, concepts: list[dict[str, str]]) -> Tensor:
        """Slot -> concept dictionaries to embedding rows, int64 [B, 5]."""
        rows = [[table[filled.get(slot)] for slot, table in self._rows.items()] for filled in concepts]
        where = self.embedding.weight.device
        # Weights on "meta" are offloaded: the hook that brings them takes the rows along.
        return torch.tensor(rows, dtype=torch.long, device="cpu" if where.type == "meta" else where)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [B, 5] -> [B, 5, text_dim]."""
        return self.embedding(ids)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """Captions -> [B, 5, text_dim] in the encoder's dtype, on its device."""
        return self(self.ids([read_caption(p).concepts for p in prompts]))
