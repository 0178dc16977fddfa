"""Training layouts: which frames a sample holds, which may see which, and at which noise level each one is.

Every layout is a sequence of frames: clean context first, noisy targets after it.

    teacher forcing     [c0 c1 c2 | n0 n1 n2]   noisy block i sees clean blocks before it, and itself
    diffusion forcing   [n0 n1 n2]              noisy block i sees noisy blocks before it, and itself
    rolling window      [c0 c1 | n2 n3 n4]      noisy blocks see all of the context and each other, noise rising

Teacher forcing trains chunk-wise rollout on clean history, all blocks of a clip in one pass. Diffusion forcing draws
each block's noise level by itself, so that history may be at any level (arXiv 2407.01392; block by block with causal
attention: CausVid, arXiv 2412.07772; the two compared: Self Forcing, arXiv 2506.08009). The rolling window trains
Rolling Forcing's and FIFO's joint denoising. The mixture that made the embedded model is rolling windows and teacher
forcing whose context is noised a little in a third of the samples, which makes it robust to its own errors.

Shapes: B batch, K frames of the sequence, blocks of ``block`` latent frames. sigma in [0, 1], 1 is noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longvid.config import one_of

#: Share of the samples whose clean context is noised a little in the embedded model's mixture.
NOISED_SHARE = 0.35


@dataclass(frozen=True, slots=True)
class Layout:
    """One batch's plan.

    Attributes:
        name: what the log calls it, such as "forcing9" of nine frames.
        source: [K] index of the clip's latent frame that each frame of the sequence shows.
        mask: [K, K] bool, query frame may see key frame.
        sigma: [B, K] noise level of every frame of the sequence.
        loss: [K] bool, frames whose velocity is trained.
        span: latent frames of the clip that are used.
    """

    name: str
    source: np.ndarray
    mask: np.ndarray
    sigma: np.ndarray
    loss: np.ndarray
    span: int


def draw_sigma(
    rng: np.random.Generator, size: tuple[int, ...], *, mean: float = 0.7, deviation: float = 1.2
) -> np.ndarray:
    """Logit-normal noise levels leaning to the noisy side, where shape is decided, with 15 % uniform ones."""
    sigma = 1 / (1 + np.exp(-rng.normal(mean, deviation, size)))
    uniform = rng.uniform(0, 1, size)
    return np.where(rng.uniform(0, 1, size) < 0.15, uniform, sigma)


def context_sigma(rng: np.random.Generator, batch: int, blocks: int, *, share: float, largest: float) -> np.ndarray:
    """[B, blocks] noise of the clean copy: zero, but in a ``share`` of the samples uniform in [0, largest] a block."""
    noised = rng.uniform(0, 1, (batch, 1)) < share
    return np.where(noised, rng.uniform(0, largest, (batch, blocks)), 0.0)


def teacher_forcing(
    rng: np.random.Generator,
    batch: int,
    blocks: int,
    block: int = 3,
    *,
    noised_share: float = NOISED_SHARE,
    largest: float = 0.5,
) -> Layout:
    """[clean copy | noisy copy] of ``blocks`` blocks; the last clean block has no reader and is left out."""
    index = np.arange(blocks * block)
    of = index // block
    context = index[: (blocks - 1) * block]
    source = np.concatenate([context, index])
    group = np.concatenate([of[: len(context)], of])
    noisy = np.arange(len(source)) >= len(context)
    clean_key = ~noisy[None, :]
    sees_clean = clean_key & (group[None, :] < group[:, None])
    own = (noisy[:, None] == noisy[None, :]) & (group[None, :] == group[:, None])
    low = context_sigma(rng, batch, blocks - 1, share=noised_share, largest=largest)
    high = draw_sigma(rng, (batch, blocks))
    sigma = np.concatenate([low.repeat(block, 1), high.repeat(block, 1)], 1)
    return Layout(f"forcing{blocks * block}", source, sees_clean | own, sigma, noisy, blocks * block)


def diffusion_forcing(rng: np.random.Generator, batch: int, blocks: int, block: int = 3) -> Layout:
    """``blocks`` noisy blocks, each at a level of its own, uniform in [0, 1], and all of them trained.

    Uniform as published, not leaning to noise: a block must learn to read a past that is nearly clean, too.
    """
    index = np.arange(blocks * block)
    group = index // block
    sigma = rng.uniform(0, 1, (batch, blocks)).repeat(block, 1)
    mask = group[None, :] <= group[:, None]
    return Layout(f"diffusion{len(index)}", index, mask, sigma, np.full(len(index), True), len(index))


def rolling(
    rng: np.random.Generator,
    batch: int,
    context: int,
    window: int,
    block: int = 3,
    *,
    noised_share: float = NOISED_SHARE,
    largest: float = 0.5,
) -> Layout:
    """``context`` clean blocks, then ``window`` blocks denoised together at rising noise.

    Half of the samples rise block by block (Rolling Forcing), a quarter frame by frame (FIFO), a quarter are level
    (the warm-up of both, and plain bidirectional sampling).
    """
    index = np.arange((context + window) * block)
    group = index // block
    noisy = group >= context
    mask = np.where(noisy[:, None], True, group[None, :] <= group[:, None])
    low = context_sigma(rng, batch, context, share=noised_share, largest=largest).repeat(block, 1)
    frames = window * block
    level = draw_sigma(rng, (batch, 1)).repeat(frames, 1)
    shift = rng.uniform(1.0, 5.0, (batch, 1))
    phase = rng.uniform(0, 1, (batch, 1))

    def shifted(u: np.ndarray) -> np.ndarray:
        u = np.clip(u, 0.0, 1.0)
        return shift * u / (1 + (shift - 1) * u)

    by_block = shifted((np.arange(frames)[None] // block + 1 - phase * 0.999) / window)
    by_frame = shifted((np.arange(frames)[None] + 1 - phase * 0.999) / frames)
    kind = rng.uniform(0, 1, (batch, 1))
    high = np.where(kind < 0.5, by_block, np.where(kind < 0.75, by_frame, level))
    return Layout("rolling", index, mask, np.concatenate([low, high], 1), noisy, (context + window) * block)


#: (context blocks, window blocks) of the rolling layout and how often each is drawn
_ROLLING = (((0, 5), 0.35), ((1, 4), 0.20), ((2, 3), 0.20), ((3, 2), 0.05), ((2, 5), 0.20))
#: blocks of a forcing layout and how often each is drawn: short clips are cheap, long ones teach the window
_FORCING = ((3, 0.80), (5, 0.12), (7, 0.08))

#: What a base can be trained on: the embedded model's mixture, or one of the two standard ways alone.
LAYOUTS = ("mixed", "teacher-forcing", "diffusion-forcing")


def draw_layout(
    kind: str,
    shared: np.random.Generator,
    own: np.random.Generator,
    *,
    frames: int = 210,
    rolling_share: float = 0.28,
    block: int = 3,
) -> Layout:
    """Draw one batch's layout of a kind of ``LAYOUTS``, at most ``frames`` frames in all (but one sample at least).

    The few choices give four sequence lengths (5, 7, 9 and 13 blocks; 3, 5 and 7 of diffusion forcing), so that a
    compiled forward has four shapes.

    Args:
        shared: decides the shapes, which are the same on every process.
        own: draws this process's noise levels.

    Raises:
        UnknownNameError: ``kind`` is not one of ``LAYOUTS``.
    """
    one_of("layout", kind, LAYOUTS)
    if kind == "mixed" and shared.uniform() < rolling_share:
        pick = shared.choice(len(_ROLLING), p=[p for _, p in _ROLLING])
        context, window = _ROLLING[pick][0]
        return rolling(own, max(1, frames // ((context + window) * block)), context, window, block)
    blocks = int(shared.choice([b for b, _ in _FORCING], p=[p for _, p in _FORCING]))
    if kind == "diffusion-forcing":
        return diffusion_forcing(own, max(1, frames // (blocks * block)), blocks, block)
    batch = max(1, frames // ((2 * blocks - 1) * block))
    return teacher_forcing(own, batch, blocks, block, noised_share=NOISED_SHARE if kind == "mixed" else 0.0)


def largest_batch(kind: str, frames: int, block: int = 3) -> int:
    """Samples of the largest batch that :func:`draw_layout` draws: that of the shortest sequence."""
    blocks = _FORCING[0][0]
    return max(1, frames // ((blocks if kind == "diffusion-forcing" else 2 * blocks - 1) * block))
