"""The procedural world that the embedded model is trained on: caption and seed in, video out.

Every frame is a closed-form function of ``(scene, seed, time)``: any frame can be rendered directly, the video never
ends, and it does not repeat (all periods are incommensurate). A scene fixes what the caption says: colour, shape,
motion, background, speed. The seed alone fixes the *identity* that no caption mentions: the subject's size, pattern and
shade, where sun, moon, clouds, stars and hills stand, and every phase. That identity is what a long rollout can lose.

Shapes: T frames, H height, W width. Positions and radii are fractions of the frame's side, y pointing down.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

SIZE = 128
FPS = 16

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.10, 0.12),
    "orange": (1.00, 0.52, 0.05),
    "yellow": (1.00, 0.88, 0.12),
    "green": (0.10, 0.62, 0.22),
    "blue": (0.12, 0.25, 0.90),
    "purple": (0.52, 0.14, 0.72),
    "pink": (1.00, 0.50, 0.74),
    "white": (0.97, 0.97, 0.97),
}
SHAPES = ("ball", "box", "triangle", "star", "heart", "ring")
MOTIONS = ("bounce", "circle", "drift", "swing", "hop")
BACKGROUNDS = ("sky", "sea", "stars", "sunset", "hills", "desert", "daynight")
SPEEDS = ("slow", "normal", "fast")
PATTERNS = ("plain", "band", "spot")
_SPEED_FACTOR = {"slow": 0.6, "normal": 1.0, "fast": 1.6}
DAY_SECONDS = 16.0
GROUND = 0.80  # where bouncing and hopping subjects touch down (lower edge)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a caption fixes. Every field is one concept of the caption vocabulary."""

    colour: str
    shape: str
    motion: str
    background: str
    speed: str = "normal"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}")


CHOICES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "motion": MOTIONS,
    "background": BACKGROUNDS,
    "speed": SPEEDS,
}
assert tuple(CHOICES) == tuple(f.name for f in fields(Scene))


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the seed alone fixes. ``layout`` holds 24 uniform numbers that place the background's furniture."""

    radius: float
    pattern: str
    rgb: tuple[float, float, float]
    phase: tuple[float, float, float]
    direction: float
    layout: tuple[float, ...]


def identity(scene: Scene, seed: int) -> Identity:
    """Draw the identity of ``seed``; the caption changes only the base colour that the shade jitters around."""
    rng = np.random.default_rng([seed, 0x10D6])
    base = np.array(COLOURS[scene.colour])
    shade = 1.0 + rng.uniform(-0.10, 0.10)
    tint = rng.uniform(-0.04, 0.04, 3)
    rgb = tuple(float(v) for v in np.clip(base * shade + tint, 0.0, 1.0))
    return Identity(
        radius=float(rng.uniform(0.165, 0.225)),
        pattern=PATTERNS[int(rng.integers(len(PATTERNS)))],
        rgb=rgb,  # type: ignore[arg-type]
        phase=tuple(float(v) for v in rng.uniform(0, 1, 3)),  # type: ignore[arg-type]
        direction=float(rng.choice([-1.0, 1.0])),
        layout=tuple(float(v) for v in rng.uniform(0, 1, 24)),
    )


def _triangle(u: np.ndarray) -> np.ndarray:
    """Periodic ramp of period 1: 0 at integers, 1 at half-integers, softened at the turns."""
    return 0.5 - np.arcsin(0.97 * np.cos(2 * np.pi * u)) / (2 * np.arcsin(0.97))


def trajectory(scene: Scene, ident: Identity, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre x [T], centre y [T] and tilt in radians [T] of the subject at the given times [T]."""
    t = np.asarray(seconds, dtype=np.float64) * _SPEED_FACTOR[scene.speed]
    p0, p1, p2 = ident.phase
    r, d = ident.radius, ident.direction
    lo, hi = r + 0.03, 1 - r - 0.03
    if scene.motion == "bounce":
        x = lo + (hi - lo) * _triangle(d * t / 5.3 + p0)
        height = 0.36 * (0.85 + 0.15 * np.sin(2 * np.pi * (t / 11.7 + p2)))
        u = np.mod(t / 1.45 + p1, 1.0)
        y = GROUND - r * 0.8 - height * 4 * u * (1 - u)
    elif scene.motion == "circle":
        wobble = 1 + 0.12 * np.sin(2 * np.pi * (t / 9.1 + p2))
        angle = 2 * np.pi * (d * t / 3.9 + p0)
        reach = (0.5 - r - 0.04) * 0.85 * wobble
        x = 0.5 + reach * np.cos(angle)
        y = 0.5 + reach * 0.85 * np.sin(angle)
    elif scene.motion == "drift":
        x = 0.5 + (0.5 - lo) * np.sin(2 * np.pi * (d * t / 8.3 + p0))
        y = 0.5 + (0.5 - lo) * 0.8 * np.sin(2 * np.pi * (t / 11.9 + p1))
    elif scene.motion == "swing":
        swing = (0.62 + 0.10 * np.sin(2 * np.pi * (t / 13.1 + p2))) * np.sin(2 * np.pi * (t / 2.9 + p0))
        length = 0.52
        x = 0.5 + length * np.sin(swing) * 0.95
        y = 0.20 + length * np.cos(swing) - 0.02
        return np.clip(x, lo, hi), np.clip(y, lo, hi), -0.35 * swing
    else:  # hop: half of each beat in the air, half on the ground
        beat = t / 1.25 + p1
        u = np.mod(beat, 1.0)
        air = np.clip(u / 0.62, 0.0, 1.0)
        done = np.floor(beat) + air * air * (3 - 2 * air)
        x = lo + (hi - lo) * _triangle(d * done * 0.137 + p0)
        y = GROUND - r * 0.8 - 0.20 * 4 * air * (1 - air)
    tilt = 0.16 * np.sin(2 * np.pi * (t / 2.3 + p2))
    return np.clip(x, lo, hi), np.clip(y, lo * 0.9, hi), tilt


def _signed_distance(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Signed distance (negative inside), in frame fractions; exact for ball, box and ring, close for the others."""
    if shape == "ball":
        return np.hypot(x, y) - r * 0.95
    if shape == "box":
        dx, dy = np.abs(x) - 0.80 * r, np.abs(y) - 0.80 * r
        return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.72 * r) - 0.28 * r
    if shape == "triangle":
        k = np.sqrt(3.0)
        yy = y - 0.18 * r
        return np.maximum(np.abs(x) * k / 2 - (-yy) * -0.5, yy) - 0.54 * r
    if shape == "star":
        rho, phi = np.hypot(x, y), np.arctan2(x, -y)
        sector = 2 * np.pi / 5
        a = np.abs(np.mod(phi + sector / 2, sector) - sector / 2)
        outer, inner = 1.08 * r, 0.50 * r
        px, py = rho * np.cos(a), rho * np.sin(a)
        qx, qy = inner * np.cos(sector / 2), inner * np.sin(sector / 2)
        ex, ey = qx - outer, qy
        return ((px - outer) * ey - py * ex) / np.hypot(ex, ey)
    # heart: two discs over a square standing on its corner
    ax, yy = np.abs(x), y + 0.05 * r
    lobe = np.hypot(ax - 0.42 * r, yy + 0.30 * r) - 0.56 * r
    tip = (ax + yy - 0.98 * r) / np.sqrt(2.0)
    body = np.maximum(tip, np.maximum(-yy - 0.42 * r, ax - 0.97 * r))
    return np.minimum(lobe, body)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return axis[None, None, :], axis[None, :, None]


def _cover(distance: np.ndarray, soft: float) -> np.ndarray:
    """Anti-aliased coverage of the region where ``distance`` is negative."""
    return np.clip(0.5 - distance / soft, 0.0, 1.0, dtype=np.float32)


def _mix(image: np.ndarray, alpha: np.ndarray, rgb: np.ndarray | tuple[float, ...]) -> np.ndarray:
    colour = np.asarray(rgb, dtype=np.float32)
    return image + alpha[..., None].astype(np.float32) * (colour - image)


def _vertical(y: np.ndarray, stops: list[tuple[float, tuple[float, float, float]]]) -> np.ndarray:
    """Vertical colour gradient [1, H, 1, 3] through (height, rgb) stops."""
    at = [s for s, _ in stops]
    channels = [np.interp(y[0, :, 0], at, [c[i] for _, c in stops]) for i in range(3)]
    return np.stack(channels, -1).astype(np.float32)[None, :, None, :]


def _disc(image: np.ndarray, x, y, cx, cy, radius: float, rgb, glow: float = 0.0) -> np.ndarray:
    dist = np.hypot(x - cx, y - cy) - radius
    if glow:
        image = _mix(image, 0.45 * np.exp(-np.clip(dist, 0, None) / glow), rgb)
    return _mix(image, _cover(dist, 0.02), rgb)


def _ridge(x: np.ndarray, shift: np.ndarray, base: float, amp: float, u: float, v: float) -> np.ndarray:
    """Skyline height [T, 1, W]: two sines whose phases are the seed's and whose shift scrolls with time [T]."""
    z = x + shift.astype(np.float32)[:, None, None]
    return base - amp * (0.6 * np.sin(2 * np.pi * (z * 0.9 + u)) + 0.4 * np.sin(2 * np.pi * (z * 1.7 + v)))


def _background(scene: Scene, ident: Identity, t: np.ndarray, size: int) -> np.ndarray:
    x, y = _grid(size)
    ones = np.ones((len(t), size, size, 1), dtype=np.float32)
    u = ident.layout
    tt = t.astype(np.float32)[:, None, None]
    kind = scene.background
    if kind == "sky":
        image = _vertical(y, [(0, (0.25, 0.52, 0.93)), (1, (0.72, 0.87, 1.0))]) * ones
        for i in range(3):
            cx = np.mod(u[3 * i] + 0.018 * (0.7 + 0.6 * u[3 * i + 2]) * tt, 1.4) - 0.2
            cy = 0.12 + 0.27 * i + 0.10 * u[3 * i + 1]
            w = 0.15 + 0.08 * u[3 * i + 2]
            q = ((x - cx) / w) ** 2 + ((y - cy) / 0.055) ** 2
            puff = np.exp(-q * np.sqrt(q))
            image = _mix(image, 0.92 * puff, (1, 1, 1))
    elif kind == "sea":
        horizon = 0.36 + 0.14 * u[0]
        image = _vertical(y, [(0, (0.55, 0.78, 0.98)), (1, (0.88, 0.95, 1.0))]) * ones
        image = _disc(image, x, y, 0.12 + 0.76 * u[1], 0.10 + 0.12 * u[2], 0.065, (1.0, 0.95, 0.70))
        depth = np.clip((y - horizon) / (1 - horizon), 0, 1)
        wave = np.sin(2 * np.pi * (5 * np.sqrt(depth + 0.02) - 0.25 * tt + 0.25 * np.sin(2 * np.pi * (x + u[3]))))
        water = np.stack([0.05 + 0.05 * wave + 0 * x, 0.32 + 0.07 * wave + 0 * x, 0.62 + 0.08 * wave + 0 * x], -1)
        image = image + _cover(horizon - y, 0.015)[..., None] * (water.astype(np.float32) - image)
    elif kind == "stars":
        image = _vertical(y, [(0, (0.03, 0.03, 0.13)), (1, (0.14, 0.10, 0.32))]) * ones
        for i in range(9):
            twinkle = 0.75 + 0.25 * np.sin(2 * np.pi * (0.23 * tt + u[i + 9]))
            sx, sy = u[i], np.mod(u[i + 12] + 0.11 * i, 1.0)
            glow = np.exp(-(((x - sx) ** 2 + (y - sy) ** 2) / 0.014**2))
            image = _mix(image, twinkle * glow, (1.0, 1.0, 0.88))
        mx, my = 0.13 + 0.74 * u[21], 0.14 + 0.25 * u[22]
        crescent = np.maximum(np.hypot(x - mx, y - my) - 0.085, 0.075 - np.hypot(x - mx - 0.045, y - my + 0.02))
        image = _mix(image, _cover(crescent, 0.015) * np.ones_like(tt), (0.98, 0.96, 0.80))
    elif kind == "sunset":
        horizon = 0.60 + 0.12 * u[0]
        image = (
            _vertical(y, [(0, (0.32, 0.14, 0.42)), (horizon * 0.6, (0.85, 0.35, 0.35)), (horizon, (1.0, 0.72, 0.35))])
            * ones
        )
        sx = 0.18 + 0.64 * u[1]
        image = _disc(image, x, y, sx, horizon - 0.06 - 0.08 * u[2], 0.10, (1.0, 0.90, 0.45), glow=0.06)
        ripple = np.sin(2 * np.pi * (9 * (y - horizon) - 0.45 * tt))
        shine = np.exp(-(((x - sx) / 0.14) ** 2)) * (0.55 + 0.35 * ripple)
        water = np.stack([0.30 + 0.55 * shine, 0.12 + 0.42 * shine, 0.30 + 0.10 * shine], -1).astype(np.float32)
        image = image + _cover(horizon - y, 0.015)[..., None] * (water - image)
    elif kind == "hills":
        image = _vertical(y, [(0, (0.45, 0.72, 0.98)), (0.7, (0.85, 0.94, 1.0))]) * ones
        image = _disc(image, x, y, 0.12 + 0.76 * u[4], 0.12 + 0.10 * u[5], 0.075, (1.0, 0.93, 0.45))
        lift = 0.05 * (u[6] - 0.5)
        far = _ridge(x, 0.020 * t + u[2], 0.56, 0.055, u[0], u[1])
        near = _ridge(x, 0.045 * t + u[3], 0.74, 0.050, u[7], u[8])
        image = _mix(image, _cover(far - y, 0.015), (0.42 + lift, 0.70 + lift, 0.36))
        image = _mix(image, _cover(near - y, 0.015), (0.20 + lift, 0.52 + lift, 0.20))
    elif kind == "desert":
        image = _vertical(y, [(0, (0.98, 0.80, 0.52)), (0.7, (1.0, 0.93, 0.76))]) * ones
        image = _disc(image, x, y, 0.12 + 0.76 * u[4], 0.13 + 0.12 * u[5], 0.09, (1.0, 0.99, 0.90), glow=0.05)
        far = _ridge(x, 0.016 * t + u[2], 0.60, 0.045, u[0], u[1])
        near = _ridge(x, 0.040 * t + u[3], 0.77, 0.055, u[7], u[8])
        image = _mix(image, _cover(far - y, 0.015), (0.90, 0.66, 0.38))
        image = _mix(image, _cover(near - y, 0.015), (0.78, 0.50, 0.24))
    else:  # daynight: one day is DAY_SECONDS
        hour = 2 * np.pi * (t / DAY_SECONDS + u[0])
        light = (0.5 + 0.5 * np.tanh(2.0 * np.sin(hour))).astype(np.float32)[:, None, None, None]
        day = _vertical(y, [(0, (0.35, 0.62, 0.97)), (1, (0.80, 0.92, 1.0))])
        night = _vertical(y, [(0, (0.04, 0.04, 0.16)), (1, (0.16, 0.16, 0.36))])
        image = (night + light * (day - night)) * ones
        for rgb, turn, radius in (((1.0, 0.88, 0.30), 0.0, 0.085), ((0.93, 0.94, 0.98), np.pi, 0.070)):
            a = hour + turn
            cx = (0.5 - 0.38 * np.cos(a)).astype(np.float32)[:, None, None]
            cy = (0.62 - 0.48 * np.sin(a)).astype(np.float32)[:, None, None]
            image = _disc(image, x, y, cx, cy, radius, rgb)
        ground = _ridge(x, 0 * t + u[2], 0.84, 0.030, u[0], u[1])
        dark = (0.10, 0.16, 0.14)
        lit = np.array(dark, np.float32) + light[:, 0, 0, :] * (
            np.array((0.36, 0.58, 0.34), np.float32) - np.array(dark, np.float32)
        )
        image = image + _cover(ground - y, 0.015)[..., None] * (lit[:, None, None, :] - image)
    return np.broadcast_to(image, (len(t), size, size, 3))


def _subject(image: np.ndarray, scene: Scene, ident: Identity, t: np.ndarray, size: int) -> np.ndarray:
    x, y = _grid(size)
    cx, cy, tilt = trajectory(scene, ident, t)
    c, s = np.cos(tilt).astype(np.float32)[:, None, None], np.sin(tilt).astype(np.float32)[:, None, None]
    dx, dy = x - cx.astype(np.float32)[:, None, None], y - cy.astype(np.float32)[:, None, None]
    px, py = c * dx + s * dy, c * dy - s * dx
    dist = _signed_distance(scene.shape, px, py, ident.radius)
    soft, edge = 0.016, 0.026
    rgb = np.array(ident.rgb, np.float32)
    image = _mix(image, _cover(dist - edge * 0.35, soft), 0.22 * rgb)
    fill = _cover(dist + edge * 0.65, soft)
    image = _mix(image, fill, rgb)
    if ident.pattern == "band":
        image = _mix(image, 0.75 * fill * _cover(np.abs(py) - 0.16 * ident.radius, soft), 0.45 * rgb + 0.10)
    elif ident.pattern == "spot":
        spot = np.hypot(px + 0.30 * ident.radius, py + 0.30 * ident.radius) - 0.24 * ident.radius
        image = _mix(image, 0.85 * fill * _cover(spot, soft), 0.35 * rgb + 0.65)
    return image


def render(
    scene: Scene, seed: int, *, start: int = 0, frames: int = 81, size: int = SIZE, fps: float = FPS, subjects: int = 1
) -> np.ndarray:
    """Render frames ``start .. start + frames`` of a scene: uint8 [T, H, W, 3].

    ``subjects`` other than 1 exists for the probe, which must learn to count: 0 leaves the subject out, 2 adds a
    second one of the same scene with another identity.
    """
    if frames < 1 or size < 16:
        raise ValueError(f"frames={frames}, size={size}: needs at least 1 frame and 16 pixels")
    t = (start + np.arange(frames)) / fps
    ident = identity(scene, seed)
    image = _background(scene, ident, t, size)
    for i in range(subjects):
        image = _subject(image, scene, ident if i == 0 else identity(scene, seed + 7919 * i), t, size)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def random_scene(rng: np.random.Generator, *, held_out: bool | None = None) -> Scene:
    """Draw a scene uniformly; ``held_out`` True or False restricts it to that side of :func:`is_held_out`."""
    while True:
        scene = Scene(**{name: str(rng.choice(options)) for name, options in CHOICES.items()})
        if held_out is None or is_held_out(scene) == held_out:
            return scene


def is_held_out(scene: Scene) -> bool:
    """One combination in ten is never trained on: a fixed linear code of the five choices, even over each of them."""
    code = sum(w * CHOICES[n].index(getattr(scene, n)) for n, w in zip(CHOICES, (1, 3, 7, 9, 11), strict=True))
    return code % 10 == 4
