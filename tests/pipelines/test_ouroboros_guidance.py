"""The subject's memory, its loss and what is guided."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longvid.pipelines.guidance import SelfRecurrentGuidance, SubjectMemory, subject_vectors, unit_rms
from longvid.pipelines.schedules.fifo import FifoSchedule
from longvid.pipelines.subject import SubjectAttention, SubjectTracker


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masks(rows: int, frames: int, tokens: int, seed: int = 9) -> torch.Tensor:
    mask = normal(rows, frames, tokens, seed=seed) > 0
    mask[..., 0] = True
    return mask


def test_subject_vector_is_the_mean_under_the_mask() -> None:
    key, mask = normal(2, 12, 5), masks(2, 3, 4)
    mask[1, 2] = False
    mean, valid = subject_vectors(key, mask)
    for row in range(2):
        for frame in range(3):
            rows = key.reshape(2, 3, 4, 5)[row, frame][mask[row, frame]]
            expected = rows.mean(0) if len(rows) else torch.zeros(5)
            torch.testing.assert_close(mean[row, frame], expected)
    assert valid.tolist() == [[True, True, True], [True, True, False]]


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_memory_is_a_moving_average(decay: float) -> None:
    memory, mask = SubjectMemory(decay), masks(1, 2, 3)
    first, second = normal(1, 6, 4), normal(1, 6, 4, seed=1)
    memory.update({0: first}, mask)
    before = memory.vectors[0].clone()
    memory.update({0: second}, mask)
    now = subject_vectors(second, mask)[0].mean(1)
    torch.testing.assert_close(memory.vectors[0], decay * before + (1 - decay) * now)


def test_a_sample_without_a_subject_keeps_its_memory() -> None:
    memory, mask = SubjectMemory(0.5), masks(2, 2, 3)
    memory.update({0: normal(2, 6, 4)}, mask)
    before = memory.vectors[0].clone()
    mask[0] = False
    memory.update({0: normal(2, 6, 4, seed=1)}, mask)
    assert torch.equal(memory.vectors[0][0], before[0])
    assert not torch.equal(memory.vectors[0][1], before[1])


def test_memory_does_not_start_before_every_sample_has_a_subject() -> None:
    memory, mask = SubjectMemory(0.5), masks(2, 2, 3)
    mask[0] = False
    memory.update({0: normal(2, 6, 4)}, mask)
    assert not memory.vectors


def test_loss_is_zero_at_the_memory_and_its_gradient_points_away_from_it() -> None:
    memory, mask = SubjectMemory(0.9), masks(1, 1, 3)
    key = normal(1, 3, 4)
    memory.update({0: key}, mask)
    assert memory.loss({0: key}, mask, {0: 1.0}).item() == pytest.approx(0.0, abs=1e-10)
    moved = (key + normal(1, 3, 4, seed=1)).requires_grad_()
    loss = memory.loss({0: moved}, mask, {0: 2.0})
    (grad,) = torch.autograd.grad(loss.sum(), moved)
    with torch.no_grad():
        assert memory.loss({0: moved - 0.1 * grad}, mask, {0: 2.0}) < loss
    assert (grad[0][~mask[0, 0]] == 0).all()


def test_rows_of_several_windows_meet_their_own_sample_s_memory() -> None:
    memory, mask = SubjectMemory(0.9), masks(2, 2, 3)
    memory.update({0: normal(2, 6, 4)}, mask)
    keys, every = normal(6, 6, 4, seed=2), masks(6, 2, 3, seed=3)
    together = memory.loss({0: keys}, every, {0: 1.0})
    for window in range(3):
        rows = slice(2 * window, 2 * window + 2)
        torch.testing.assert_close(memory.loss({0: keys[rows]}, every[rows], {0: 1.0}), together[rows])


def test_a_loss_before_any_memory_is_refused() -> None:
    with pytest.raises(RuntimeError, match="layer 3: nothing is remembered"):
        SubjectMemory(0.9).loss({3: normal(1, 3, 4)}, masks(1, 1, 3), {3: 1.0})


def test_memory_survives_saving() -> None:
    memory = SubjectMemory(0.9)
    memory.update({2: normal(1, 3, 4), 5: normal(1, 3, 4, seed=1)}, masks(1, 1, 3))
    again = SubjectMemory(0.9)
    again.load_state_dict(memory.state_dict())
    assert all(torch.equal(again.vectors[layer], memory.vectors[layer]) for layer in (2, 5))


def test_gradients_are_brought_to_one_size_frame_by_frame() -> None:
    score = normal(2, 3, 4, 5, 5) * torch.tensor([1e-6, 1.0, 1e6, 0.0])[:, None, None]
    scaled = unit_rms(score)
    rms = scaled.pow(2).mean(dim=(1, 3, 4)).sqrt()
    torch.testing.assert_close(rms[:, 1:3], torch.ones(2, 2))
    assert (scaled[:, :, 3] == 0).all()
    assert scaled.isfinite().all()


@given(st.integers(0, 40), st.integers(1, 5), st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_guided_windows(pass_index: int, every: int, sigmas: list[float]) -> None:
    guidance = SelfRecurrentGuidance(strength=0.03, every=every)
    expected = pass_index % every == 0 and any(0.2 < s < 0.9 for s in sigmas)
    assert guidance.wants(pass_index, sigmas) == expected
    assert not SelfRecurrentGuidance().wants(pass_index, sigmas)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": -1.0}, "guidance.strength=-1.0"),
        ({"strength": float("nan")}, "guidance.strength=nan"),
        ({"decay": 1.5}, "guidance.decay=1.5"),
        ({"min_sigma": 0.9, "max_sigma": 0.2}, "must rise"),
        ({"every": 0}, "guidance.every=0"),
        ({"form": "rough"}, "guidance.form='rough'"),
        ({"layers": (1, 2), "weights": (1.0,)}, "one for each of the 2"),
    ],
    ids=["negative", "nan", "decay", "sigmas", "every", "form", "weights"],
)
def test_guidance_that_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfRecurrentGuidance(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "bost"}, "subject_attention='bost'"),
        ({"mode": "bridge", "sink": 0, "recent": 0}, "1 frame or more"),
        ({"limit": 0}, "limit=0"),
        ({"max_sigma": 0.0}, "max_sigma=0.0"),
    ],
    ids=["mode", "empty-bank", "limit", "sigma"],
)
def test_subject_attention_that_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SubjectAttention(**change)


def test_a_mask_moves_with_its_frame_and_noisy_slots_take_their_neighbour_s() -> None:
    schedule = FifoSchedule(window_frames=4, num_partitions=2)
    tracker = SubjectTracker(schedule, batch=1, tokens=4, max_sigma=0.9)
    assert not tracker.masks().any()
    window = schedule.steady_windows[-1]
    share = torch.full((1, 4, 4), 0.1)
    for frame in range(4):
        share[0, frame, frame] = 0.9
    tracker.record(window, share.flatten(1), window.keep, window.end_keep)
    found = tracker.window_masks(window)[0].int().argmax(-1).tolist()
    assert schedule.slot_sigmas[-1] > 0.9  # its own map is not trusted
    assert found[2:] == [2, 2]
    tracker.shift()
    assert tracker.masks()[0, window.keep - 1].int().argmax() == 2
    assert tracker.masks()[0, -1].int().argmax() == 3  # sigma of the slot before is low enough for its map
    tracker.forget()
    assert not tracker.masks().any()
