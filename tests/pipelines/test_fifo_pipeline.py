"""FifoPipeline and OuroborosPipeline: the same names and calls as every other method."""

from typing import Any

import numpy as np
import pytest
import torch

import longvid
from longvid.models.vae_stream import streaming_decoder
from longvid.presets import load_method

PROMPT = "a red ball bounces over green hills"
SMALL = {"train_frames": 4, "guidance_scale": 2.0}


@pytest.fixture
def pipe(make_tiny_pipe: Any) -> Any:
    return make_tiny_pipe("fifo", **SMALL)


def latents(pipe: Any, prompt: str = PROMPT, frames: int = 25, **more: Any) -> torch.Tensor:
    return pipe(prompt, num_frames=frames, output_type="latent", **{"seed": 0, **more}).frames


@pytest.mark.parametrize("name", ["fifo", "ouroboros"])
def test_a_method_by_name_makes_a_video(make_tiny_pipe: Any, name: str) -> None:
    pipe = make_tiny_pipe(name, **SMALL)
    assert type(pipe).__name__ == load_method(name).pipeline
    video = pipe(PROMPT, num_frames=17, seed=0).frames
    assert video.shape == (1, 17, 64, 64, 3)
    assert np.isfinite(video).all()


def test_the_model_s_own_numbers_reach_the_queue(make_tiny_pipe: Any) -> None:
    schedule = make_tiny_pipe(
        "fifo", train_frames=6, guidance_scale=2.5, frames_per_block=3, steps=[1000]
    ).method.schedule
    assert (schedule.window_frames, schedule.guidance_scale, schedule.frames_per_block) == (6, 2.5, 1)
    assert make_tiny_pipe("fifo", train_frames=None).method.schedule.guidance_scale == 5.0


def test_a_model_folder_may_say_how_its_queue_is_made(make_tiny_pipe: Any, tmp_path: Any) -> None:
    own = {"window_frames": 5, "num_partitions": 1, "context": "clean"}
    make_tiny_pipe("fifo", **SMALL, fifo=own).save_pretrained(tmp_path)
    for name in ("fifo", "ouroboros"):
        schedule = longvid.load(tmp_path, method=name, device="cpu").method.schedule
        assert (schedule.window_frames, schedule.num_partitions, schedule.context) == (5, 1, "clean")
    assert longvid.load(tmp_path, method="self-forcing", device="cpu").method.schedule.window_frames is None
    with pytest.raises(longvid.InputError, match="window_frame"):
        longvid.load(tmp_path, method="fifo", device="cpu", overrides={"schedule": {"window_frame": 3}})


def test_stream_and_call_agree_and_frames_stream_out_one_latent_at_a_time(pipe: Any) -> None:
    chunks = list(pipe.stream(PROMPT, num_frames=17, seed=0))
    assert [c.frames.shape[0] for c in chunks] == [1, 4, 4, 4, 4]
    assert [c.start_frame for c in chunks] == [0, 1, 5, 9, 13]
    whole = pipe(PROMPT, num_frames=17, seed=0, output_type="np").frames[0]
    streamed = np.concatenate([c.frames for c in chunks])
    assert np.abs(streamed / 255.0 - whole).max() < 1 / 255


def test_what_streams_out_is_one_full_decode(pipe: Any) -> None:
    chunks = np.concatenate([c.frames for c in pipe.stream(PROMPT, num_frames=17, seed=0)])
    decoded = streaming_decoder(pipe.vae).decode(latents(pipe, frames=17))
    again = ((decoded[0].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    assert np.array_equal(chunks, again)


def test_a_rollout_is_saved_and_goes_on(pipe: Any) -> None:
    whole = latents(pipe, "a red ball bounces[1s] | a blue box hops[2s]", frames=33)
    rollout = pipe.rollout("a red ball bounces[1s] | a blue box hops[2s]", num_frames=33, seed=0)
    head = [next(rollout).latents for _ in range(3)]
    again = pipe.rollout("a red ball bounces[1s] | a blue box hops[2s]", num_frames=33, seed=0)
    again.load_state_dict(*rollout.state_dict())
    assert torch.equal(torch.cat([*head, *(b.latents for b in again)], dim=2), whole)


def test_a_prompt_schedule_changes_the_frames_from_its_second_on(pipe: Any) -> None:
    plain = latents(pipe, "a red ball bounces over hills", frames=49)
    switched = latents(pipe, "a red ball bounces over hills[2s] | a blue box hops at night", frames=49)
    difference = (plain - switched).abs().amax(dim=(0, 1, 3, 4))
    assert difference[:8].max() < difference[8:].max()
    cut = latents(pipe, "a red ball bounces over hills[2s] | a blue box hops at night[2s#]", frames=49)
    assert cut.shape[2] == 14  # 29 frames before the cut, 20 behind it, where a scene begins with one frame
    changed = (plain - cut[:, :, :13]).abs().amax(dim=(0, 1, 3, 4)) > 0
    assert changed.tolist() == [False] * 8 + [True] * 5


def test_batches_equal_their_samples(pipe: Any) -> None:
    both = latents(pipe, frames=13, num_videos_per_prompt=2)
    torch.testing.assert_close(both[1:], latents(pipe, frames=13, seed=1), atol=2e-4, rtol=1e-3)


def test_without_additions_ouroboros_is_fifo(make_tiny_pipe: Any) -> None:
    fifo, ouroboros = make_tiny_pipe("fifo", **SMALL), make_tiny_pipe("ouroboros", **SMALL)
    ouroboros.use_method("ouroboros", {"schedule": {"tail_gain": 0.0}})
    assert torch.equal(latents(fifo), latents(ouroboros))


@pytest.mark.parametrize(
    "change",
    [
        {"tail_gain": 0.6},
        {"subject_attention": "boost"},
        {"subject_attention": "bridge", "subject_recent": 2},
        {"memory_guidance": 0.05},
        {"lookahead": False},
        {"sampler": "euler"},
        {"sampler": "euler", "eta": 1.0},
        {"init": "renoise"},
        {"context": "clean"},
        {"num_partitions": 3},
    ],
    ids=lambda change: "-".join(f"{k}={v}" for k, v in change.items()),
)
def test_each_choice_by_itself_makes_another_video(pipe: Any, change: dict) -> None:
    plain = latents(pipe)
    pipe.use_method("fifo", {"schedule": change})
    changed = latents(pipe)
    assert changed.isfinite().all()
    assert not torch.equal(plain, changed)


def test_the_subject_is_found_by_itself_or_named(pipe: Any) -> None:
    def run(words: list[str]) -> torch.Tensor:
        return latents(pipe.use_method("fifo", {"schedule": {"subject_attention": "boost", "subject_words": words}}))

    automatic = run([])
    assert torch.equal(automatic, run(["red", "ball"]))
    assert not torch.equal(automatic, run(["hills"]))


def test_an_image_and_a_clip_go_on(pipe: Any) -> None:
    for name, pictures in (("image", 1), ("video", 9)):
        given = torch.rand(pictures, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        video = pipe(PROMPT, num_frames=17, seed=0, **{name: given if name == "video" else given[0]}).frames
        assert video.shape == (1, 17, 64, 64, 3)


def test_windows_one_by_one_agree(pipe: Any) -> None:
    together = latents(pipe)
    single = latents(pipe.use_method("fifo", {"schedule": {"window_batch": 1}}))
    torch.testing.assert_close(together, single, atol=2e-4, rtol=1e-3)


def test_steps_are_partitions(pipe: Any) -> None:
    by_steps = latents(pipe, num_inference_steps=12)
    assert torch.equal(by_steps, latents(pipe.use_method("fifo", {"schedule": {"num_partitions": 3}})))


def test_another_method_on_the_same_object(make_tiny_pipe: Any) -> None:
    pipe, other = make_tiny_pipe("ouroboros", **SMALL), make_tiny_pipe("self-forcing")
    pipe.use_method("ouroboros", {"schedule": {"subject_attention": "bridge", "subject_recent": 1}})
    latents(pipe)
    chunkwise = latents(pipe, frames=33, method=load_method("self-forcing"))
    torch.testing.assert_close(chunkwise, latents(other, frames=33, method=load_method("self-forcing")))


@pytest.mark.parametrize("name", ["fifo", "ouroboros"])
def test_an_interrupted_render_goes_on_to_the_same_frames(make_tiny_pipe: Any, tmp_path: Any, name: str) -> None:
    prompt = "a red ball bounces over hills[1s] | a blue box hops[1s]"
    changes = {"schedule": {"subject_attention": "bridge", "subject_recent": 1}} if name == "ouroboros" else None

    def render(file: str, **more: Any) -> str:
        pipe = make_tiny_pipe(name, **SMALL).use_method(name, changes)
        pipe.render(prompt, tmp_path / file, num_frames=33, seed=0, snapshot_every=2, **more)
        return (tmp_path / f"{file}.frames_md5").read_text()

    def stop(progress: Any) -> None:
        if progress.block == 5:
            raise KeyboardInterrupt

    whole = render("whole.mp4")
    with pytest.raises(KeyboardInterrupt):
        render("cut.mp4", progress=stop)
    assert render("cut.mp4", resume=True) == whole


def test_a_stock_wan_folder(tmp_path: Any, make_tiny_transformer: Any) -> None:
    """UMT5 with a tokenizer of its own, Wan's VAE: subject words are found among the tokenizer's."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
    from diffusers import WanPipeline as StockPipeline
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    words = ["[PAD]", "[UNK]", "a", "red", "ball", "bounces", "over", "green", "hills"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": len(words)}
    vae = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4,
                           latents_std=[1.0] * 4)  # fmt: skip
    StockPipeline(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]"),
        text_encoder=UMT5EncoderModel(UMT5Config(**sizes)).eval(),
        transformer=make_tiny_transformer(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(tmp_path)
    changes = {"schedule": {"window_frames": 4, "subject_attention": "bridge", "subject_recent": 1}}
    pipe = longvid.load(tmp_path, method="ouroboros", overrides=changes, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    video = pipe(PROMPT, num_frames=9, height=32, width=32, seed=0).frames
    assert video.shape == (1, 9, 32, 32, 3)
    rollout = pipe.rollout(PROMPT, num_frames=9, height=32, width=32, seed=0)
    assert rollout._prompts[0].text.positions == ((1, 2),)
    assert rollout._prompts[0].text.subject == ("red", "ball")


@pytest.mark.parametrize("name", ["fifo", "ouroboros"])
def test_windows_attend_radially_when_asked(make_tiny_pipe: Any, name: str) -> None:
    """On four tokens a frame every band holds them all, so that the video stays. Rollouts may take turns."""
    pipe = make_tiny_pipe(name, **SMALL)
    dense, radial = latents(pipe, frames=9), latents(pipe, frames=9, attention="radial")
    torch.testing.assert_close(radial, dense, atol=1e-3, rtol=0)
    assert not torch.equal(radial, dense)
    first, second = (pipe.rollout(PROMPT, num_frames=9, seed=0, attention=kind) for kind in ("radial", "dense"))
    turns = [torch.cat([a.latents, b.latents]) for a, b in zip(first, second, strict=True)]
    assert torch.equal(torch.cat(turns, dim=2), torch.cat([radial, dense]))


def test_rollouts_of_unlike_methods_take_turns_on_one_transformer(make_tiny_pipe: Any) -> None:
    """A queue that follows its subject exchanges attention processors under a rollout that is under way."""
    pipe = make_tiny_pipe("ouroboros", **SMALL)
    pipe.use_method("ouroboros", {"schedule": {"subject_attention": "bridge", "subject_recent": 1}})
    call = {"num_frames": 25, "seed": 0}
    chunks = pipe.rollout(PROMPT, method="self-forcing", **call)
    whole = [block.latents for block in chunks]
    again = pipe.rollout(PROMPT, method="self-forcing", **call)
    found = [next(again).latents]
    queue = pipe.rollout(PROMPT, **call)
    found.append(next(again).latents)
    next(queue)
    found += [block.latents for block in again]
    assert torch.equal(torch.cat(found, dim=2), torch.cat(whole, dim=2))


@pytest.mark.parametrize("strict", [False, True], ids=["falls-back", "strict"])
def test_a_backend_without_masks_leaves_the_subject_s_calls_to_another(make_tiny_pipe: Any, strict: bool) -> None:
    """Rows of a call see unlike numbers of the subject's tokens; flash and its kin refuse the mask that this needs."""
    pipe = make_tiny_pipe("ouroboros", **SMALL)
    change = {"subject_attention": "bridge", "subject_recent": 1}
    pipe.use_method("ouroboros", {"schedule": change})
    expected = latents(pipe)
    pipe.use_method("ouroboros", {"schedule": change, "attention": {"backend": "_native_flash", "strict": strict}})
    try:
        if strict:
            with pytest.raises(longvid.InputError, match="'_native_flash': layers 1 see the subject under a mask"):
                latents(pipe)
        else:
            with pytest.warns(RuntimeWarning, match="using 'native' there"):
                found = latents(pipe)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    finally:
        pipe.transformer.set_attention_backend("native")  # also what else in the process follows
        pipe.transformer.reset_attention_backend()


@pytest.mark.parametrize(
    ("change", "call", "message"),
    [
        ({"window_frames": 1}, {}, "window_frames"),
        ({"num_partitions": 0}, {}, "num_partitions=0"),
        ({"frames_per_block": 3}, {}, "frames_per_block=3: frames leave a queue one at a time; use 1"),
        ({"eta": 0.5}, {}, 'eta=0.5: a stochastic step needs sampler="euler"'),
        ({"sampler": "renoise"}, {}, "solver='renoise'"),
        ({"tail_cutoff": 0.0}, {}, "tail_cutoff=0.0"),
        ({"tail_gain": 1.0}, {}, "tail_gain=1.0"),
        ({"subject_attention": "bridge", "subject_recent": 9}, {}, "must be below window_frames=4"),
        ({"subject_attention": "boost", "subject_words": ["zebra"]}, {}, "subject_words='zebra': not in the prompt"),
        ({"memory_guidance": 0.1, "subject_words": ["bal"]}, {}, "nearest 'ball'"),
        ({"subject_words": ["zebra"]}, {}, "subject_words='zebra': not in the prompt"),
        ({}, {"num_inference_steps": 10}, "num_inference_steps=10: .*num_partitions=2 gives 8"),
        ({}, {"num_inference_steps": 0}, "num_inference_steps=0"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_line_before_any_model_call(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, change: dict, call: dict, message: str
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("the transformer was called")

    monkeypatch.setattr(type(pipe.transformer), "forward", forbidden)
    with pytest.raises(longvid.InputError, match=message) as caught:
        latents(pipe.use_method("fifo", {"schedule": change}), **call)
    assert "\n" not in str(caught.value)
