"""The diagonal queue on integers."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid.pipelines.schedules.fifo import FifoSchedule, check_steps, shifted_sigmas

queues = st.builds(
    FifoSchedule,
    window_frames=st.integers(2, 24),
    num_partitions=st.integers(1, 6),
    lookahead=st.booleans(),
    shift=st.floats(0.3, 12.0),
    context=st.sampled_from(["lowest", "clean"]),
    init=st.sampled_from(["trajectory", "renoise", "uniform"]),
)


@given(queues)
def test_every_slot_of_the_queue_is_kept_exactly_once(schedule: FifoSchedule) -> None:
    for pass_index in range(schedule.slots + 3):
        kept = [slot for w in schedule.windows(pass_index) for slot in range(w.keep, w.end_keep)]
        assert kept == list(range(max(schedule.context_slots, schedule.first_slot(pass_index)), schedule.slots))


@given(queues)
def test_every_window_is_one_model_call_inside_the_filled_queue(schedule: FifoSchedule) -> None:
    for pass_index in range(schedule.slots + 3):
        for window in schedule.windows(pass_index):
            assert window.end - window.start == schedule.window_frames
            assert schedule.first_slot(pass_index) <= window.start <= window.keep < window.end_keep <= window.end
            assert window.end <= schedule.slots


@given(queues)
def test_lookahead_gives_kept_frames_cleaner_company(schedule: FifoSchedule) -> None:
    expected = schedule.num_partitions * (2 if schedule.lookahead else 1)
    assert len(schedule.steady_windows) == expected
    if schedule.lookahead:
        assert all(w.keep - w.start >= schedule.window_frames // 2 for w in schedule.steady_windows)


@given(queues)
def test_levels_rise_along_the_queue_and_sigmas_with_them(schedule: FifoSchedule) -> None:
    assert len(schedule.slot_levels) == len(schedule.slot_sigmas) == schedule.slots
    assert schedule.slot_levels[schedule.context_slots :] == tuple(range(1, schedule.levels + 1))
    assert schedule.sigmas[0] == 0.0
    assert schedule.sigmas[-1] == pytest.approx(1.0)
    assert all(a < b for a, b in itertools.pairwise(schedule.sigmas))


@given(queues, st.integers(1, 50))
def test_as_many_frames_leave_as_were_asked_for(schedule: FifoSchedule, num_frames: int) -> None:
    exits = [schedule.exit_frame(p) for p in range(schedule.passes(num_frames))]
    assert [e for e in exits if e is not None] == list(range(num_frames))
    assert exits.count(None) == schedule.warmup_passes


@given(queues)
def test_a_frame_keeps_its_number_on_its_way_to_the_exit(schedule: FifoSchedule) -> None:
    last = schedule.slots - 1
    number = schedule.entry(0, last)
    for passes in range(schedule.levels):
        assert schedule.entry(passes, last - passes) == number
    # It leaves from slot P after its T-th pass.
    leaves = schedule.levels - 1
    assert schedule.entry(leaves, schedule.context_slots) == number
    assert (schedule.exit_frame(leaves) or 0) == number


@given(queues)
def test_the_first_clip_fills_the_last_slots_with_its_own_frames(schedule: FifoSchedule) -> None:
    source = [schedule.source_frame(level) for level in range(1, schedule.levels + 1)]
    assert source[0] == 0
    assert source[-1] == schedule.window_frames - 1
    assert all(b - a in (0, 1) for a, b in itertools.pairwise(source))
    if schedule.init != "uniform":
        assert source[-schedule.window_frames :] == list(range(schedule.window_frames))


@given(st.integers(2, 24), st.integers(1, 6), st.booleans())
def test_a_trajectory_queue_warms_up_for_no_more_calls_than_a_frozen_one(f: int, n: int, lookahead: bool) -> None:
    def calls(init: str) -> int:
        schedule = FifoSchedule(window_frames=f, num_partitions=n, lookahead=lookahead, init=init)
        return sum(len(schedule.windows(p)) for p in range(schedule.warmup_passes))

    assert calls("trajectory") <= calls("renoise")


def test_windows_of_the_paper_s_default() -> None:
    schedule = FifoSchedule(window_frames=16, num_partitions=4)
    assert (schedule.levels, schedule.context_slots, schedule.slots) == (64, 8, 72)
    assert [tuple(w) for w in schedule.steady_windows] == [(8 * r, 8 * r + 8, 8 * r + 16, 8 * r + 16) for r in range(8)]


def test_sigmas_are_the_shifted_line() -> None:
    assert shifted_sigmas(4, 1.0) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert shifted_sigmas(2, 3.0)[1] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_frames": 0}, "window_frames=0"),
        ({"window_frames": 2.5}, "window_frames=2.5"),
        ({"window_frames": True}, "window_frames=True"),
        ({"num_partitions": 0}, "num_partitions=0"),
        ({"window_frames": 1}, "lookahead needs windows of 2"),
        ({"window_frames": 1, "num_partitions": 1, "lookahead": False}, "2 levels or more"),
        ({"shift": 0.0}, "shift=0.0"),
        ({"shift": float("nan")}, "shift=nan"),
        ({"context": "noisy"}, "context='noisy'"),
        ({"init": "copy"}, "init='copy'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_queue_that_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FifoSchedule(**{"window_frames": 4, "num_partitions": 3, **change})


def test_another_number_of_steps_is_refused_with_the_nearest_partitions() -> None:
    schedule = FifoSchedule(window_frames=5, num_partitions=2)
    check_steps(schedule, None)
    check_steps(schedule, 10)
    with pytest.raises(ValueError, match=r"num_inference_steps=16: .*num_partitions=3 gives 15"):
        check_steps(schedule, 16)


def test_no_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="num_frames=0"):
        FifoSchedule(window_frames=4, num_partitions=3).passes(0)


@settings(max_examples=20)
@given(queues)
def test_the_schedule_needs_no_torch_to_be_hashed_and_compared(schedule: FifoSchedule) -> None:
    twin = FifoSchedule(**{name: getattr(schedule, name) for name in schedule.__dataclass_fields__})
    assert twin == schedule
    assert hash(twin) == hash(schedule)
