"""Tile sizes, warps and pipeline depth of the attention kernels: those that compile without register spills.

Chosen by compiling every candidate ahead of time for each architecture (scripts/aot_compile.py, docs/kernels.md): 128
query rows want 8 warps (4 spill); a deeper pipeline than listed does not fit the shared memory of the architecture.
float32 is multiplied by ordinary multiply-adds, whose operands live in registers: small tiles, and slow.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tiling:
    """One launch configuration: query rows, keys, warps a program, stages of the load pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def _next_power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def tiling(
    kernel: str, arch: int | str, head_dim: int, element_size: int, longest_q: int = 128, longest_kv: int = 64
) -> Tiling:
    """Configuration of `kernel` ("forward", "backward_q", "backward_kv") on `arch`.

    arch: compute capability times ten (90) or an AMD name ("gfx942"). element_size: bytes of an input element.
    longest_q, longest_kv: the longest query block and key run; shorter ones take smaller tiles (at least 16).
    """
    amd = isinstance(arch, str)
    wide = head_dim > 128
    full = element_size == 4
    if kernel == "forward":
        if full:
            chosen = Tiling(16, 32, 4, 1) if wide else Tiling(32, 32, 4, 1) if amd else Tiling(32, 64, 8, 2)
        elif wide:
            chosen = Tiling(64, 32, 4, 2)
        else:
            chosen = Tiling(128, 64, 8, 3) if longest_q > 64 else Tiling(64, 64, 4, 3)
    elif kernel == "backward_q":
        if full:
            chosen = Tiling(16, 32, 4, 1 if wide else 2)
        elif wide:
            chosen = Tiling(32, 32, 4, 2)
        else:
            chosen = Tiling(64, 64, 8 if arch == 120 else 4, 2)
    elif kernel == "backward_kv":
        if full:
            chosen = Tiling(16, 32, 4, 1 if wide else 2)
        elif wide:
            chosen = Tiling(32, 32, 4, 2)
        else:
            chosen = Tiling(32, 64, 4, 1) if amd else Tiling(64, 64, 8, 2)
    else:
        raise ValueError(f"kernel={kernel!r}: must be forward, backward_q or backward_kv")
    block_m = min(chosen.block_m, max(16, _next_power(longest_q)))
    block_n = min(chosen.block_n, max(16, _next_power(longest_kv)))
    warps = chosen.num_warps if block_m == chosen.block_m else 4
    return Tiling(block_m, block_n, warps, 1 if amd else chosen.num_stages)
