"""Parity case kinds ``radial_mask`` and ``radial_attention``: block masks, and attention under them with gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file

from longvid.kernels.attention import block_sparse_attention
from longvid.kernels.blocks import BlockCSR, uniform_starts
from longvid.kernels.radial import RadialSpec, radial_blocks, rollout_blocks

HALF_NEAR_COMMIT = "af371ca"  # the published Wan convention before 2025-11-11 saw half a frame at distance 1


def spec_of(case: dict[str, Any]) -> RadialSpec:
    """The rule that a case was recorded with."""
    make = {"wan": RadialSpec.wan, "hunyuan": RadialSpec.hunyuan}[case.get("model", "wan")]
    names = ("decay", "block", "floor", "split_threshold", "sink_frames", "anchor")
    changes = {name: case[name] for name in names if name in case}
    half_near = str(case.get("commit", "")).startswith(HALF_NEAR_COMMIT) and case.get("model", "wan") == "wan"
    return make(**changes, half_near=half_near)


def blocks_of(case: dict[str, Any]) -> BlockCSR:
    """The case's block list, built by longvid."""
    tokens = case["tokens_per_frame"]
    if "key_frames" in case:
        return rollout_blocks(case["query_frames"], case["key_frames"], tokens, spec_of(case))
    return radial_blocks(case["frames"], tokens, spec_of(case), total=case.get("total"))


def run_radial_mask(case: dict[str, Any], directory: Path) -> float:
    """Number of blocks that differ from the recorded mask (0 or a failure), and its recorded count of kept blocks."""
    recorded = load_numpy(directory / case["file"])[case["tensor"]].astype(bool)
    ours = blocks_of(case)
    if ours.to_dense().shape != recorded.shape:
        return float("inf")
    return float((ours.to_dense() != recorded).sum() + abs(ours.nnz - case.get("nnz", ours.nnz)))


def run_radial_attention(case: dict[str, Any], directory: Path) -> float:
    """Largest difference of output, log-sum-exp and the gradients of q, k and v."""
    tensors = load_file(directory / case["file"])
    part = {name: tensors[f"{case['tensor']}.{name}"] for name in ("q", "k", "v")}
    q, k, v = (part[name].requires_grad_() for name in ("q", "k", "v"))
    blocks = _mask_blocks(case, directory, tensors, q.shape[2], k.shape[2])
    out, lse = block_sparse_attention(q, k, v, blocks, scale=case.get("scale"), return_lse=True)
    errors = [_difference(out, tensors[f"{case['tensor']}.out"])]
    if f"{case['tensor']}.lse" in tensors:
        errors.append(_difference(lse, tensors[f"{case['tensor']}.lse"]))
    if f"{case['tensor']}.dout" in tensors:
        gradients = torch.autograd.grad(out, (q, k, v), tensors[f"{case['tensor']}.dout"])
        errors += [_difference(g, tensors[f"{case['tensor']}.d{n}"]) for g, n in zip(gradients, "qkv")]
    return max(errors)


def _mask_blocks(case: dict[str, Any], directory: Path, tensors: dict[str, Any], queries: int, keys: int) -> BlockCSR:
    """The mask of an attention case: rebuilt from its own case's parameters, else taken as recorded.

    Tail padding is not attended: the block list is cut to the tokens there are.
    """
    others = json.loads((directory / "cases.json").read_text())
    rule = next((c for c in others if c.get("kind") == "radial_mask" and c["tensor"] == case["mask"]), None)
    if rule is None and "tokens_per_frame" in case:
        rule = case
    if rule is not None:
        dense = blocks_of(rule).to_dense()
    elif f"{case['tensor']}.mask" in tensors:
        dense = tensors[f"{case['tensor']}.mask"].numpy()
    else:
        dense = load_numpy(directory / "radial_masks.safetensors")[case["mask"]]
    block = case["block"]
    return BlockCSR.from_dense(np.asarray(dense), uniform_starts(queries, block), uniform_starts(keys, block))


def _difference(ours: torch.Tensor, recorded: torch.Tensor) -> float:
    if ours.shape != recorded.shape or not bool(torch.equal(ours.isfinite(), recorded.isfinite())):
        return float("inf")
    return (ours.detach() - recorded).nan_to_num(0, 0, 0).abs().max().item()


RUNNERS = {"radial_mask": run_radial_mask, "radial_attention": run_radial_attention}
