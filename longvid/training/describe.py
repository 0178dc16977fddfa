"""English captions of the world's scenes, in its vocabulary's synonyms, and the scenes read back from captions."""

from __future__ import annotations

import numpy as np

from longvid.errors import InputError
from longvid.models.captions import read_caption
from longvid.prompts import parse_prompt
from longvid.training import world

_COLOUR = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "cobalt"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "white": ("white", "snowy"),
}
_SHAPE = {
    "ball": ("ball", "sphere"),
    "box": ("box", "cube"),
    "triangle": ("triangle", "pyramid"),
    "star": ("star",),
    "heart": ("heart",),
    "ring": ("ring", "donut"),
}
_MOTION = {
    "bounce": ("bounces", "is bouncing"),
    "circle": ("circles", "is circling"),
    "drift": ("drifts", "floats", "is gliding"),
    "swing": ("swings", "sways"),
    "hop": ("hops", "jumps", "is leaping"),
}
_SPEED = {"slow": ("slowly", "gently"), "normal": ("",), "fast": ("quickly", "rapidly")}
_BACKGROUND = {
    "sky": ("in the cloudy sky", "among the clouds"),
    "sea": ("over the sea", "above the ocean"),
    "stars": ("in the starry night", "in the night sky"),
    "sunset": ("at sunset", "in the evening"),
    "hills": ("over green hills", "above the meadow"),
    "desert": ("in the desert", "over the dunes"),
    "daynight": ("through day and night",),
}


def describe(scene: world.Scene, rng: np.random.Generator) -> str:
    """One caption of ``scene``, such as "a crimson donut swings slowly over the dunes"."""
    words = [
        str(rng.choice(table[getattr(scene, slot)]))
        for slot, table in (
            ("colour", _COLOUR),
            ("shape", _SHAPE),
            ("motion", _MOTION),
            ("speed", _SPEED),
            ("background", _BACKGROUND),
        )
    ]
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *(w for w in words if w)])


def held_out_prompts(count: int, seed: int = 0) -> list[tuple[str, world.Scene]]:
    """``count`` captions of scenes that no training clip shows, even over backgrounds and shapes, fixed by ``seed``."""
    rng = np.random.default_rng([seed, 0x4E1D])
    prompts: list[tuple[str, world.Scene]] = []
    while len(prompts) < count:
        scene = world.random_scene(rng, held_out=True)
        place = len(prompts)
        if scene.background != world.BACKGROUNDS[place % 7] or scene.shape != world.SHAPES[place % 6]:
            continue
        prompts.append((describe(scene, rng), scene))
    return prompts


def understood(text: str, scene: world.Scene) -> bool:
    """Whether the vocabulary reads a caption back as the scene it was made from (normal speed may go unsaid)."""
    report = read_caption(text)
    concepts = {"speed": "normal"} | report.concepts
    return not report.unknown and concepts == {name: getattr(scene, name) for name in world.CHOICES}


def scene_of(prompt: str) -> world.Scene:
    """The scene that a caption asks for, the inverse of :func:`describe`; normal speed may go unsaid.

    A schedule of one part is a caption ("a red ball bounces in the desert[10s]"). Raises InputError, with the words to
    choose from, for a caption that leaves colour, shape, motion or background open, names one of them twice, or has
    words that are not the world's; and for a schedule of several parts.
    """
    parts = parse_prompt(prompt).parts
    if len(parts) != 1:
        raise InputError(f"world={prompt!r}: {len(parts)} prompts in turn; the oracle judges a video of one caption")
    report = read_caption(parts[0].text)
    concepts = {"speed": "normal"} | report.concepts
    wrong = [
        *(f"names no {slot} ({', '.join(choices)})" for slot, choices in world.CHOICES.items() if slot not in concepts),
        *(["has words that are not the world's: " + ", ".join(report.unknown)] if report.unknown else []),
        *(["names a second choice: " + ", ".join(report.unused)] if report.unused else []),
    ]
    if wrong:
        raise InputError(
            f"world={prompt!r}: {'; '.join(wrong)}. A caption of the world is such as "
            "'a red ball bounces slowly over the sea'"
        )
    return world.Scene(**concepts)
