"""The plan of a dry run is what the rollout does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import longvid
from longvid.config import MethodConfig
from longvid.models.folder import Component, ModelFolder, read_model_folder
from longvid.pipelines.request import ModelFacts, resolve
from longvid.plan import cost_per_block, estimate_memory, human_bytes, plan_lines, planned_blocks
from longvid.presets import method_names
from longvid.progress import clock
from longvid.prompts import parse_prompt

QUEUES = ("fifo", "ouroboros")
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


def test_memory_is_what_is_allocated(make_tiny_pipe: Any, tiny_model_folder: Path) -> None:
    folder = read_model_folder(tiny_model_folder)
    assert folder is not None
    pipe = make_tiny_pipe("self-forcing", frames_per_block=3, steps=[1000, 500], shift=3.0)
    request = pipe.check_inputs("a red ball", seconds=4, seed=0)
    memory = estimate_memory(folder, request, "float32")
    assert memory.cache == pipe.rollout("a red ball", seconds=4, seed=0).cache.nbytes
    parts = [pipe.transformer, pipe.vae, pipe.text_encoder]
    assert memory.weights == sum(weight.numel() * 4 for part in parts for weight in part.parameters())
    assert estimate_memory(folder, request, "bfloat16").cache * 2 == memory.cache
    twice = pipe.check_inputs("a red ball", seconds=4, seed=0, num_videos_per_prompt=2, guidance_scale=2.0)
    assert estimate_memory(folder, twice, "float32").cache == 4 * memory.cache


@pytest.mark.parametrize("schedule", ["chunk", "rolling"])
@pytest.mark.parametrize("commit_window", [0, 5])
def test_memory_of_calls_that_gather_frames_is_planned(
    make_tiny_pipe: Any,
    tiny_model_folder: Path,
    cache_storages: Callable[[Any], dict[int, int]],
    schedule: str,
    commit_window: int,
) -> None:
    """A joint window over another memory than its method's; commits that read the newest frames of a ring."""
    folder, pipe = read_model_folder(tiny_model_folder), make_tiny_pipe("rolling-forcing")
    assert folder is not None
    cache = {"policy": "sink", "window": 9, "cache_frames": 0, "commit_window": commit_window}
    pipe.use_method("rolling-forcing", {"schedule": {"kind": schedule, "steps": [1000, 500]}, "cache": cache})
    request = {"prompt": "a red ball", "num_frames": 4 * 26 + 1, "seed": 0}
    planned = estimate_memory(folder, pipe.check_inputs(**request), "float32").cache
    rollout = pipe.rollout(**request)
    for _ in rollout:
        pass
    assert planned == rollout.cache.nbytes == sum(cache_storages(rollout.cache).values())


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("reward-forcing", r"whatever the length: .* frame cache 25.3 kB \(9 latent frames\)"),
        ("radial", r"at this length: .* frame cache 43.0 kB \(28 latent frames\)"),
        ("fifo", r"whatever the length: .* queue 26.6 kB \(52 latent frames\)"),
    ],
)
def test_memory_in_words(make_tiny_pipe: Any, tiny_model_folder: Path, method: str, told: str) -> None:
    request = make_tiny_pipe(method).check_inputs("a red ball", seconds=8, seed=0)
    lines = plan_lines(request, read_model_folder(tiny_model_folder), parse_prompt("a red ball[8s]"), "float32")
    assert re.search(told, lines[-1]), lines[-1]


@pytest.mark.parametrize("method", method_names())
def test_a_rollout_of_the_embedded_model_holds_what_was_planned(
    cache_storages: Callable[[Any], dict[int, int]], method: str
) -> None:
    """Eleven blocks and a change of prompt: every method has evicted, merged or pruned, and encoded anew if it does."""
    pipe, folder = longvid.load("embedded", method, device="cpu"), read_model_folder("embedded")
    assert folder is not None
    request = {"prompt": "a red ball[4s] | a blue star", "num_frames": 129, "height": 64, "width": 64, "seed": 0}
    planned = estimate_memory(folder, pipe.check_inputs(**request), "float32").cache
    rollout = pipe.rollout(**request)
    made = getattr(rollout, "cache", rollout).nbytes
    for _ in rollout:
        pass
    if method in QUEUES:
        assert planned == rollout.nbytes > 0
        return
    cache = rollout.cache
    assert cache.resident_frames < cache.resident[-1]
    assert bool(cache.stats.merged_frames) == (method == "reward-forcing")
    assert ("selected" in {cache.role(frame) for frame in cache.resident}) == (method == "deep-forcing")
    assert planned == made == cache.nbytes == sum(cache_storages(cache).values())


class Allocations(TorchDispatchMode):
    """Bytes of the largest tensor that an operation gives, "meta" apart."""

    largest = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operation(*args, **kwargs or {})
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor) and not leaf.is_meta]
        self.largest = max([self.largest, *(tensor.nbytes for tensor in tensors)])
        return out


@pytest.mark.parametrize("method", method_names())
def test_planning_wan_costs_no_memory(method: str) -> None:
    """Wan2.1-T2V-1.3B at 480p, from its published sizes: gigabytes of keys and values are counted, not allocated."""
    transformer = {"patch_size": [1, 2, 2], "num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128}
    configs = {"transformer": transformer | {"in_channels": 16}, "vae": {}}
    components = {name: Component(config=config, parameters=0, bytes=0) for name, config in configs.items()}
    folder = ModelFolder(name="wan", index={}, components=components)
    facts = ModelFacts(spatial=16, temporal=4, fps=16, height=480, width=832, defaults={})
    request = resolve(method, facts, "a red ball", seconds=60, seed=0)
    with Allocations() as allocated:
        planned = estimate_memory(folder, request, "bfloat16").cache
    if method in QUEUES:
        assert planned == 2 * (10 + 42) * 16 * 60 * 104 * 4  # latents and velocities of context and queue
    else:
        keys_and_values = 2 * 30 * request.policy().capacity * 30 * 52 * 12 * 128 * 2
        assert 1e9 < keys_and_values <= planned < 2.5 * keys_and_values
    assert allocated.largest < 1e6


def test_a_folder_is_read_without_its_weights(tiny_model_folder: Path) -> None:
    folder = read_model_folder(tiny_model_folder)
    assert folder is not None
    assert (folder.spatial, folder.vae_factor, folder.temporal, folder.dim) == (32, 16, 4, 24)
    assert read_model_folder("owner/name") is None


def test_words_for_sizes_and_times() -> None:
    assert [human_bytes(size) for size in (12, 1234, 1234567, 5.6e9)] == ["12 B", "1.2 kB", "1.2 MB", "5.6 GB"]
    assert [clock(seconds) for seconds in (0.4, 59.6, 61, 3725)] == ["0:00", "1:00", "1:01", "1:02:05"]
