"""The block list against its dense mask."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid.kernels.blocks import BlockCSR, even_starts, uniform_starts

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(1, 9), st.integers(1, 9))


# Tokens of a latent frame: 8 x 8 pixels a latent, 2 x 2 latents a token.
P480 = (480 // 16) * (832 // 16)


@st.composite
def random_blocks(draw):
    """(BlockCSR, dense mask [M, R, K]) with ragged ends and, often, empty rows."""
    heads, rows, cols, q_block, kv_block = draw(SHAPES)
    mask = draw(st.lists(st.booleans(), min_size=heads * rows * cols, max_size=heads * rows * cols))
    mask = np.array(mask).reshape(heads, rows, cols)
    q_len = rows * q_block - draw(st.integers(0, q_block - 1))
    kv_len = cols * kv_block - draw(st.integers(0, kv_block - 1))
    return BlockCSR.from_dense(mask, uniform_starts(q_len, q_block), uniform_starts(kv_len, kv_block)), mask


def tokens(blocks: BlockCSR) -> np.ndarray:
    """The mask at token resolution, [M, L, L]."""
    mask = blocks.to_dense().reshape(blocks.mask_heads, blocks.q_blocks, blocks.kv_blocks)
    return mask.repeat(np.diff(blocks.q_starts), axis=1).repeat(np.diff(blocks.kv_starts), axis=2)


@given(random_blocks())
def test_round_trip_density_and_transpose(case):
    blocks, mask = case
    assert (blocks.to_dense().reshape(mask.shape) == mask).all()
    assert blocks.nnz == mask.sum()
    assert blocks.density == pytest.approx(tokens(blocks).mean())
    flipped = blocks.transpose().to_dense().reshape(mask.shape[0], mask.shape[2], mask.shape[1])
    assert (flipped == mask.transpose(0, 2, 1)).all()


@given(random_blocks(), st.integers(1, 6), st.integers(1, 6))
def test_tiles_cover_exactly_the_kept_tokens(case, q_tile, kv_tile):
    blocks, _ = case
    tiles = blocks.tiles(q_tile, kv_tile)
    covered = np.zeros((blocks.mask_heads, blocks.q_len, blocks.kv_len), int)
    rows = len(tiles.q_start)
    for head in range(blocks.mask_heads):
        for row in range(rows):
            for entry in range(tiles.begin[head * rows + row], tiles.end[head * rows + row]):
                q, kv = (
                    slice(tiles.q_start[row], tiles.q_stop[row]),
                    slice(tiles.kv_start[entry], tiles.kv_stop[entry]),
                )
                assert 0 < q.stop - q.start <= q_tile
                assert 0 < kv.stop - kv.start <= kv_tile
                covered[head, q, kv] += 1
        assert sorted(tiles.order[head * rows : (head + 1) * rows]) == list(range(rows))
    assert (covered == tokens(blocks)).all()
    assert tiles.full == all(tiles.kv_stop - tiles.kv_start == kv_tile)


@given(random_blocks())
def test_runs_are_maximal(case):
    blocks, _ = case
    pointer, start, stop = blocks.runs()
    mask = tokens(blocks)[:, blocks.q_starts[:-1]].reshape(-1, blocks.kv_len)
    for row, line in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
        assert start[pointer[row] : pointer[row + 1]].tolist() == edges[::2].tolist()
        assert stop[pointer[row] : pointer[row + 1]].tolist() == edges[1::2].tolist()


@given(st.integers(1, 5), st.integers(1, 60), st.integers(1, 70))
def test_even_blocks_never_straddle_frames(frames, count, block):
    starts = even_starts(frames, count, block)
    assert np.diff(starts).max() <= block
    assert set(range(0, frames * count + 1, count)) <= set(starts.tolist())
    assert len(starts) - 1 <= frames * -(-count // block)


def test_even_blocks_of_480p_are_13_times_120():
    assert set(np.diff(even_starts(3, P480, 128))) == {120}


def test_malformed_lists_are_refused():
    starts = uniform_starts(8, 4)
    pointer = np.array([0, 2, 2])
    with pytest.raises(ValueError, match=r"col_idx: must lie in 0\.\.1"):
        BlockCSR(pointer, np.array([0, 2], np.int32), starts, starts)
    with pytest.raises(ValueError, match="rise strictly inside each row"):
        BlockCSR(pointer, np.array([1, 0], np.int32), starts, starts)
    with pytest.raises(ValueError, match=r"row_ptr has 3 entries.*= 5"):
        BlockCSR(pointer, np.array([0, 1], np.int32), starts, starts, mask_heads=2)
    with pytest.raises(ValueError, match="must match the boundaries"):
        BlockCSR.from_dense(np.ones((2, 3)), starts, starts)
