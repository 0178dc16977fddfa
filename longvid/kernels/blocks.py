"""Which blocks of keys each block of queries sees, as a compact list; never as an L x L mask.

Shape letters: L tokens, M mask heads (1 when one pattern serves all heads), R query blocks, K key blocks, Z kept pairs.

            key blocks          row_ptr  [M*R + 1]   where each query block's list starts
            0 1 2 3             col_idx  [Z]         the kept key blocks, ascending inside a row
    query 0 x x . .   ->        0 2 4 7              (one mask head, three query blocks)
    block 1 . x x .             0 1 | 1 2 | 0 2 3
          2 x . x x

Block boundaries are explicit (`q_starts`, `kv_starts`), so blocks may have any size: a ragged last block, or blocks cut
so that none straddles two video frames. Everything here is numpy on the host; the kernels get `TileList`s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]


def uniform_starts(length: int, block: int) -> IntArray:
    """Boundaries of blocks of `block` tokens over `length` tokens; the last block may be shorter."""
    if length < 1 or block < 1:
        raise ValueError(f"length={length}, block={block}: both must be at least 1")
    return np.minimum(np.arange(0, length + block, block), length).astype(np.int32)[: -(-length // block) + 1]


def even_starts(frames: int, tokens: int, block: int) -> IntArray:
    """Boundaries such that every frame of `tokens` tokens is cut alone, into equal blocks of at most `block` tokens.

    1,560 tokens at block 128 become 13 blocks of 120: no block straddles two frames, none is a thin remainder. When the
    count does not divide `tokens` the last block of each frame is the shorter one.
    """
    if frames < 1 or tokens < 1 or block < 1:
        raise ValueError(f"frames={frames}, tokens={tokens}, block={block}: all must be at least 1")
    count = -(-tokens // block)
    size = -(-tokens // count)
    inside = np.minimum(np.arange(count) * size, tokens)
    starts = (np.arange(frames)[:, None] * tokens + inside).ravel()
    return np.append(starts, frames * tokens).astype(np.int32)


@dataclass(frozen=True, eq=False)
class TileList:
    """What a kernel reads: rows of at most `q_tile` queries and, for each, ranges of at most `kv_tile` keys.

    Adjacent kept blocks are merged into runs before they are cut, so 120-token blocks still fill 64-key tiles.
    Arrays are int32: `q_start`, `q_stop` [rows], `begin`, `end` [M*rows] (slices of the two below),
    `kv_start`, `kv_stop` [entries] in tokens, and `order` [M*rows]: row numbers, longest list first (load balance).
    """

    q_start: IntArray
    q_stop: IntArray
    begin: IntArray
    end: IntArray
    kv_start: IntArray
    kv_stop: IntArray
    order: IntArray
    mask_heads: int
    full: bool  # every key range is exactly kv_tile long, so the kernel needs no tail mask


@dataclass(frozen=True, eq=False)
class BlockCSR:
    """Compressed rows of a block mask; immutable. See the module's drawing. Errors: ValueError from `check()`."""

    row_ptr: NDArray[np.int64]
    col_idx: IntArray
    q_starts: IntArray
    kv_starts: IntArray
    mask_heads: int = 1
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)  # views derived once and kept

    def __post_init__(self) -> None:
        for array in (self.row_ptr, self.col_idx, self.q_starts, self.kv_starts):
            array.setflags(write=False)
        self.check()

    # -- building ---------------------------------------------------------------------------------------------------
    @classmethod
    def from_pairs(cls, rows: Any, cols: Any, q_starts: Any, kv_starts: Any, mask_heads: int = 1) -> BlockCSR:
        """From (row, column) pairs in any order, repeats allowed. Rows run over mask_heads * query blocks."""
        width = len(kv_starts) - 1
        keys = np.asarray(rows, dtype=np.int64) * width + np.asarray(cols, dtype=np.int64)
        keys.sort()  # np.unique hashes before it sorts: eight times slower at a million tokens
        keys = keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]
        row = keys // width
        counts = np.bincount(row, minlength=mask_heads * (len(q_starts) - 1))
        row_ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(
            row_ptr,
            (keys % width).astype(np.int32),
            np.array(q_starts, dtype=np.int32),
            np.array(kv_starts, dtype=np.int32),
            mask_heads,
        )

    @classmethod
    def from_dense(cls, mask: Any, q_starts: Any, kv_starts: Any) -> BlockCSR:
        """From a 0/1 block mask [R, K], or [M, R, K] with one pattern a head."""
        mask = np.asarray(mask).astype(bool)
        if mask.ndim not in (2, 3):
            raise ValueError(f"mask.shape={mask.shape}: must be [query blocks, key blocks] or [heads, ...]")
        mask = mask.reshape(-1, mask.shape[-2], mask.shape[-1])
        if mask.shape[1:] != (len(q_starts) - 1, len(kv_starts) - 1):
            raise ValueError(
                f"mask.shape={mask.shape}: must match the boundaries, {len(q_starts) - 1} x {len(kv_starts) - 1} blocks"
            )
        rows, cols = np.nonzero(mask.reshape(-1, mask.shape[-1]))
        return cls.from_pairs(rows, cols, q_starts, kv_starts, mask.shape[0])

    @classmethod
    def dense(cls, q_starts: Any, kv_starts: Any) -> BlockCSR:
        """Every query block sees every key block."""
        return cls.from_dense(np.ones((len(q_starts) - 1, len(kv_starts) - 1), bool), q_starts, kv_starts)

    # -- facts ------------------------------------------------------------------------------------------------------
    @property
    def q_blocks(self) -> int:
        return len(self.q_starts) - 1

    @property
    def kv_blocks(self) -> int:
        return len(self.kv_starts) - 1

    @property
    def q_len(self) -> int:
        """Query tokens covered."""
        return int(self.q_starts[-1])

    @property
    def kv_len(self) -> int:
        """Key tokens covered."""
        return int(self.kv_starts[-1])

    @property
    def nnz(self) -> int:
        """Kept block pairs."""
        return len(self.col_idx)

    @property
    def nbytes(self) -> int:
        """Bytes of the list itself, without cached tile lists."""
        return sum(a.nbytes for a in (self.row_ptr, self.col_idx, self.q_starts, self.kv_starts))

    @property
    def density(self) -> float:
        """Kept fraction of the query-key token pairs (ragged blocks count for what they hold)."""
        if "density" not in self.memo:
            q_size = np.tile(np.diff(self.q_starts), self.mask_heads).astype(np.int64)
            kv_size = np.diff(self.kv_starts).astype(np.int64)
            kept = np.concatenate([[0], np.cumsum(kv_size[self.col_idx])])
            pairs = int(((kept[self.row_ptr[1:]] - kept[self.row_ptr[:-1]]) * q_size).sum())
            self.memo["density"] = pairs / (self.mask_heads * self.q_len * self.kv_len)
        return float(self.memo["density"])

    def check(self) -> None:
        """Raise ValueError if the list is not a well-formed block mask."""
        for name, starts in (("q_starts", self.q_starts), ("kv_starts", self.kv_starts)):
            if len(starts) < 2 or starts[0] != 0 or (np.diff(starts) < 1).any():
                raise ValueError(f"{name}: must rise strictly from 0")
        if len(self.row_ptr) != self.mask_heads * self.q_blocks + 1:
            raise ValueError(
                f"row_ptr has {len(self.row_ptr)} entries: must be mask_heads * query blocks + 1 = "
                f"{self.mask_heads * self.q_blocks + 1}"
            )
        if self.row_ptr[0] != 0 or self.row_ptr[-1] != self.nnz or (np.diff(self.row_ptr) < 0).any():
            raise ValueError("row_ptr: must rise from 0 to len(col_idx)")
        if self.nnz and (self.col_idx.min() < 0 or self.col_idx.max() >= self.kv_blocks):
            raise ValueError(f"col_idx: must lie in 0..{self.kv_blocks - 1}")
        inside = np.ones(max(self.nnz - 1, 0), bool)
        cuts = self.row_ptr[1:-1]
        inside[cuts[(cuts > 0) & (cuts < self.nnz)] - 1] = False
        if (np.diff(self.col_idx)[inside] <= 0).any():
            raise ValueError("col_idx: must rise strictly inside each row")

    def to_dense(self) -> NDArray[np.bool_]:
        """The block mask, [R, K] or [M, R, K]. For tests and pictures; quadratic in the number of blocks."""
        mask = np.zeros((self.mask_heads * self.q_blocks, self.kv_blocks), bool)
        mask[np.repeat(np.arange(len(mask)), np.diff(self.row_ptr)), self.col_idx] = True
        return mask if self.mask_heads == 1 else mask.reshape(self.mask_heads, self.q_blocks, self.kv_blocks)

    # -- other views ------------------------------------------------------------------------------------------------
    def transpose(self) -> BlockCSR:
        """The same pairs listed per key block: what dK and dV need."""
        if "transpose" not in self.memo:
            row = np.repeat(np.arange(self.mask_heads * self.q_blocks), np.diff(self.row_ptr))
            head, query = np.divmod(row, self.q_blocks)
            self.memo["transpose"] = BlockCSR.from_pairs(
                head * self.kv_blocks + self.col_idx, query, self.kv_starts, self.q_starts, self.mask_heads
            )
        return self.memo["transpose"]  # type: ignore[no-any-return]

    def runs(self) -> tuple[NDArray[np.int64], IntArray, IntArray]:
        """(ptr [M*R+1], start [n], stop [n]): each row's kept keys as maximal ranges of tokens."""
        if "runs" not in self.memo:
            first = np.ones(self.nnz, bool)
            first[1:] = np.diff(self.col_idx) != 1
            first[self.row_ptr[:-1][np.diff(self.row_ptr) > 0]] = True
            opening = np.flatnonzero(first)
            closing = np.append(opening[1:], self.nnz)[: len(opening)] - 1
            ptr = np.concatenate([[0], np.cumsum(first)])[self.row_ptr]
            start = self.kv_starts[self.col_idx[opening]]
            stop = self.kv_starts[self.col_idx[closing] + 1]
            self.memo["runs"] = (ptr, start, stop)
        return self.memo["runs"]  # type: ignore[no-any-return]

    def longest(self) -> tuple[int, int]:
        """(tokens of the longest query block, of the longest kept run of keys)."""
        _, start, stop = self.runs()
        return int(np.diff(self.q_starts).max()), int((stop - start).max(initial=0))

    def tiles(self, q_tile: int, kv_tile: int) -> TileList:
        """Cut rows to at most `q_tile` queries and runs to at most `kv_tile` keys; cached."""
        if (q_tile, kv_tile) not in self.memo:
            self.memo[q_tile, kv_tile] = self._cut(q_tile, kv_tile)
        return self.memo[q_tile, kv_tile]  # type: ignore[no-any-return]

    def _cut(self, q_tile: int, kv_tile: int) -> TileList:
        run_ptr, run_start, run_stop = self.runs()
        count = -(-(run_stop - run_start) // kv_tile)  # tiles in each run
        tile_ptr = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        nth = np.arange(tile_ptr[-1]) - np.repeat(tile_ptr[:-1], count)
        start = (np.repeat(run_start, count) + nth * kv_tile).astype(np.int32)
        stop = np.minimum(start + kv_tile, np.repeat(run_stop, count)).astype(np.int32)
        list_ptr = tile_ptr[run_ptr]  # [M*R+1]

        pieces = -(-np.diff(self.q_starts) // q_tile)  # sub-rows share their block's list
        block = np.repeat(np.arange(self.q_blocks), pieces)
        nth = np.arange(len(block)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        q_start = (self.q_starts[block] + nth * q_tile).astype(np.int32)
        q_stop = np.minimum(q_start + q_tile, self.q_starts[block + 1]).astype(np.int32)
        row = (np.arange(self.mask_heads)[:, None] * self.q_blocks + block).ravel()
        begin, end = list_ptr[row].astype(np.int32), list_ptr[row + 1].astype(np.int32)
        length = (end - begin).reshape(self.mask_heads, -1)
        order = np.argsort(-length, axis=1, kind="stable").astype(np.int32).ravel()
        full = bool((stop - start == kv_tile).all())
        return TileList(q_start, q_stop, begin, end, start, stop, order, self.mask_heads, full)

    def tensors(self, q_tile: int, kv_tile: int, device: Any) -> dict[str, Any]:
        """`tiles(...)` as int32 tensors on `device`, cached there: the host list is uploaded once.

        `kv_start` and `kv_stop` get one spare entry, so that a kernel may always read the next one ahead.
        """
        import torch  # this module stays importable (and testable on integers) without torch

        key = (q_tile, kv_tile, str(device))
        if key not in self.memo:
            tiles = self.tiles(q_tile, kv_tile)
            names: Sequence[str] = ("q_start", "q_stop", "begin", "end", "kv_start", "kv_stop", "order")
            arrays = {name: getattr(tiles, name) for name in names}
            for name in ("kv_start", "kv_stop"):
                arrays[name] = np.append(arrays[name], np.int32(0))
            self.memo[key] = {
                name: torch.tensor(array, dtype=torch.int32, device=device) for name, array in arrays.items()
            }
        return self.memo[key]  # type: ignore[no-any-return]
