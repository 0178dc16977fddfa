"""The subject of finished frames, kept in the shared frame cache."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longvid.cache.policies.bank import BankPolicy
from longvid.models.subject_bank import SubjectBank
from longvid.models.window_denoiser import WindowDenoiser

BATCH, HEADS, DIM, ROWS, COLUMNS = 2, 2, 12, 2, 3
TOKENS = ROWS * COLUMNS


@given(st.integers(0, 3), st.integers(1, 4), st.integers(1, 12))
def test_bank_frames_lie_right_before_the_window(sink: int, recent: int, finished: int) -> None:
    policy = BankPolicy(sink=sink, recent=recent)
    resident: tuple[int, ...] = ()
    for frame in range(finished):
        plan = policy.plan(resident, frame, 1, 5, {})
        assert plan.denoise.own_positions == (0, 1, 2, 3, 4)
        assert plan.denoise.positions == tuple(range(-len(plan.denoise.frames), 0))
        assert plan.denoise.frames == tuple(f for f in resident if f not in plan.evict)
        resident = (*plan.denoise.frames, frame)
        assert resident[:sink] == tuple(range(min(sink, frame + 1)))
        assert len(resident) <= policy.capacity


def keys_of(frame: int, layer: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * frame + layer)
    return torch.randn(BATCH, TOKENS, HEADS, DIM, generator=generator)


def mask_of(frame: int) -> torch.Tensor:
    mask = torch.rand(BATCH, TOKENS, generator=torch.Generator().manual_seed(frame)) > 0.5
    mask[:, frame % TOKENS] = True
    return mask


def make_bank(make_tiny_transformer: Any, **more: Any) -> tuple[SubjectBank, WindowDenoiser]:
    denoiser = WindowDenoiser(make_tiny_transformer(heads=HEADS, head_dim=DIM))
    sizes = {"sink": 1, "recent": 2, "batch": BATCH, "height": 2 * ROWS, "width": 2 * COLUMNS, "limit": 1000} | more
    return SubjectBank(denoiser, (0, 1), **sizes), denoiser


def commit(bank: SubjectBank, frame: int) -> None:
    keys, values = ({layer: sign * keys_of(frame, layer) for layer in (0, 1)} for sign in (1, -1))
    bank.commit(frame, keys, values, mask_of(frame), mask_of(frame).float())


@pytest.mark.parametrize("finished", [1, 2, 3, 4, 9])
def test_tokens_are_the_masked_rows_of_remembered_frames_rotated_to_before_the_window(
    make_tiny_transformer: Any, finished: int
) -> None:
    bank, denoiser = make_bank(make_tiny_transformer)
    for frame in range(finished):
        commit(bank, frame)
    remembered = sorted({0} | set(range(max(0, finished - 2), finished)))
    rotary = denoiser.rotary(2 * ROWS, 2 * COLUMNS)
    tokens = bank.tokens(5)
    for layer in (0, 1):
        for row in range(BATCH):
            expected = set()
            for position, frame in zip(range(-len(remembered), 0), remembered, strict=True):
                rotated = rotary.rotate(keys_of(frame, layer), (position,))[row][mask_of(frame)[row]]
                values = -keys_of(frame, layer)[row][mask_of(frame)[row]]
                expected |= {
                    (round(float(k), 4), round(float(v), 4)) for k, v in zip(rotated[:, 0, 0], values[:, 0, 0])
                }
            valid = tokens[layer].valid[row]
            found = zip(tokens[layer].key[row, valid, 0, 0], tokens[layer].value[row, valid, 0, 0], strict=True)
            assert {(round(float(k), 4), round(float(v), 4)) for k, v in found} == expected


def test_an_empty_bank_and_a_bank_without_a_subject_give_nothing(make_tiny_transformer: Any) -> None:
    bank, _ = make_bank(make_tiny_transformer)
    assert bank.tokens(5) == {}
    nothing = torch.zeros(BATCH, TOKENS, dtype=torch.bool)
    both = {layer: keys_of(0, layer) for layer in (0, 1)}
    bank.commit(0, both, both, nothing, nothing.float())
    assert bank.tokens(5) == {}


def test_no_more_than_the_limit(make_tiny_transformer: Any) -> None:
    bank, _ = make_bank(make_tiny_transformer, limit=3)
    for frame in range(4):
        commit(bank, frame)
    assert bank.tokens(5)[0].key.shape[1] == 3


def test_a_saved_bank_gives_the_same_tokens(make_tiny_transformer: Any) -> None:
    bank, _ = make_bank(make_tiny_transformer)
    for frame in range(6):
        commit(bank, frame)
    again, _ = make_bank(make_tiny_transformer)
    again.load_state_dict(*bank.state_dict())
    for one in (bank, again):
        commit(one, 6)
    for layer in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(bank.tokens(5)[layer], again.tokens(5)[layer], strict=True))


def test_a_cleared_bank_starts_anew(make_tiny_transformer: Any) -> None:
    bank, _ = make_bank(make_tiny_transformer)
    for frame in range(3):
        commit(bank, frame)
    bank.clear()
    assert bank.tokens(5) == {}
    commit(bank, 3)
    assert bank.cache.resident == (3,)
    assert bank.tokens(5)[0].valid.sum() == mask_of(3).sum()
