"""States of rollouts: what must be as it was when they are loaded, and what may differ."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from accelerate import cpu_offload

from longvid.errors import InputError

PROMPT = "a red ball bounces over green hills"


def rollout_of(pipe: Any, method: str, overrides: dict[str, Any] | None = None, blocks: int = 0) -> Any:
    rollout = pipe.use_method(method, overrides).rollout(PROMPT, seed=0)
    for _ in range(blocks):
        next(rollout)
    return rollout


def radial(recent: int) -> dict[str, Any]:
    return {"cache": {"policy": "radial", "recent": recent}}


@pytest.mark.parametrize(
    ("method", "saved", "loaded", "message"),
    [
        ("reward-forcing", {}, {"cache": {"ema_alpha": 0.9}}, "cache.ema_alpha=0.9: the saved rollout used 0.999"),
        ("deep-forcing", {}, {"cache": {"sink": 5}}, "cache.sink=5: the saved rollout used 10"),
        ("deep-forcing", {}, {"cache": {"max_reuse": 3}}, "cache.max_reuse=3: the saved rollout used 7"),
        ("self-forcing", radial(4), radial(8), "cache.recent=8: the saved rollout used 4"),
        ("self-forcing", {}, {"attention": {"kind": "radial"}}, "attention.kind='radial': the saved rollout used 'd"),
        ("self-forcing", {}, {"attention": {"recency": 4.0}}, "attention.recency=4.0: the saved rollout used 0.0"),
        ("fifo", {}, {"attention": {"kind": "radial"}}, "attention.kind='radial': the saved rollout used 'dense'"),
        ("fifo", {}, {"schedule": {"num_partitions": 3}}, "schedule.num_partitions=3: the saved rollout used 2"),
        ("fifo", {}, {"schedule": {"tail_gain": 0.5}}, 'additions="Additions(tail=CoherentTail(gain=0.5'),
    ],
)
def test_a_state_of_another_method_is_refused_by_name(
    make_tiny_pipe: Any, method: str, saved: dict[str, Any], loaded: dict[str, Any], message: str
) -> None:
    pipe = make_tiny_pipe(method, train_frames=3)
    state = rollout_of(pipe, method, saved).state_dict()
    with pytest.raises(InputError, match=re.escape(message)):
        rollout_of(pipe, method, loaded).load_state_dict(*state)


@pytest.mark.parametrize("method", ["self-forcing", "fifo"])
def test_a_state_of_other_weights_is_refused(make_tiny_pipe: Any, method: str) -> None:
    state = rollout_of(make_tiny_pipe(method, train_frames=3), method).state_dict()
    other = rollout_of(make_tiny_pipe(method, train_frames=3, seed=5), method)
    with pytest.raises(InputError, match=r"weights='.+': the saved rollout used '.+'; load the same checkpoint"):
        other.load_state_dict(*state)


@pytest.mark.parametrize("method", ["self-forcing", "fifo"])
def test_a_state_goes_to_a_machine_with_other_kernels_and_less_memory(make_tiny_pipe: Any, method: str) -> None:
    here, there = (make_tiny_pipe(method, train_frames=3) for _ in range(2))
    cpu_offload(there.transformer, torch.device("cpu"))  # its weights lie on "meta" between calls
    own = {"attention": {"backend": "native", "strict": True}, "schedule": {"window_batch": 1}}
    for pipe, overrides, other, others in ((here, {}, there, own), (there, own, here, {})):
        rollout = rollout_of(pipe, method, overrides, blocks=1)
        again = rollout_of(other, method, others)
        again.load_state_dict(*rollout.state_dict())
        torch.testing.assert_close(next(again).latents, next(rollout).latents, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["deep-forcing", "fifo"])
def test_a_state_of_a_version_that_saved_fewer_settings_is_loaded(make_tiny_pipe: Any, method: str) -> None:
    pipe = make_tiny_pipe(method, train_frames=3)
    rollout = rollout_of(pipe, method, blocks=2)
    tensors, meta = rollout.state_dict()
    newer = re.compile(r"(cache|attention|scenes|schedule|additions)\.|weights|dtype")
    meta["settings"] = {name: value for name, value in meta["settings"].items() if not newer.match(name)}
    if method == "fifo":
        meta["settings"]["window_batch"] = 0
        with pytest.raises(InputError, match=r"schedule=.+num_partitions=3.+: the saved rollout used"):
            rollout_of(pipe, method, {"schedule": {"num_partitions": 3}}).load_state_dict(tensors, meta)
    again = rollout_of(pipe, method)
    again.load_state_dict(tensors, meta)
    for one, other in itertools.islice(zip(again, rollout, strict=True), 3):
        assert torch.equal(one.latents, other.latents)
