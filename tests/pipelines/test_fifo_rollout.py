"""FifoRollout: the verbs of a rollout over a diagonal queue."""

import itertools
import json

import pytest
import torch
from diffusers import WanTransformer3DModel

from longvid.models.window_denoiser import WindowDenoiser
from longvid.pipelines.diagonal import RollPrompt
from longvid.pipelines.fifo_rollout import FifoRollout
from longvid.pipelines.fifo_settings import Additions, FifoSettings
from longvid.pipelines.guidance import SelfRecurrentGuidance
from longvid.pipelines.noise import SeededNoise
from longvid.pipelines.schedules.fifo import FifoSchedule
from longvid.pipelines.subject import SubjectAttention
from longvid.pipelines.tail import CoherentTail

ALL = Additions(
    tail=CoherentTail(),
    subject=SubjectAttention(mode="bridge", sink=1, recent=1),
    guidance=SelfRecurrentGuidance(strength=0.05),
)


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
        num_layers=2,
    ).eval()
    return WindowDenoiser(transformer, subject_layers=(1,))


def encode(denoiser: WindowDenoiser, prompt: str) -> RollPrompt:
    generator = torch.Generator().manual_seed(sum(prompt.encode()))
    embeds = torch.randn(1, 4, 16, generator=generator)
    return RollPrompt(denoiser.encode_text(embeds, torch.zeros(1, 4, 16)), ((1,),), (prompt,))


def make(
    denoiser: WindowDenoiser, *, frames: int | None = 6, additions: Additions | None = None, **more: object
) -> FifoRollout:
    settings = FifoSettings(
        schedule=FifoSchedule(window_frames=3, num_partitions=2, shift=3.0),
        guidance_scale=2.0,
        additions=additions or Additions(),
    )
    return FifoRollout(
        denoiser,
        settings,
        "a cat",
        encode(denoiser, "a cat"),
        noise=SeededNoise(0),
        height=4,
        width=4,
        frames=frames,
        encode=lambda prompt: encode(denoiser, prompt),
        **more,
    )


def video(rollout: FifoRollout) -> torch.Tensor:
    return torch.cat([block.latents for block in rollout], dim=2)


def test_frames_come_one_by_one_with_their_numbers(denoiser: WindowDenoiser) -> None:
    blocks = list(make(denoiser))
    assert [b.index for b in blocks] == [b.start_frame for b in blocks] == list(range(6))
    assert all(b.latents.shape == (1, 4, 1, 4, 4) for b in blocks)
    # First clip (6 calls) and warm-up (3 passes) come before frame 0; then one pass a frame.
    assert [b.stats["model_calls"] for b in blocks] == [10.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert blocks[-1].stats["frames_processed"] == 4 * 3


def test_length_changes_nothing_but_the_length(denoiser: WindowDenoiser) -> None:
    endless = itertools.islice(make(denoiser, frames=None), 4)
    assert torch.equal(video(make(denoiser, frames=4)), torch.cat([b.latents for b in endless], dim=2))


def test_another_seed_is_another_video(denoiser: WindowDenoiser) -> None:
    one, other = make(denoiser), make(denoiser)
    other._source = SeededNoise(1)
    assert (video(one) - video(other)).abs().max() > 0.1


@pytest.mark.parametrize("additions", [Additions(), ALL], ids=["fifo", "ouroboros"])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_saved_rollout_goes_on_bit_exactly(denoiser: WindowDenoiser, additions: Additions, at: int) -> None:
    straight = make(denoiser, additions=additions)
    straight.set_prompt("a dog", at_frame=5)
    whole = video(straight)
    begun = make(denoiser, additions=additions)
    begun.set_prompt("a dog", at_frame=5)
    head = [next(begun).latents for _ in range(at)]
    tensors, meta = begun.state_dict()
    for _ in begun:  # what is saved must not move with the rollout that goes on
        pass
    again = make(denoiser, additions=additions)
    again.load_state_dict(tensors, json.loads(json.dumps(meta)))
    assert torch.equal(torch.cat([*head, video(again)], dim=2), whole)


def test_a_state_of_other_settings_is_refused_by_name(denoiser: WindowDenoiser) -> None:
    state = make(denoiser).state_dict()
    with pytest.raises(ValueError, match=r"additions\.subject\.mode='bridge': the saved rollout used 'none'"):
        make(denoiser, additions=ALL).load_state_dict(*state)
    with pytest.raises(ValueError, match="length=25: the saved rollout used 21"):
        make(denoiser, frames=7).load_state_dict(*state)


# -- prompts ---------------------------------------------------------------------------------------------------


def test_a_prompt_for_later_frames(denoiser: WindowDenoiser) -> None:
    rollout = make(denoiser, frames=10)
    rollout.set_prompt("a dog", at_frame=6)
    changed, plain = video(rollout), video(make(denoiser, frames=10))
    difference = (changed - plain).abs().amax(dim=(0, 1, 3, 4))
    assert difference[:6].max() < difference[6:].min()


def test_a_prompt_for_now_reaches_frames_that_are_in_the_queue(denoiser: WindowDenoiser) -> None:
    rollout, twin = make(denoiser, frames=10), make(denoiser, frames=10)
    for _ in range(2):
        next(rollout), next(twin)
    rollout.set_prompt("a dog")
    assert rollout.prompt == "a dog"
    assert (next(rollout).latents - next(twin).latents).abs().max() > 1e-6


def test_a_hard_cut_is_a_new_scene(denoiser: WindowDenoiser) -> None:
    rollout, plain = make(denoiser, frames=8), video(make(denoiser, frames=8))
    rollout.set_prompt("a cat", hard_cut=True, at_frame=4)
    cut = list(rollout)
    assert [b.start_frame for b in cut] == list(range(9))  # one more: the cut took 3 video frames of 29
    assert [b.video_frame for b in cut] == [0, 1, 5, 9, 13, 14, 18, 22, 26]
    assert [b.index for b in cut if b.new_scene] == [0, 4]
    latents = torch.cat([b.latents for b in cut[:8]], dim=2)
    assert torch.equal(latents[:, :, :4], plain[:, :, :4])
    assert (latents - plain)[:, :, 4].abs().max() > 0.1
    assert cut[4].stats["model_calls"] == 10.0


def test_the_state_does_not_grow_with_the_video(denoiser: WindowDenoiser) -> None:
    rollout, sizes = make(denoiser, frames=None, additions=ALL), []
    for frame in range(60):
        next(rollout)
        if frame in (9, 59):
            sizes.append((rollout.nbytes, sum(tensor.numel() for tensor in rollout.state_dict()[0].values())))
    assert sizes[0] == sizes[1]
    assert sizes[0][0] > 0


def test_prompts_that_are_over_are_let_go(denoiser: WindowDenoiser) -> None:
    rollout = make(denoiser, frames=None)
    for index in range(40):
        rollout.set_prompt(f"prompt {index}")
        next(rollout)
    assert len(rollout._prompts) <= 3
    assert len(rollout._roll.prompts) <= 3


def test_switches_known_beforehand_are_prompts_for_later_frames(denoiser: WindowDenoiser) -> None:
    rollout = make(denoiser, frames=10)
    rollout.set_prompt("a dog", at_frame=6)
    switched = make(denoiser, frames=10, switches=[(6, "a dog", False)])
    assert torch.equal(video(switched), video(rollout))


def test_a_prompt_for_now_gives_way_to_one_that_was_scheduled(denoiser: WindowDenoiser) -> None:
    rollout = make(denoiser, frames=10, switches=[(5, "a dog", False)])
    next(rollout)
    rollout.set_prompt("a fox")
    words = []
    for _ in rollout:
        words.append(rollout.prompt)
    assert words == ["a fox"] * 3 + ["a dog"] * 6


def test_frames_before_a_hard_cut_do_not_know_of_it(denoiser: WindowDenoiser) -> None:
    plain = video(make(denoiser, frames=9))
    cut = video(make(denoiser, frames=9, switches=[(5, "a dog", True)]))[:, :, :9]
    assert torch.equal(cut[:, :, :5], plain[:, :, :5])
    assert (cut - plain)[:, :, 5].abs().max() > 0.1


def test_prompts_that_cannot_be_are_refused(denoiser: WindowDenoiser) -> None:
    rollout = make(denoiser)
    next(rollout)
    with pytest.raises(ValueError, match="at_frame=0: that frame has left"):
        rollout.set_prompt("a dog", at_frame=0)
    for bad in ("", None, 5, ["a dog"], "a dog[2s] | a fox", "a dog[2s]"):
        with pytest.raises(ValueError, match=r"^prompt"):
            rollout.set_prompt(bad)
    rollout.set_prompt(r"a \[red\]  dog")
    assert rollout.prompt == "a [red] dog"
    rollout._encode = None
    with pytest.raises(ValueError, match="pass a RollPrompt"):
        rollout.set_prompt("a fox")


# -- initial frames --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_video_goes_on_from_given_frames(denoiser: WindowDenoiser, count: int) -> None:
    given = torch.randn(1, 4, count, 4, 4, generator=torch.Generator().manual_seed(5))
    blocks = list(make(denoiser, frames=count + 3, initial=given))
    assert [b.given for b in blocks] == [True] * count + [False] * 3
    latents = torch.cat([b.latents for b in blocks], dim=2)
    assert torch.equal(latents[:, :, :count], given)
    assert latents.isfinite().all()
    other = list(make(denoiser, frames=count + 3, initial=given + 0.5))
    assert (other[count].latents - latents[:, :, count : count + 1]).abs().max() > 1e-5


def test_a_continuation_can_be_saved(denoiser: WindowDenoiser) -> None:
    given = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    whole = video(make(denoiser, frames=7, initial=given))
    rollout = make(denoiser, frames=7, initial=given)
    head = [next(rollout).latents for _ in range(4)]
    again = make(denoiser, frames=7, initial=given)
    again.load_state_dict(*rollout.state_dict())
    assert torch.equal(torch.cat([*head, video(again)], dim=2), whole)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(1, 4, 2, 4, 6), "shape"),
        (torch.full((1, 4, 2, 4, 4), float("nan")), "NaN"),
        (torch.zeros(1, 4, 6, 4, 4), "leave nothing to generate in 6"),
    ],
    ids=["size", "nan", "too-many"],
)
def test_given_frames_that_cannot_be_are_refused(denoiser: WindowDenoiser, given: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(denoiser, initial=given)


def test_no_frames_and_a_broken_model_are_named(denoiser: WindowDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="latent frames=0"):
        make(denoiser, frames=0)
    monkeypatch.setattr(denoiser, "predict", lambda x, *_, **__: x * float("nan"))
    with pytest.raises(FloatingPointError, match="latent frame 0"):
        next(make(denoiser))


def test_a_step_hook_sees_and_may_change_the_latents(denoiser: WindowDenoiser) -> None:
    seen = []

    def hook(call: int, timestep: float, latents: torch.Tensor) -> torch.Tensor | None:
        seen.append((call, timestep, tuple(latents.shape)))
        return latents * 0 if call > 6 else None

    latents = video(make(denoiser, frames=2, on_step=hook))
    assert [s[1] for s in seen[:6]] == pytest.approx([1000, 937.5, 857.142857, 750, 600, 375])
    assert seen[0][2] == (1, 4, 3, 4, 4)
    assert seen[6][2] == (1, 4, 6, 4, 4)
    assert (latents == 0).all()
