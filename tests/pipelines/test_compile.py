"""torch.compile on the transformer's blocks: graphs depend on the call's shapes, not on where the video stands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo as dynamo

METHODS = ("self-forcing", "streaming-llm", "deep-forcing", "reward-forcing", "rolling-forcing")
PROMPT = "a red ball bounces over green hills"


@pytest.mark.parametrize("method", METHODS)
def test_no_graph_is_compiled_once_the_rollout_runs(make_tiny_pipe: Any, method: str) -> None:
    """The window fills up, frames are evicted, re-phased, pruned and merged: the same few graphs. The first recache
    brings its own number of frames, and graphs for any number; the second one brings none."""
    pipe = make_tiny_pipe(method, steps=[1000, 500])
    pipe.use_method(method, {"cache": {"window": 12, "sink": 3, "budget": 9, "cache_frames": 15}} if method in
                    ("deep-forcing", "rolling-forcing") else {})  # fmt: skip
    text = f"{PROMPT}[12s] | a blue box[6s] | a green star"
    expected = torch.cat([block.latents for block in pipe.rollout(text, seconds=24, seed=0)], dim=2)
    dynamo.reset()
    graphs = []

    def backend(graph: Any, example_inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    for block in pipe.transformer.blocks:
        block.forward = torch.compile(block.forward, backend=backend)
    latents, seen = [], []
    for block in pipe.rollout(text, seconds=24, seed=0):
        latents.append(block.latents)
        seen.append(len(graphs))
    dynamo.reset()
    assert seen[1] == seen[14], f"{seen}: graphs were compiled on the way"
    assert seen[22] == seen[-1], f"{seen}: graphs were compiled for the second switch"
    assert 0 < seen[1] <= seen[-1] <= 10
    torch.testing.assert_close(torch.cat(latents, dim=2), expected, atol=1e-5, rtol=0)
