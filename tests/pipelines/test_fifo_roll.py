"""A FIFO roll on a small random transformer, plain and with each of Ouroboros-Diffusion's additions."""

import hashlib

import pytest
import torch
from diffusers import WanTransformer3DModel

from longvid.models.window_denoiser import WindowDenoiser
from longvid.pipelines.diagonal import DiagonalRoll, RollPrompt
from longvid.pipelines.fifo_settings import Additions
from longvid.pipelines.guidance import SelfRecurrentGuidance
from longvid.pipelines.schedules.fifo import FifoSchedule
from longvid.pipelines.solvers import FlowSolver
from longvid.pipelines.subject import SubjectAttention
from longvid.pipelines.tail import CoherentTail

SHAPE = (2, 4, 4, 6)
ADDITIONS = {
    "plain": Additions(),
    "tail": Additions(tail=CoherentTail()),
    "boost": Additions(subject=SubjectAttention(mode="boost")),
    "bridge": Additions(subject=SubjectAttention(mode="bridge", sink=1, recent=1)),
    "guidance": Additions(guidance=SelfRecurrentGuidance(strength=0.05)),
    "exact-guidance": Additions(guidance=SelfRecurrentGuidance(strength=0.05, form="exact", every=1)),
    "all": Additions(
        tail=CoherentTail(),
        subject=SubjectAttention(mode="bridge", sink=0, recent=2),
        guidance=SelfRecurrentGuidance(strength=0.05),
    ),
}


@pytest.fixture(scope="module")
def denoiser() -> WindowDenoiser:
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=48,
        num_layers=3,
    ).eval()
    return WindowDenoiser(transformer, subject_layers=(2,))


def noise(frame: int, purpose: int) -> torch.Tensor:
    seed = int.from_bytes(hashlib.blake2b(f"{frame},{purpose}".encode(), digest_size=6).digest())
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def make(
    denoiser: WindowDenoiser,
    additions: Additions,
    *,
    solver: str = "ab2",
    eta: float = 0.0,
    window_batch: int = 0,
    texts: int = 1,
    **schedule: object,
) -> DiagonalRoll:
    index = FifoSchedule(**{"window_frames": 3, "num_partitions": 2, "shift": 3.0, **schedule})
    roll = DiagonalRoll(
        denoiser,
        index,
        FlowSolver(schedule=index, solver=solver, eta=eta),
        SHAPE,
        noise=noise,
        guidance_scale=3.0,
        additions=additions,
        window_batch=window_batch,
    )
    for seed in range(texts):
        torch.manual_seed(seed)
        text = denoiser.encode_text(torch.randn(2, 5, 16), torch.randn(2, 5, 16))
        roll.add_prompt(RollPrompt(text, ((1, 2), (0,)), ("subject", str(seed))), seed)
    return roll


def first(_frame: int) -> int:
    return 0


def frames(roll: DiagonalRoll, count: int, prompt_of: object = first, *, start: bool = True) -> torch.Tensor:
    if start:
        roll.start(prompt_of)
    found = []
    while len(found) < count:
        leaving = roll.advance(prompt_of)
        if leaving is not None:
            found.append(leaving)
    return torch.cat(found, dim=2)


@pytest.mark.parametrize("name", ADDITIONS)
def test_frames_leave_one_at_a_time_and_are_finite(denoiser: WindowDenoiser, name: str) -> None:
    video = frames(make(denoiser, ADDITIONS[name]), 5)
    assert video.shape == (2, 4, 5, 4, 6)
    assert video.dtype == torch.float32
    assert video.isfinite().all()


@pytest.mark.parametrize("name", [name for name in ADDITIONS if name != "plain"])
def test_each_addition_changes_the_video_and_spares_the_first_clip_s_cleanest_frame(
    denoiser: WindowDenoiser, name: str
) -> None:
    plain, changed = frames(make(denoiser, ADDITIONS["plain"]), 8), frames(make(denoiser, ADDITIONS[name]), 8)
    assert (plain - changed)[:, :, -1].abs().max() > 1e-4
    # Nothing has happened yet when frame 0 was denoised in the first clip: only its last steps can differ.
    assert (plain - changed)[:, :, 0].abs().max() < (plain - changed)[:, :, -1].abs().max()


@pytest.mark.parametrize("name", ["plain", "bridge", "all"])
@pytest.mark.parametrize("lookahead", [True, False], ids=["lookahead", "plain-windows"])
def test_windows_one_by_one_and_in_one_batch_agree(denoiser: WindowDenoiser, name: str, lookahead: bool) -> None:
    together = make(denoiser, ADDITIONS[name], lookahead=lookahead)
    single = make(denoiser, ADDITIONS[name], lookahead=lookahead, window_batch=1)
    torch.testing.assert_close(frames(together, 5), frames(single, 5), atol=2e-4, rtol=1e-3)
    assert together.calls < single.calls


def test_a_device_that_is_full_gets_smaller_batches(denoiser: WindowDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = frames(make(denoiser, ADDITIONS["plain"], window_batch=1), 3)
    roll, predict = make(denoiser, ADDITIONS["plain"]), denoiser.predict

    def full(latents: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        if latents.shape[0] > 2:
            raise torch.OutOfMemoryError
        return predict(latents, *args, **kwargs)

    monkeypatch.setattr(denoiser, "predict", full)
    torch.testing.assert_close(frames(roll, 3), expected)
    assert roll.window_batch == 1


@pytest.mark.parametrize("name", ADDITIONS)
def test_a_saved_roll_goes_on_bit_exactly(denoiser: WindowDenoiser, name: str) -> None:
    roll = make(denoiser, ADDITIONS[name])
    frames(roll, 3)
    tensors, meta = roll.state_dict()
    straight = frames(roll, 4, start=False)
    again = make(denoiser, ADDITIONS[name])
    again.load_state_dict(tensors, meta)
    assert torch.equal(frames(again, 4, start=False), straight)


def test_a_state_of_other_additions_is_refused(denoiser: WindowDenoiser) -> None:
    roll = make(denoiser, ADDITIONS["boost"])
    frames(roll, 1)
    for other in ("plain", "bridge"):
        with pytest.raises(ValueError, match="saved under"):
            make(denoiser, ADDITIONS[other]).load_state_dict(*roll.state_dict())


@pytest.mark.parametrize("init", ["renoise", "uniform"])
def test_other_ways_to_fill_the_queue(denoiser: WindowDenoiser, init: str) -> None:
    assert frames(make(denoiser, ADDITIONS["plain"], init=init), 3).isfinite().all()


def test_stochastic_steps_draw_the_same_whatever_the_batch(denoiser: WindowDenoiser) -> None:
    def run(**more: object) -> torch.Tensor:
        return frames(make(denoiser, ADDITIONS["plain"], solver="euler", **more), 3)

    assert torch.equal(run(eta=1.0), run(eta=1.0))
    torch.testing.assert_close(run(eta=1.0), run(eta=1.0, window_batch=1), atol=2e-4, rtol=1e-3)
    assert (run(eta=1.0) - run()).abs().max() > 0.1


# -- prompts ---------------------------------------------------------------------------------------------------


def test_a_prompt_belongs_to_its_frames(denoiser: WindowDenoiser) -> None:
    """Frames before the switch differ only through attention to those after it; from the switch on they follow."""
    one = frames(make(denoiser, ADDITIONS["plain"], texts=2), 8)
    roll = make(denoiser, ADDITIONS["plain"], texts=2)
    switched = frames(roll, 8, lambda frame: int(frame >= 5))
    difference = (one - switched).abs().amax(dim=(0, 1, 3, 4))
    assert difference[:5].max() < difference[5:].min()
    assert roll.slot_prompts[-1] == 1


def test_a_switch_beyond_the_video_changes_nothing(denoiser: WindowDenoiser) -> None:
    one = frames(make(denoiser, ADDITIONS["all"], texts=2), 4)
    assert torch.equal(one, frames(make(denoiser, ADDITIONS["all"], texts=2), 4, lambda frame: int(frame >= 100)))


def test_reassigning_reaches_every_frame_that_is_still_in_the_queue(denoiser: WindowDenoiser) -> None:
    roll, twin = make(denoiser, ADDITIONS["plain"], texts=2), make(denoiser, ADDITIONS["plain"], texts=2)
    frames(roll, 2), frames(twin, 2)
    twin.reassign(lambda _: 1)
    after, other = frames(roll, 6, start=False), frames(twin, 6, lambda _: 1, start=False)
    difference = (after - other).abs().amax(dim=(0, 1, 3, 4))
    assert difference[0] > 1e-5
    assert difference[0] < difference[-1]


def test_a_change_of_subject_clears_what_is_remembered(denoiser: WindowDenoiser) -> None:
    roll = make(denoiser, ADDITIONS["all"], texts=2)
    frames(roll, 2, lambda frame: int(frame >= 3))
    assert roll.follower.memory.vectors
    old = roll.follower.memory
    frames(roll, 4, lambda frame: int(frame >= 3), start=False)
    assert roll.follower.memory is not old
    assert roll.follower.bank.cache.resident[0] >= 3


def test_a_bank_longer_than_a_window_is_refused(denoiser: WindowDenoiser) -> None:
    with pytest.raises(ValueError, match="must be below window_frames=3"):
        make(denoiser, Additions(subject=SubjectAttention(mode="bridge", sink=1, recent=3)))
    with pytest.raises(ValueError, match=r"guidance.layers=\(7,\)"):
        make(denoiser, Additions(guidance=SelfRecurrentGuidance(strength=0.1, layers=(7,))))


def test_gradient_checkpointing_gives_the_same_guidance(denoiser: WindowDenoiser) -> None:
    plain = frames(make(denoiser, ADDITIONS["guidance"]), 4)
    denoiser.transformer.enable_gradient_checkpointing()
    try:
        torch.testing.assert_close(frames(make(denoiser, ADDITIONS["guidance"]), 4), plain, atol=1e-4, rtol=1e-3)
    finally:
        denoiser.transformer.disable_gradient_checkpointing()
    assert all(p.requires_grad for p in denoiser.transformer.parameters())
