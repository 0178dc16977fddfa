"""Radial attention's mask: attention energy decays with distance in time, so far frames are read in a narrower band.

Radial Attention (Li et al. 2025, arXiv 2506.19852), section 4, as its released code computes it. T tokens in a frame,
d = |query frame - key frame|, P the smallest power of two above T (2^bit_length(T)):

    band       d <= 1: the whole frame.  else |c - r| <= max(P / 2^bit_length(d) * decay, floor); r, c: raster positions
    thinning   once P / 2^bit_length(d) < 128, a pair of frames is kept only when d is a multiple of 128 / that width
    sink       the first frame is always seen in full (Wan; HunyuanVideo's convention has no sink)
    blocks     a block is kept by column majority: a column is *high* if more than a third of the block's rows see it;
               the block stays if more than 60 % of its non-empty columns are high

The paper writes floor(log2 d); the code counts bits, one octave narrower, from P >= T, and never goes under a block.
We follow the code. Pure integers and numpy: no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longvid.kernels.blocks import BlockCSR, even_starts, uniform_starts


@dataclass(frozen=True, slots=True, kw_only=True)
class RadialSpec:
    """The numbers of the rule. Frozen and hashable: masks are cached by (spec, shape), never on a class."""

    decay: float = 1.0
    """Band width factor: the paper's decay; smaller is sparser, without effect once bands reach `floor`."""
    block: int = 128
    """Tokens in an attention block (at most; frame-aligned layouts use equal blocks no larger)."""
    floor: int | None = None
    """Least half width of a band, in tokens. None: `block`."""
    split_threshold: int = 128
    """Frames are thinned once the undecayed band is narrower than this (a literal 128 in the released code)."""
    sink_frames: int = 1
    """Leading key frames that are always seen in full."""
    half_near: bool = False
    """Half width T//2 at distance 1 instead of the whole frame: the released Wan code until 2025-11-11."""
    anchor: Literal["query", "key"] = "query"
    """Thin by the distance ("query", as published) or by the key's own number ("key": kept sets are nested in time, so
    a frame once dropped is never needed again and its cache can be freed)."""

    def __post_init__(self) -> None:
        if not self.decay > 0:
            raise ValueError(f"decay={self.decay}: must be positive; 1.0 is the paper's default")
        if self.block < 1:
            raise ValueError(f"block={self.block}: must be at least 1; 64 and 128 have tuned kernels")
        if self.floor is not None and self.floor < 0:
            raise ValueError(f"floor={self.floor}: must be 0 or more, or None for the block size")
        if self.split_threshold < 1:
            raise ValueError(f"split_threshold={self.split_threshold}: must be at least 1; 128 as published")
        if self.sink_frames < 0:
            raise ValueError(f"sink_frames={self.sink_frames}: must be 0 or more")
        if self.anchor not in ("query", "key"):
            raise ValueError(f"anchor={self.anchor!r}: must be 'query' or 'key'")

    @classmethod
    def for_grid(cls, tokens: int, **changes: Any) -> RadialSpec:
        """The published numbers, scaled to frames of `tokens` tokens where those are fewer than published for.

        At 1,560 tokens and more this is the default. Below, threshold and block keep their share of the frame, so that
        frames are thinned from a distance of 16 on, as at 480p, and not at once.
        """
        share = max(1, (1 << int(tokens).bit_length()) // 16)
        numbers = {"split_threshold": min(128, share), "block": min(128, max(16, share))}
        return replace(cls(), **(numbers | changes))

    @classmethod
    def wan(cls, **changes: Any) -> RadialSpec:
        """Wan's convention: the first frame is a sink."""
        return replace(cls(), **changes)

    @classmethod
    def hunyuan(cls, **changes: Any) -> RadialSpec:
        """HunyuanVideo's convention: no sink (text tokens are global instead)."""
        return replace(cls(sink_frames=0), **changes)


def frame_stride(distance: int, dense: int) -> int:
    """Keep one frame in this many at `distance`, when nearer than `dense` frames all are kept; 1, 2, 4... an octave."""
    return max(1, (1 << int(distance).bit_length()) // dense)


def thinning(distance: int, tokens: int, spec: RadialSpec) -> int:
    """`frame_stride` on a grid of `tokens` tokens: all frames stay until the undecayed band is under the threshold.

    A power of two that never falls with distance (for thresholds that are one): this nests key-anchored kept sets.
    """
    octave, power = int(distance).bit_length(), 1 << int(tokens).bit_length()
    return max(1, (spec.split_threshold << octave) // power)


def half_width(distance: int, tokens: int, spec: RadialSpec) -> int:
    """Half width of the band, in tokens, between two frames `distance` apart; `tokens` sees the whole frame."""
    if distance == 0 or (distance == 1 and not spec.half_near):
        return tokens
    if distance == 1:
        return tokens // 2
    power = 1 << int(tokens).bit_length()
    floor = spec.block if spec.floor is None else spec.floor
    return int(max(power / 2 ** int(distance).bit_length() * spec.decay, floor))


def frame_width(query: int, key: int, tokens: int, spec: RadialSpec) -> int | None:
    """Half width of the band that frame `query` sees in frame `key` (absolute numbers), None when it sees nothing."""
    if key < spec.sink_frames:
        return tokens
    distance = abs(query - key)
    split = thinning(distance, tokens, spec)
    if (distance if spec.anchor == "query" else key) % split:
        return None
    return half_width(distance, tokens, spec)


def kept_key_frames(query: int, tokens: int, spec: RadialSpec, *, window: int = -1) -> tuple[int, ...]:
    """Past frames that a query frame (or, key-anchored, any later one) can see, ascending; `query` itself excluded.

    `window` (frames, -1 = all) bounds the distance; sinks stay. With `anchor="key"` the sets are nested:
    kept(t+1) minus {t} is inside kept(t), and their size grows with the logarithm of t.
    """
    first = 0 if window < 0 else max(0, query - window)
    sinks = list(range(min(spec.sink_frames, query, first)))
    seen = [k for k in range(first, query) if frame_width(query, k, tokens, spec) is not None]
    return tuple(sinks + seen)


@lru_cache(maxsize=4096)
def _pattern(
    q_edges: tuple[int, ...], k_edges: tuple[int, ...], rows: tuple[int, ...], tokens: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Kept (query block, key block) of one frame pair. Edges are block boundaries relative to the frame's first token
    and may stick out of it; `rows` is the number of rows each query block counts (the majority's denominator).

    Rows [low, high) of a block cover column c min(high, c+width+1) - max(low, c-width) times: a trapezoid in c, so the
    columns covered at least n times are one interval and each block's share of it needs no loop over tokens.
    """
    low, high = np.maximum(q_edges[:-1], 0)[:, None], np.minimum(q_edges[1:], tokens)[:, None]
    cut = np.clip(k_edges, 0, tokens)

    def columns(needed: NDArray[np.int64]) -> NDArray[np.int64]:
        """[query blocks, key blocks]: columns that at least `needed` of the block's rows see."""
        first = np.where(np.minimum(high - low, 2 * width + 1) >= needed, low + needed - width - 1, tokens)
        share = np.minimum(high - needed + width + 1, cut[1:]) - np.maximum(first, cut[:-1])
        return np.asarray(np.maximum(share, 0))

    over_a_third = np.asarray(rows)[:, None] // 3 + 1  # least n with 3 n > rows
    rows_kept, cols_kept = np.nonzero(5 * columns(over_a_third) > 3 * columns(np.ones_like(over_a_third)))
    return rows_kept.astype(np.int64), cols_kept.astype(np.int64)


def _uniform_edges(frame: int, tokens: int, block: int) -> tuple[tuple[int, ...], int]:
    """(edges relative to the frame, first block) of the blocks the released code gives a frame: ceil(T/B) of them, so
    a frame that touches one more loses its last (the neighbour's pair usually has it)."""
    first, offset = divmod(frame * tokens, block)
    return tuple(range(-offset, -offset + block * -(-tokens // block) + 1, block)), first


def _kept_distances(frames: int, tokens: int, spec: RadialSpec) -> Iterator[tuple[int, int]]:
    """(distance, thinning) of the distances that any pair of frames keeps; skips whole octaves' dropped ones."""
    distance = 0
    while distance < frames:
        split = thinning(distance, tokens, spec)
        if spec.anchor == "key" or distance % split == 0:
            yield distance, split
            distance += 1
        else:
            end = 1 << distance.bit_length()  # the split holds until the octave ends
            distance = min(-(-distance // split) * split, end)


@lru_cache(maxsize=32)
def radial_blocks(frames: int, tokens: int, spec: RadialSpec, *, total: int | None = None) -> BlockCSR:
    """The published square mask over `frames` x `tokens` video tokens, in blocks of `spec.block`; cached by arguments.

    `total` (default: the video) is the sequence length with what follows the video: text, or padding counted as such.
    Block rows and columns from the video's last whole block on are dense, as published. The last block may be ragged:
    no padding is asked for. Work and memory follow the number of kept blocks, not L x L.
    Raises ValueError on sizes under 1 or `total` shorter than the video.
    """
    if frames < 1 or tokens < 1:
        raise ValueError(f"frames={frames}, tokens={tokens}: both must be at least 1")
    video = frames * tokens
    total = video if total is None else total
    if total < video:
        raise ValueError(f"total={total}: must be at least frames * tokens = {video}")
    block = spec.block
    starts = uniform_starts(total, block)
    count = len(starts) - 1
    period = block // np.gcd(tokens, block)  # frames after which block offsets repeat
    edges = [_uniform_edges(f, tokens, block)[0] for f in range(min(period, frames))]
    n = len(edges[0]) - 1
    rows_in_block = (block,) * n
    row_parts: list[NDArray[np.int64]] = []
    col_parts: list[NDArray[np.int64]] = []

    def add(query: NDArray[np.int64], key: NDArray[np.int64], width: int) -> None:
        """Append the blocks of frame pairs that share both block offsets."""
        if len(query):
            p, q = _pattern(edges[query[0] % period], edges[key[0] % period], rows_in_block, tokens, width)
            row_parts.append((query[:, None] * tokens // block + p).ravel())
            col_parts.append((key[:, None] * tokens // block + q).ravel())

    sinks = min(spec.sink_frames, frames)
    for residue in range(min(period, frames)):
        query = np.arange(residue, frames, period)
        for sink in range(sinks):
            add(query, np.full_like(query, sink), tokens)
    for distance, split in _kept_distances(frames, tokens, spec):
        width = half_width(distance, tokens, spec)
        for residue in range(min(period, frames)):
            query = np.arange(residue, frames, period)
            for key in (query - distance, query + distance) if distance else (query,):
                keep = (key >= sinks) & (key < frames)
                if spec.anchor == "key":
                    keep &= key % split == 0
                add(query[keep], key[keep], width)
    rows, cols = np.concatenate(row_parts), np.concatenate(col_parts)
    inside = (rows < count) & (cols < count)  # a cut frame never reaches past the end, a rounded-up one may
    tail = np.arange(video // block, count)
    every = np.arange(count)
    rows = np.concatenate([rows[inside], np.repeat(tail, count), np.tile(every, len(tail))])
    cols = np.concatenate([cols[inside], np.tile(every, len(tail)), np.repeat(tail, count)])
    return BlockCSR.from_pairs(rows, cols, starts, starts)


def rollout_blocks(
    query_frames: Sequence[int],
    key_frames: Sequence[int],
    tokens: int,
    spec: RadialSpec,
    *,
    dense_chunk: bool = False,
) -> BlockCSR:
    """Radial mask of an autoregressive step: queries are the current frames, keys are whatever the cache holds.

    Both lists give absolute frame numbers, in the order their tokens lie in memory. Attention does not care about the
    order of keys, so `key_frames` may be a ring buffer's slots as they come; -1 marks an empty slot, never read.
    Blocks are frame-aligned (`even_starts`), so a pair's pattern depends on its distance alone and where the block size
    divides `tokens` the result is a row slice of `radial_blocks`. `dense_chunk` lets the current frames see each other
    in full at any distance (for models trained dense inside a chunk). Cached by arguments.
    """
    return _rollout_blocks(tuple(query_frames), tuple(key_frames), tokens, spec, dense_chunk)


@lru_cache(maxsize=256)
def _rollout_blocks(
    query_frames: tuple[int, ...], key_frames: tuple[int, ...], tokens: int, spec: RadialSpec, dense_chunk: bool
) -> BlockCSR:
    if not query_frames or not key_frames:
        raise ValueError("query_frames and key_frames: must not be empty")
    if min(query_frames) < 0:
        raise ValueError(f"query_frames={query_frames}: frame numbers must be 0 or more")
    edges = tuple(int(e) for e in even_starts(1, tokens, spec.block))
    sizes = tuple(b - a for a, b in pairwise(edges))
    n = len(sizes)
    rows: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    cols: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for i, query in enumerate(query_frames):
        for j, key in enumerate(key_frames):
            if key < 0:
                continue
            width = tokens if dense_chunk and key in query_frames else frame_width(query, key, tokens, spec)
            if width is not None:
                p, q = _pattern(edges, edges, sizes, tokens, width)
                rows.append(i * n + p)
                cols.append(j * n + q)
    return BlockCSR.from_pairs(
        np.concatenate(rows),
        np.concatenate(cols),
        even_starts(len(query_frames), tokens, spec.block),
        even_starts(len(key_frames), tokens, spec.block),
    )
