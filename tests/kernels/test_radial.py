"""The radial mask against published masks and against a loop that anyone believes."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from longvid.kernels.blocks import even_starts
from longvid.kernels.radial import (
    RadialSpec,
    frame_width,
    kept_key_frames,
    radial_blocks,
    rollout_blocks,
    thinning,
)

GOLDENS = Path(__file__).parent.parent / "goldens" / "radial"
CASES = [case for case in json.loads((GOLDENS / "cases.json").read_text()) if case["kind"] == "radial_mask"]


# Tokens of a latent frame: 8 x 8 pixels a latent, 2 x 2 latents a token.
P480, P720, P768 = (480 // 16) * (832 // 16), (720 // 16) * (1280 // 16), (768 // 16) * (1280 // 16)


@pytest.mark.parametrize("case", CASES, ids=[case["tensor"] for case in CASES])
def test_equals_the_published_mask(case):
    make = {"wan": RadialSpec.wan, "hunyuan": RadialSpec.hunyuan}[case["model"]]
    spec = make(decay=case["decay"], block=case["block"], half_near=case.get("commit") == "af371ca")
    tokens = case["tokens_per_frame"]
    if "key_frames" in case:
        blocks = rollout_blocks(case["query_frames"], case["key_frames"], tokens, spec)
    else:
        blocks = radial_blocks(case["frames"], tokens, spec, total=case["total"])
    assert blocks.nnz == case["nnz"]
    assert (blocks.to_dense() == load_file(GOLDENS / "radial_masks.safetensors")[case["tensor"]].astype(bool)).all()


def naive_pair(spec: RadialSpec, query: int, key: int, tokens: int) -> np.ndarray:
    """Token mask [T, T] of one frame pair, written out from the paper's rule."""
    width = frame_width(query, key, tokens, spec)
    raster = np.arange(tokens)
    return abs(raster[:, None] - raster) <= (-1 if width is None else width)


def naive_shrink(pair: np.ndarray, q_edges, k_edges, rows) -> np.ndarray:
    """Column majority, block by block and column by column."""
    keep = np.zeros((len(q_edges) - 1, len(k_edges) - 1), bool)
    for p in range(len(q_edges) - 1):
        for q in range(len(k_edges) - 1):
            part = pair[max(q_edges[p], 0) : max(q_edges[p + 1], 0), max(k_edges[q], 0) : max(k_edges[q + 1], 0)]
            covered = part.sum(axis=0)
            keep[p, q] = 5 * (3 * covered > rows[p]).sum() > 3 * (covered > 0).sum()
    return keep


SPECS = st.builds(
    RadialSpec,
    decay=st.sampled_from([0.1, 0.5, 0.95, 1.0, 1.7]),
    block=st.integers(1, 12),
    floor=st.none() | st.integers(0, 9),
    split_threshold=st.sampled_from([1, 4, 16, 128]),
    sink_frames=st.integers(0, 2),
    half_near=st.booleans(),
    anchor=st.sampled_from(["query", "key"]),
)


@settings(deadline=None, max_examples=150)
@given(SPECS, st.integers(1, 9), st.integers(1, 30), st.integers(0, 17))
def test_square_mask_equals_the_loop_on_any_grid(spec, frames, tokens, extra):
    blocks = radial_blocks(frames, tokens, spec, total=frames * tokens + extra)
    block, n = spec.block, -(-tokens // spec.block)
    truth = np.zeros((blocks.q_blocks + n, blocks.q_blocks + n), bool)
    for i in range(frames):
        for j in range(frames):
            q_edges = np.arange(n + 1) * block - i * tokens % block
            k_edges = np.arange(n + 1) * block - j * tokens % block
            row, col = i * tokens // block, j * tokens // block
            pair = naive_shrink(naive_pair(spec, i, j, tokens), q_edges, k_edges, [block] * n)
            truth[row : row + n, col : col + n] |= pair
    truth = truth[: blocks.q_blocks, : blocks.q_blocks]
    truth[frames * tokens // block :] = True
    truth[:, frames * tokens // block :] = True
    assert (blocks.to_dense() == truth).all()


@settings(deadline=None, max_examples=100)
@given(SPECS, st.integers(1, 25), st.integers(3, 40), st.integers(1, 3), st.booleans(), st.randoms())
def test_rollout_mask_equals_the_loop_in_any_slot_order(spec, tokens, now, chunk, dense_chunk, random):
    query = list(range(now, now + chunk))
    keys = sorted(random.sample(range(now), 3)) + query + [-1]
    random.shuffle(keys)  # a ring buffer's slots, one of them empty
    blocks = rollout_blocks(query, keys, tokens, spec, dense_chunk=dense_chunk)
    edges = even_starts(1, tokens, spec.block)
    truth = np.block(
        [
            [
                naive_shrink(np.zeros((tokens, tokens)), edges, edges, np.diff(edges))
                if k < 0
                else naive_shrink(np.ones((tokens, tokens)), edges, edges, np.diff(edges))
                if dense_chunk and k in query
                else naive_shrink(naive_pair(spec, q, k, tokens), edges, edges, np.diff(edges))
                for k in keys
            ]
            for q in query
        ]
    )
    assert (blocks.to_dense() == truth).all()


def test_rollout_rows_are_rows_of_the_square_mask_when_blocks_divide_frames():
    spec, frames, tokens = RadialSpec.wan(block=16), 40, 64
    square = radial_blocks(frames, tokens, spec).to_dense()
    for now in (0, 5, 37):
        rows = rollout_blocks(range(now, now + 3), range(frames), tokens, spec).to_dense()
        assert (rows == square[now * 4 : (now + 3) * 4]).all()


@settings(deadline=None)
@given(st.integers(1, 4096), st.integers(0, 2), st.integers(1, 200), st.integers(-1, 60))
def test_key_anchored_sets_are_nested(tokens, sinks, now, window):
    """What is masked now is masked for ever: the cache may forget it."""
    spec = RadialSpec(anchor="key", sink_frames=sinks)
    today = set(kept_key_frames(now, tokens, spec, window=window))
    tomorrow = set(kept_key_frames(now + 1, tokens, spec, window=window))
    assert tomorrow - {now} <= today


def test_query_anchored_sets_are_not_nested():
    spec = RadialSpec(anchor="query")
    assert not set(kept_key_frames(40, P480, spec)) >= set(kept_key_frames(41, P480, spec)) - {40}


def test_kept_frames_grow_with_the_logarithm_of_the_history():
    spec = RadialSpec(anchor="key")
    sizes = [len(kept_key_frames(now, P480, spec)) for now in (64, 128, 256, 512, 1024, 2048)]
    assert len(set(np.diff(sizes))) == 1, sizes  # each doubling costs the same number of frames
    assert sizes[-1] < 80


def test_thinning_never_falls_with_distance():
    for tokens in (1, 64, P480, P768):
        splits = [thinning(d, tokens, RadialSpec()) for d in range(300)]
        assert splits == sorted(splits)
        assert all(s & (s - 1) == 0 for s in splits)


@pytest.mark.parametrize(
    ("frames", "tokens", "text", "sparsity"),
    # The project's own figures: 18 x 3840 from its generator, the rest the paper's table of length extension
    # (73.6 %, 80.8 %, 88.3 %; HunyuanVideo's include the sink of the paper's text and 256 text tokens).
    [(18, P768, 0, 0.5690809), (41, P768, 0, 0.7361), (65, P720, 256, 0.8077), (129, P720, 256, 0.8829)],
    ids=["wan-69f", "wan-161f", "hunyuan-253f", "hunyuan-509f"],
)
def test_published_sparsities(frames, tokens, text, sparsity):
    blocks = radial_blocks(frames, tokens, RadialSpec.wan(), total=frames * tokens + text)
    assert 1 - blocks.nnz / blocks.q_blocks**2 == pytest.approx(sparsity, abs=6e-5)


def test_cached_by_shape_and_by_spec():
    spec = RadialSpec.wan(block=16)
    assert radial_blocks(4, 64, spec) is radial_blocks(4, 64, RadialSpec.wan(block=16))
    assert radial_blocks(4, 64, spec).nnz != radial_blocks(4, 64, RadialSpec.hunyuan(block=16)).nnz


def test_errors_name_argument_value_and_rule():
    with pytest.raises(ValueError, match="decay=0: must be positive"):
        RadialSpec(decay=0)
    with pytest.raises(ValueError, match="anchor='frame': must be 'query' or 'key'"):
        RadialSpec(anchor="frame")
    with pytest.raises(ValueError, match=r"total=10: must be at least frames \* tokens = 12"):
        radial_blocks(3, 4, RadialSpec(), total=10)
