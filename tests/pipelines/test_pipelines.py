"""Pipelines end to end on tiny random components: lengths, outputs, streams, prompts, images, refusals."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
import torch

import longvid
from longvid.errors import InputError
from longvid.models.vae_stream import streaming_decoder
from longvid.pipelines.output import to_uint8

CLASSES = ["self-forcing", "streaming-llm", "deep-forcing", "reward-forcing", "rolling-forcing"]
METHODS = [*CLASSES, "longlive"]
PROMPT = "a red ball bounces over green hills"


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_is_the_call_in_pieces(make_tiny_pipe, method):
    """Invariant 1: the same frames, bit for bit."""
    pipe = make_tiny_pipe(method)
    whole = pipe(PROMPT, seconds=4, seed=3).frames[0]
    chunks = list(pipe.stream(PROMPT, seconds=4, seed=3))
    frames = np.concatenate([chunk.frames for chunk in chunks])
    assert whole.shape == (64, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, np.round(whole * 255).astype(np.uint8))
    assert [chunk.start_frame for chunk in chunks] == [0, 9, 21, 33, 45, 57]
    assert [chunk.index for chunk in chunks] == list(range(6))
    assert chunks[1].stats["model_calls"] > 0
    assert not np.array_equal(frames, np.concatenate([c.frames for c in pipe.stream(PROMPT, seconds=4, seed=4)]))


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_carries_its_method(make_tiny_pipe, name):
    pipe = make_tiny_pipe(name)
    assert type(pipe).method_name == name
    assert type(pipe)(**pipe.components).method.name == name


def test_lengths(tiny_pipe):
    assert tiny_pipe(PROMPT, num_frames=5, seed=0).frames.shape == (1, 5, 64, 64, 3)
    assert len(tiny_pipe("x ball[0.5s] | y box[0.5s]", seed=0).frames[0]) == 16
    assert tiny_pipe(PROMPT, num_frames=9, seed=0, output_type="latent").frames.shape == (1, 4, 3, 4, 4)
    short = tiny_pipe(PROMPT, num_frames=9, seed=0).frames
    long = tiny_pipe(PROMPT, num_frames=21, seed=0).frames
    assert np.array_equal(short, long[:, :9])


def test_output_types(tiny_pipe):
    arrays = tiny_pipe(PROMPT, num_frames=5, seed=0).frames[0]
    tensors = tiny_pipe(PROMPT, num_frames=5, seed=0, output_type="pt").frames[0]
    pictures = tiny_pipe(PROMPT, num_frames=5, seed=0, output_type="pil", return_dict=False)[0][0]
    np.testing.assert_allclose(arrays, tensors.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    np.testing.assert_allclose(arrays[3], np.asarray(pictures[3]) / 255, atol=3e-3)


def test_seeds_and_generators(tiny_pipe):
    one = tiny_pipe(PROMPT, num_frames=5, seed=7).frames
    assert np.array_equal(one, tiny_pipe(PROMPT, num_frames=5, seed=7).frames)
    drawn = [tiny_pipe(PROMPT, num_frames=5, generator=torch.Generator().manual_seed(1)).frames for _ in range(2)]
    assert np.array_equal(*drawn)
    both = tiny_pipe([PROMPT, PROMPT], num_frames=5, seed=7).frames
    np.testing.assert_allclose(both[0], one[0], atol=1e-4)
    np.testing.assert_allclose(both[1], tiny_pipe(PROMPT, num_frames=5, seed=8).frames[0], atol=1e-4)
    many = tiny_pipe(PROMPT, num_frames=5, seed=7, num_videos_per_prompt=2).frames
    np.testing.assert_allclose(many, both, atol=1e-6)


def test_prompts_matter_and_unknown_words_are_named(tiny_pipe, caplog):
    red, blue = (tiny_pipe(f"a {c} ball", num_frames=5, seed=0).frames for c in ("red", "blue"))
    assert np.abs(red - blue).max() > 1e-4
    with caplog.at_level(logging.WARNING, logger="longvid"):
        tiny_pipe("a red zyzzyva ball", num_frames=5, seed=0)
    assert "zyzzyva" in caplog.text


@pytest.mark.parametrize("method", METHODS)
def test_prompt_schedules_switch_and_cut(make_tiny_pipe, method):
    pipe = make_tiny_pipe(method)
    plain = pipe("a red ball", seconds=4, seed=0).frames[0]
    soft = pipe("a red ball[2s] | a blue box[2s]", seed=0).frames[0]
    hard = pipe("a red ball[2s] | a blue box[2s#]", seed=0).frames[0]
    if method != "rolling-forcing":  # there, blocks in flight see the newest ones, or drain without them
        assert np.array_equal(plain[:33], soft[:33])
        assert np.array_equal(plain[:33], hard[:33])
    assert np.abs(plain[-9:] - soft[-9:]).max() > 1e-4
    assert np.abs(hard[-9:] - soft[-9:]).max() > 1e-4


@pytest.mark.parametrize("method", [*METHODS, "fifo"])
def test_a_hard_cut_begins_the_decoder_anew(make_tiny_pipe, method):
    """The first latent frame of a scene is one picture: with the old scene's history a decoder would smear it."""
    own = {} if method != "fifo" else {"fifo": {"window_frames": 3, "num_partitions": 1}}
    pipe = make_tiny_pipe(method, **own)
    text = "a red ball[2s] | a blue box[2s#]"
    chunks = list(pipe.stream(text, seed=0))
    blocks = list(pipe.rollout(text, seed=0))
    frames = np.concatenate([chunk.frames for chunk in chunks])
    assert len(frames) == 64
    assert [chunk.start_frame for chunk in chunks] == [block.video_frame for block in blocks]
    at = np.cumsum([0, *(len(chunk.frames) for chunk in chunks)])
    assert at[:-1].tolist() == [chunk.start_frame for chunk in chunks]
    scenes = [block.index for block in blocks if block.new_scene]
    assert len(scenes) == 2
    for first, last in (scenes, (scenes[1], len(blocks))):
        latents = torch.cat([block.latents for block in blocks[first:last]], dim=2)
        alone = to_uint8(streaming_decoder(pipe.vae).decode(latents))[0]
        assert np.array_equal(frames[at[first] : at[last]], alone[: at[last] - at[first]]), first
    whole = pipe(text, seed=0, output_type="pt").frames
    assert np.array_equal((whole[0].permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy(), frames)


def test_a_cut_on_the_way_leaves_the_length_as_asked(tiny_pipe):
    rollout = tiny_pipe.rollout("a red ball", seconds=4, seed=0)
    shown = 0
    for block, video in tiny_pipe.decoded(rollout, 64):
        assert block.video_frame == shown
        shown += video.shape[2]
        if block.index in (1, 2):
            rollout.set_prompt("a blue box", hard_cut=True)
    assert shown == 64


def test_guidance(tiny_pipe):
    plain = tiny_pipe(PROMPT, num_frames=9, seed=0).frames
    guided = tiny_pipe(PROMPT, num_frames=9, seed=0, guidance_scale=3.0).frames
    negative = tiny_pipe(PROMPT, num_frames=9, seed=0, guidance_scale=3.0, negative_prompt="a blue box").frames
    assert np.abs(plain - guided).max() > 1e-4
    assert np.abs(negative - guided).max() > 1e-4


def test_a_negative_prompt_without_guidance_is_warned_of(tiny_pipe):
    with pytest.warns(
        RuntimeWarning, match=r"^negative_prompt='blurry': is not used at schedule.guidance_scale=1; set"
    ):
        tiny_pipe.check_inputs(PROMPT, seconds=1, negative_prompt="blurry")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_pipe.check_inputs(PROMPT, seconds=1, negative_prompt="blurry", guidance_scale=3.0)
        tiny_pipe.check_inputs(PROMPT, seconds=1, negative_prompt="")


@pytest.mark.parametrize("method", METHODS)
def test_a_first_image_and_a_clip_to_extend(make_tiny_pipe, method):
    pipe = make_tiny_pipe(method, steps=[1000, 500])
    if method == "reward-forcing":
        pipe.use_method(method, {"cache": {"window": 10}})  # 1 + 3k frames fill a window of 10 in whole blocks
    image = torch.rand(1, 3, 64, 64)
    video = pipe(PROMPT, image=image, num_frames=25, seed=0, output_type="latent").frames
    assert video.shape[2] == 7
    clip = [torch.rand(1, 3, 64, 64) for _ in range(9)]
    if method == "reward-forcing":
        pipe.use_method(method)
    clip = torch.rand(1, 9, 3, 64, 64)
    extended = pipe(PROMPT, video=clip, num_frames=33, seed=0, output_type="latent").frames
    assert extended.shape[2] == 9
    other = pipe(PROMPT, video=clip.flip(-1), num_frames=33, seed=0, output_type="latent").frames
    assert (extended[:, :, 3:] - other[:, :, 3:]).abs().max() > 1e-3


def test_latents_of_one_video_begin_another(tiny_pipe):
    first = tiny_pipe(PROMPT, num_frames=21, seed=0, output_type="latent").frames
    longer = tiny_pipe(PROMPT, latents=first, num_frames=33, seed=0, output_type="latent").frames
    torch.testing.assert_close(longer[:, :, :6], first, atol=0, rtol=0)
    whole = tiny_pipe(PROMPT, num_frames=33, seed=0, output_type="latent").frames
    torch.testing.assert_close(longer, whole, atol=1e-5, rtol=0)


def test_callbacks(tiny_pipe):
    seen = []

    def watch(pipe, step, timestep, tensors):
        seen.append((pipe is tiny_pipe, step, round(timestep, 2), tuple(tensors["latents"].shape)))
        return {}

    tiny_pipe(PROMPT, num_frames=9, seed=0, callback_on_step_end=watch)
    assert [s[1:3] for s in seen] == [(0, 1000.0), (1, 937.5), (2, 833.33), (3, 625.0)]
    assert all(ok and shape == (1, 4, 3, 4, 4) for ok, _, _, shape in seen)
    zeroed = tiny_pipe(
        PROMPT,
        num_frames=9,
        seed=0,
        output_type="latent",
        callback_on_step_end=lambda p, i, t, k: {"latents": k["latents"] * 0},
    ).frames
    assert zeroed.abs().max() == 0


def test_an_endless_stream_takes_a_new_prompt(tiny_pipe):
    rollout = tiny_pipe.rollout(PROMPT, seed=0)
    head = [next(rollout) for _ in range(3)]
    rollout.set_prompt("a blue box")
    tail = [next(rollout) for _ in range(2)]
    assert [b.index for b in head + tail] == list(range(5))
    assert rollout.prompt == "a blue box"


def test_steps_and_model_defaults(make_tiny_pipe):
    pipe = make_tiny_pipe("self-forcing", steps=[1000, 500], shift=3.0, sampler="euler", guidance_scale=2.0)
    assert pipe.method.schedule.steps == (1000.0, 500.0)
    assert (pipe.method.schedule.sampler, pipe.method.schedule.guidance_scale) == ("euler", 2.0)
    request = pipe.check_inputs(PROMPT, seconds=1, num_inference_steps=4, guidance_scale=1.0)
    assert request.method.schedule.steps == (1000.0, 750.0, 500.0, 250.0)
    assert not request.guided
    pipe.use_method("deep-forcing", {"cache": {"window": 24}})
    assert pipe.method.cache.window == 24
    assert pipe.check_inputs(PROMPT, seconds=1).policy().window == 24
    ready = longvid.MethodConfig.load("streaming-llm")
    assert pipe.use_method(ready).method.schedule.steps == ready.schedule.steps


def test_attention_by_name(make_tiny_pipe):
    pipe = make_tiny_pipe("self-forcing")
    dense = pipe(PROMPT, num_frames=9, seed=0).frames
    radial = pipe(PROMPT, num_frames=9, seed=0, attention="radial").frames
    np.testing.assert_allclose(dense, radial, atol=1e-4)  # 4 tokens a frame: every band holds them all
    assert pipe(PROMPT, num_frames=9, attention="radial", method="deep-forcing").frames.shape == dense.shape
    with pytest.raises(InputError, match="radia"):
        pipe(PROMPT, num_frames=9, attention="radia")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "", "seconds": 1}, "prompt='': must not be empty"),
        ({"prompt": "x" * 100_000, "seconds": 1}, "prompt"),
        ({"prompt": 3, "seconds": 1}, "prompt=int"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"seconds": -2}, "seconds=-2"),
        ({"seconds": 1e12}, "at most"),
        ({}, "give seconds or num_frames"),
        ({"num_frames": 82}, "num_frames=82: must be 4k\\+1; nearest 81 or 85"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"num_frames": 9, "seconds": 1}, "not both"),
        ({"seconds": 1, "height": 50}, "height=50: must be a multiple of 32; nearest 32 or 64"),
        ({"seconds": 1, "width": -8}, "width=-8"),
        ({"seconds": 1, "seed": -1}, "seed=-1"),
        ({"seconds": 1, "seed": [1, 2]}, "seed: 2 given for 1"),
        ({"seconds": 1, "seed": 1, "generator": torch.Generator()}, "not both"),
        ({"seconds": 1, "generator": 5}, "generator"),
        ({"seconds": 1, "num_inference_steps": 0}, "num_inference_steps=0"),
        ({"seconds": 1, "guidance_scale": float("inf")}, "guidance_scale"),
        ({"seconds": 1, "num_videos_per_prompt": 0}, "num_videos_per_prompt=0"),
        ({"seconds": 1, "output_type": "gif"}, "output_type='gif'"),
        ({"seconds": 1, "method": "deep-forcng"}, "deep-forcing"),
        ({"prompt": "a[1s] | b[x]"}, "prompt, character"),
        ({"prompt": ["a", "b[1s] | c[1s]"], "seconds": 2}, "one by one"),
        ({"seconds": 1, "negative_prompt": ["a", "b"]}, "negative_prompt"),
        ({"seconds": 1, "image": torch.rand(1, 3, 64, 64), "latents": torch.zeros(1, 4, 3, 4, 4)}, "give one of them"),
        (
            {"num_frames": 33, "video": torch.rand(1, 10, 3, 64, 64)},
            "video: 10 frames; must be 4k\\+1; nearest 9 or 13",
        ),
        ({"num_frames": 33, "latents": torch.zeros(1, 4, 5, 4, 4)}, "latent frames=5"),
        ({"num_frames": 9, "latents": torch.zeros(1, 4, 3, 4, 4)}, "ask for more"),
        ({"seconds": 1, "callback_on_step_end_tensor_inputs": ["x"]}, "callback_on_step_end_tensor_inputs"),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x[:24],
)
def test_bad_input_is_refused_before_the_model_runs(tiny_pipe, arguments, message, monkeypatch):
    monkeypatch.setattr(type(tiny_pipe.transformer), "forward", lambda *a, **k: pytest.fail("the model ran"))
    with pytest.raises(InputError, match=message) as caught:
        tiny_pipe(arguments.pop("prompt", PROMPT), **arguments)
    assert "\n" not in str(caught.value)


def test_a_window_that_does_not_hold_its_own_blocks_is_refused(make_tiny_pipe):
    pipe = make_tiny_pipe("rolling-forcing").use_method("rolling-forcing", {"cache": {"window": 17}})
    with pytest.raises(InputError, match=r"cache.window=17: 15 frames are denoised together, .*use 18 or more"):
        pipe.check_inputs(PROMPT, seconds=1)
    pipe.use_method("rolling-forcing", {"cache": {"window": 18}}).check_inputs(PROMPT, seconds=1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"cache": {"window": 21, "sink": 21}}, "sink"),
        ({"cache": {"window": 2}}, "window"),
        ({"cache": {"policy": "ema-sink", "window": 10, "sink": 3}}, "window=10: 2 frames leave at frame 9"),
        ({"cache": {"policy": "participative", "window": 21, "sink": 10, "recent": 2}}, "recent=2"),
        ({"cache": {"policy": "sink", "window": 9, "sink": 3, "commit_window": 2}}, "commit_window=2"),
        ({"cache": {"polcy": "sink"}}, "policy"),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x,
)
def test_combinations_that_cannot_be(tiny_pipe, overrides, message):
    with pytest.raises(InputError, match=message):
        tiny_pipe.use_method("self-forcing", overrides).check_inputs(PROMPT, seconds=10)


def test_an_endless_stream_cannot_remember_everything(tiny_pipe):
    tiny_pipe.use_method("self-forcing", {"cache": {"policy": "full"}})
    assert len(list(tiny_pipe.stream(PROMPT, seconds=1))) == 2
    with pytest.raises(InputError, match="endless"):
        tiny_pipe.stream(PROMPT)


def test_a_batch_does_not_stream(tiny_pipe):
    with pytest.raises(InputError, match="a stream shows one"):
        tiny_pipe.stream([PROMPT, PROMPT], seconds=1)


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("nope", None, "unknown method"),
        ("deep-forcing", {"cache": {"windoww": 3}}, "did you mean 'cache.window'"),
        ("fifo", None, r"runs 'chunk' and 'rolling'; load the model with .*method='fifo'"),
    ],
    ids=["name", "key", "schedule"],
)
def test_a_method_that_cannot_be_is_refused_at_once_and_the_one_before_stays(tiny_pipe, method, overrides, message):
    before = tiny_pipe.method
    with pytest.raises(InputError, match=message):
        tiny_pipe.use_method(method, overrides)
    assert tiny_pipe.method == before
    if overrides is None:
        with pytest.raises(InputError, match=message):
            tiny_pipe.check_inputs(PROMPT, seconds=1, method=method)


@pytest.mark.parametrize("call", ["stream", "rollout", "check_inputs"])
def test_unknown_arguments_are_named(tiny_pipe, call):
    with pytest.raises(InputError, match="unknown argument 'secnds': did you mean 'seconds'"):
        getattr(tiny_pipe, call)(PROMPT, secnds=3)
