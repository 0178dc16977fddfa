"""Looking into a FrameKVCache from outside: integrity, exact snapshot and restore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longvid.errors import InputError

from .policies.participative import ParticipativePolicy

if TYPE_CHECKING:
    from .frame_cache import FrameKVCache


def check_integrity(cache: FrameKVCache) -> None:
    """Raise RuntimeError when the bookkeeping contradicts itself or a resident value is not finite."""
    problems = _token_problems(cache) if cache._compress else _frame_problems(cache)
    if problems:
        raise RuntimeError("cache: " + "; ".join(problems))


def _frame_problems(cache: FrameKVCache) -> list[str]:
    problems = []
    order, policy, t = cache._order, cache.policy, cache.tokens_per_frame
    slots = [cache._slots.get(frame, -1) for frame in order]
    if sorted(cache._slots) != sorted(order):
        problems.append("frames in order and frames in slots differ")
    if len(set(slots)) != len(slots) or any(not 0 <= slot < policy.capacity for slot in slots):
        problems.append(f"slots {slots} collide or leave the storage")
    if set(slots) & set(cache._own_slots):
        problems.append("the open block would overwrite a resident frame")
    if order != sorted(order):
        problems.append(f"frames {order} are not in temporal order")
    if slots[: policy.sink] != list(range(min(policy.sink, len(slots)))):
        problems.append("sink frames are not in the first slots")
    for slot in slots:
        span = slice(slot * t, (slot + 1) * t)
        if not bool(torch.isfinite(cache._keys[:, :, span]).all() & torch.isfinite(cache._values[:, :, span]).all()):
            problems.append(f"slot {slot}: a key or value is not finite")
    return problems


def _token_problems(cache: FrameKVCache) -> list[str]:
    problems = []
    for i, store in enumerate(cache.layers):
        selector = store.selector
        assert selector is not None
        frames = selector.frames[:, : selector.length]
        if selector.length > store.keys.shape[1]:
            problems.append(f"layer {i} holds {selector.length} tokens in {store.keys.shape[1]}")
        if bool((frames[:, 1:] < frames[:, :-1]).any()):
            problems.append(f"layer {i}: tokens are not in temporal order")
        if not bool(torch.isfinite(store.keys[:, : selector.length]).all()):
            problems.append(f"layer {i}: a key is not finite")
    return problems


def _per_head(cache: FrameKVCache) -> bool:
    return isinstance(cache.policy, ParticipativePolicy) and cache.policy.per_head


def take_snapshot(cache: FrameKVCache) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if cache.open_block:
        raise InputError(f"snapshot(): block {list(cache.open_block)} is open; commit or abort it first")
    if cache._compress:
        tokens = max(selector.length for selector in cache._selectors)
    else:
        tokens = (max(cache._slots.values()) + 1) * cache.tokens_per_frame if cache._slots else 0
    tensors = {"keys": cpu_copy(cache._keys[:, :, :tokens]), "values": cpu_copy(cache._values[:, :, :tokens])}
    if cache._raw is not None:
        tensors["raw"] = cpu_copy(cache._raw[:, :, : min(tokens, cache._raw.shape[2])])
    if cache._merged:
        tensors["master_keys"], tensors["master_values"] = map(cpu_copy, cache._masters)
    meta: dict[str, Any] = {
        "policy": cache.policy.name,
        "capacity": cache.policy.capacity,
        "per_head": _per_head(cache),
        "tokens": tokens,
        "order": list(cache._order),
        "slots": [cache._slots[frame] for frame in cache._order],
        "phases": list(cache._phases),
        "memory": dict(cache._memory),
        "merged": list(cache._merged),
    }
    for i, selector in enumerate(cache._selectors):
        own, facts = selector.snapshot()
        tensors |= {f"selector.{i}.{name}": cpu_copy(tensor) for name, tensor in own.items()}
        meta[f"selector.{i}"] = facts
    return tensors, meta


def restore_snapshot(cache: FrameKVCache, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    own = {"policy": cache.policy.name, "capacity": cache.policy.capacity, "per_head": _per_head(cache)}
    for name, mine in own.items():
        theirs = meta.get(name, False) if name == "per_head" else meta[name]  # older snapshots know one choice only
        if theirs != mine:
            raise InputError(f"{name}={mine!r}: the snapshot was taken with {theirs!r}; restore with the same settings")
    tokens = meta["tokens"]
    expected = (*cache._keys.shape[:2], tokens, *cache._keys.shape[3:])
    if tuple(tensors["keys"].shape) != expected:
        raise InputError(f"keys: the snapshot has shape {tuple(tensors['keys'].shape)}, this cache {expected}")
    if tensors["keys"].dtype != cache._keys.dtype:
        raise InputError(f"keys: the snapshot is {tensors['keys'].dtype}, this cache {cache._keys.dtype}")
    cache.reset()
    cache._keys[:, :, :tokens] = tensors["keys"]
    cache._values[:, :, :tokens] = tensors["values"]
    if cache._raw is not None:
        cache._raw[:, :, : tensors["raw"].shape[2]] = tensors["raw"]
    if meta["merged"]:
        cache.set_masters(meta["merged"], tensors["master_keys"], tensors["master_values"])
    cache._order = list(meta["order"])
    cache._slots = dict(zip(cache._order, meta["slots"], strict=True))
    cache._phases = list(meta["phases"])
    cache._memory = dict(meta["memory"])
    for i, selector in enumerate(cache._selectors):
        prefix = f"selector.{i}."
        named = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
        selector.restore(named, meta[f"selector.{i}"])


def cpu_copy(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, as safetensors takes it."""
    return tensor.detach().to("cpu", copy=True).contiguous()
