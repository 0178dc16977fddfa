"""The words that the embedded model's captions may use. Data only; longvid/models/captions.py reads it."""

from __future__ import annotations

from longvid.training.world import CHOICES

CONCEPTS: dict[str, tuple[str, ...]] = CHOICES

_SYNONYMS: dict[str, dict[str, str]] = {
    "colour": {
        "red": "red crimson scarlet ruby cherry vermilion maroon reddish",
        "orange": "orange tangerine amber apricot pumpkin orangey",
        "yellow": "yellow golden gold lemon blond mustard yellowish",
        "green": "green emerald lime olive jade mint greenish",
        "blue": "blue navy cobalt azure indigo sapphire bluish",
        "purple": "purple violet lilac lavender plum magenta mauve",
        "pink": "pink rose rosy salmon fuchsia pinkish",
        "white": "white ivory snowy pale pearl milky whitish",
    },
    "shape": {
        "ball": "ball balls sphere circle disc disk orb globe marble bubble",
        "box": "box boxes square cube block crate brick dice die package",
        "triangle": "triangle triangles pyramid wedge cone tent",
        "star": "star pentagram starfish",
        "heart": "heart hearts valentine love",
        "ring": "ring rings donut doughnut hoop torus wheel tyre tire bagel",
    },
    "motion": {
        "bounce": "bounce bounces bouncing bounced bouncy rebounds rebounding dribbles dribbling",
        "circle": "circles circling circled orbits orbiting orbit revolves revolving loops looping rotates rotating",
        "drift": "drift drifts drifting float floats floating glide glides gliding wander wanders wandering hover "
        + "hovers hovering flies flying fly sails sailing roams roaming moves moving",
        "swing": "swing swings swinging sway sways swaying pendulum dangles dangling rocks rocking",
        "hop": "hop hops hopping jump jumps jumping leap leaps leaping skip skips skipping",
    },
    "background": {
        "sky": "sky skies cloud clouds cloudy heaven heavens air",
        "sea": "sea ocean water waves wave lake waters seaside",
        "stars": "starry night stars midnight space cosmos galaxy moonlit moonlight moon",
        "sunset": "sunset dusk sundown evening twilight sunrise dawn",
        "hills": "hills hill meadow meadows grass grassy fields field valley countryside pasture grassland park",
        "desert": "desert dunes dune sand sands sandy sahara",
        "daynight": "daynight day days timelapse",
    },
    "speed": {
        "slow": "slow slowly gently lazily calmly leisurely softly sluggishly unhurriedly",
        "normal": "steadily normally regularly evenly",
        "fast": "fast quick quickly rapidly swiftly briskly hurriedly speedily wildly",
    },
}
WORDS: dict[str, tuple[str, str]] = {
    word: (slot, concept)
    for slot, concepts in _SYNONYMS.items()
    for concept, words in concepts.items()
    for word in words.split()
}
PHRASES: dict[str, tuple[str, str]] = {
    "day and night": ("background", "daynight"),
    "night and day": ("background", "daynight"),
    "time lapse": ("background", "daynight"),
    "passing days": ("background", "daynight"),
    "starry sky": ("background", "stars"),
    "night sky": ("background", "stars"),
    "starry night": ("background", "stars"),
    "starry night sky": ("background", "stars"),
    "sky full of stars": ("background", "stars"),
    "outer space": ("background", "stars"),
    "evening sky": ("background", "sunset"),
    "sunset sky": ("background", "sunset"),
    "setting sun": ("background", "sunset"),
    "cloudy sky": ("background", "sky"),
    "sand dunes": ("background", "desert"),
    "desert dunes": ("background", "desert"),
    "grassy hills": ("background", "hills"),
    "in circles": ("motion", "circle"),
    "in a circle": ("motion", "circle"),
    "in loops": ("motion", "circle"),
    "up and down": ("motion", "bounce"),
    "back and forth": ("motion", "swing"),
    "from side to side": ("motion", "swing"),
    "at normal speed": ("speed", "normal"),
}
_FILLERS = """
    the and of in on over under above below across around along through by near at with to from into out past
    behind before against beside between among amid upon is are was it its this that there while as very
    really quite one single big large little small bright dark shiny nice beautiful pretty happy lonely round
    video clip scene film shot movie picture background front side top full open wide clear calm goes going go
    keeps always forever speed pace all time then a an
    """
FILLERS: frozenset[str] = frozenset(_FILLERS.split())
