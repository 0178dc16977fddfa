"""The plan of a dry run is what the rollout does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longvid.config import MethodConfig
from longvid.models.folder import read_model_folder
from longvid.plan import cost_per_block, estimate_memory, human_bytes, planned_blocks
from longvid.progress import clock

CHUNKED = ("self-forcing", "streaming-llm", "deep-forcing", "rolling-forcing", "reward-forcing", "longvid")


@pytest.mark.parametrize("cut", ["", "[5s#]"], ids=["flowing", "cut"])
@pytest.mark.parametrize("method", CHUNKED)
def test_blocks_frames_and_calls_are_the_rollouts(make_tiny_pipe: Any, method: str, cut: str) -> None:
    pipe = make_tiny_pipe(method)
    text = f"a red ball[1s] | a blue star{cut}"
    request = pipe.check_inputs(text, seconds=8, seed=0)
    planned = list(planned_blocks(request, temporal=4))
    rollout = pipe.rollout(text, seconds=8, seed=0)
    made, prompts = [], []
    for block in rollout:
        made.append(block)
        prompts.append(rollout.prompt)
    assert [(b.start_frame, b.start_frame + b.latents.shape[2]) for b in made] == [b.latent_frames for b in planned]
    assert [b.video_frame for b in made] == [b.video_frames[0] for b in planned]
    assert planned[0].video_frames == (0, 9)
    assert planned[-1].video_frames[1] == 128
    assert sum(end - start for start, end in (b.video_frames for b in planned)) == 128
    if method != "rolling-forcing":  # there the prompt changes while earlier blocks are still in flight
        assert prompts == [("a red ball", "a blue star")[b.prompt] for b in planned]
    cost = cost_per_block(MethodConfig.load(method))
    steady = made[len(made) // 2].stats
    assert (steady["model_calls"], steady["frames_processed"]) == (cost.calls, cost.frames)


def test_memory_of_the_cache_is_what_is_allocated(make_tiny_pipe: Any, tiny_model_folder: Path) -> None:
    folder = read_model_folder(tiny_model_folder)
    assert folder is not None
    pipe = make_tiny_pipe("self-forcing", frames_per_block=3, steps=[1000, 500], shift=3.0)
    rollout = pipe.rollout("a red ball", seconds=4, seed=0)
    memory = estimate_memory(folder, pipe.method, rollout.policy.capacity, height=64, width=64, dtype="float32")
    assert memory.cache == rollout.cache.nbytes
    parts = [pipe.transformer, pipe.vae, pipe.text_encoder]
    assert memory.weights == sum(weight.numel() * 4 for part in parts for weight in part.parameters())
    half = estimate_memory(folder, pipe.method, rollout.policy.capacity, height=64, width=64, dtype="bfloat16")
    assert half.cache * 2 == memory.cache


def test_a_folder_is_read_without_its_weights(tiny_model_folder: Path) -> None:
    folder = read_model_folder(tiny_model_folder)
    assert folder is not None
    assert (folder.spatial, folder.vae_factor, folder.temporal, folder.dim) == (32, 16, 4, 24)
    assert read_model_folder("owner/name") is None


def test_words_for_sizes_and_times() -> None:
    assert [human_bytes(size) for size in (12, 1234, 1234567, 5.6e9)] == ["12 B", "1.2 kB", "1.2 MB", "5.6 GB"]
    assert [clock(seconds) for seconds in (0.4, 59.6, 61, 3725)] == ["0:00", "1:00", "1:01", "1:02:05"]
