"""Compiling the Triton kernels ahead of time for GPUs that are not here, and reading what the compiler made of them.

A kernel is compiled from its signature alone: argument types, compile-time constants, and the promise that pointers and
strides are multiples of 16. Without that promise on both, loads become scalar and no asynchronous copy is emitted (the
promise is what a real launch finds out by itself from the tensors it gets). Registers and spills come from the
assembler that triton bundles, so no GPU and no CUDA toolkit is needed. Not possible in a process that runs the
interpreter (TRITON_INTERPRET).
"""

from __future__ import annotations

import inspect
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from longvid.kernels.attention.tiling import tiling
from longvid.kernels.backend import BackendError, interpreting

ARCHITECTURES: tuple[int | str, ...] = (80, 86, 89, 90, 100, 120, "gfx942", "gfx950")
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99, "gfx942": 64, "gfx950": 160}  # KB a block
INSTRUCTIONS = {
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "mma_sync": r"\bmma\.sync",
    "cp_async": r"\bcp\.async",
    "mfma": r"\bv_(?:mfma|smfmac)_",
}
ELEMENT = {"bf16": 2, "fp16": 2, "fp32": 4}
FLOATS = {"scale", "scale_log2", "factor", "alpha"}
FLOAT_POINTERS = {"lse_ptr", "delta_ptr", "grad_lse_ptr", "cos_ptr", "sin_ptr", "master_ptr"}


@dataclass(frozen=True)
class Specimen:
    """One kernel with the constants of one launch. `name` is readable: attention_forward/bf16/d128/q128."""

    name: str
    kernel: str
    dtype: str
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    float_pointers: frozenset[str] = field(default_factory=frozenset)


def specimens(arch: int | str) -> Iterator[Specimen]:
    """Every kernel in its default configurations on `arch`."""
    for dtype, dims in (("bf16", (64, 128)), ("fp16", (128,)), ("fp32", (128,))):
        for dim in dims:
            for kernel in ("forward", "backward_q", "backward_kv"):
                for longest in (128, 64) if kernel == "forward" else (128,):
                    tile = tiling(kernel, arch, dim, ELEMENT[dtype], longest, 128)
                    for full in (True, False):
                        constants = {
                            "HEAD_DIM": dim,
                            "BLOCK_D": dim,
                            "BLOCK_M": tile.block_m,
                            "BLOCK_N": tile.block_n,
                            "FULL": full,
                            "PRECISION": "ieee",
                            "UPCAST": False,
                        }
                        label = f"attention_{kernel}/{dtype}/d{dim}/{tile.block_m}x{tile.block_n}"
                        yield Specimen(
                            label + ("" if full else "/ragged"),
                            f"attention_{kernel}",
                            dtype,
                            constants,
                            tile.num_warps,
                            tile.num_stages,
                        )
    yield Specimen(
        "attention_delta/bf16/d128", "attention_delta", "bf16", {"HEAD_DIM": 128, "BLOCK_D": 128, "BLOCK_M": 64}
    )
    dot = {"HEAD_DIM": 128, "BLOCK_D": 128, "BLOCK_R": 64, "BLOCK_T": 64, "PRECISION": "ieee", "UPCAST": False}
    stages = 1 if isinstance(arch, str) else 2
    yield Specimen("column_max/bf16/d128", "column_max_kernel", "bf16", dot, 4, stages, frozenset({"out_ptr"}))
    yield Specimen("column_mass/bf16/d128", "column_mass_kernel", "bf16", dot, 4, stages, frozenset({"out_ptr"}))
    wide = {"BLOCK_T": 32, "BLOCK_C": 128}
    yield Specimen("column_sum/bf16", "column_sum_kernel", "bf16", wide, 4, 3, frozenset({"q_ptr", "out_ptr"}))
    rotate = {"HALF": 64, "BLOCK_HALF": 64, "BLOCK_L": 16, "GATHER": True}
    yield Specimen("rotate_tokens/bf16/d128", "rotate_tokens_kernel", "bf16", rotate)
    yield Specimen("rotate_tokens/bf16/d128/in-order", "rotate_tokens_kernel", "bf16", rotate | {"GATHER": False})
    yield Specimen("gather_tokens/bf16", "gather_tokens_kernel", "bf16", {"BLOCK_L": 16, "BLOCK_C": 512})
    yield Specimen("ema_merge/bf16", "ema_merge_kernel", "bf16", {"BLOCK": 1024})


@cache
def _kernels() -> dict[str, Any]:
    from longvid.kernels import cache_triton
    from longvid.kernels.attention import triton_backward, triton_forward

    modules = (triton_forward, triton_backward, cache_triton)
    return {name: value for module in modules for name, value in vars(module).items() if hasattr(value, "arg_names")}


def digests() -> dict[str, str]:
    """A short hash of every kernel's source: which text a recorded table was compiled from."""
    sources = {name: inspect.getsource(kernel.fn) for name, kernel in sorted(_kernels().items())}
    return {name: sha256(source.encode()).hexdigest()[:16] for name, source in sources.items()}


def _signature(specimen: Specimen, names: list[str]) -> dict[str, str]:
    types = {}
    for name in names:
        if name in specimen.constants:
            types[name] = "constexpr"
        elif name.endswith(("start_ptr", "stop_ptr", "begin_ptr", "end_ptr", "order_ptr")):
            types[name] = "*i32"
        elif name == "index_ptr":
            types[name] = "*i64"
        elif name.endswith("_ptr"):
            single = name in FLOAT_POINTERS or name in specimen.float_pointers
            types[name] = "*fp32" if single else f"*{specimen.dtype}"
        else:
            types[name] = "fp32" if name in FLOATS else "i32"
    return types


def compile_specimen(specimen: Specimen, arch: int | str) -> Any:
    """Compile for `arch` (90, or "gfx942"); returns triton's compiled kernel, its texts in `.asm`.

    Raises BackendError in an interpreting process.
    """
    if interpreting():
        raise BackendError("TRITON_INTERPRET is set: kernels compile only in a process without it")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = _kernels()[specimen.kernel]
    names = list(function.arg_names)
    aligned = [
        i for i, n in enumerate(names) if n.endswith("_ptr") or n.startswith("stride_") or n in ("width", "count")
    ]
    source = ASTSource(
        fn=function,
        signature=_signature(specimen, names),
        constexprs=specimen.constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    target = GPUTarget("hip", arch, 64) if isinstance(arch, str) else GPUTarget("cuda", arch, 32)
    options = {"num_warps": specimen.num_warps, "num_stages": specimen.num_stages}
    return triton.compile(source, target=target, options=options)


def _tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _nvidia_resources(compiled: Any, arch: int) -> dict[str, int]:
    """Registers, stack and spilled bytes: the cubin's own table, and the assembler's report on the same PTX."""
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(compiled.asm["cubin"])
        ptx.write_text(compiled.asm["ptx"])
        usage = subprocess.run([_tool("cuobjdump"), "--dump-resource-usage", cubin], capture_output=True, text=True)
        name = re.search(r"\.target\s+(\w+)", compiled.asm["ptx"])
        assert name is not None
        assembler = _tool("ptxas-blackwell" if arch >= 100 else "ptxas")
        command = [assembler, "-v", f"--gpu-name={name.group(1)}", str(ptx), "-o", str(Path(folder, "again.cubin"))]
        report = subprocess.run(command, capture_output=True, text=True).stderr
    spills = [int(n) for n in re.findall(r"(\d+)\s+bytes spill (?:stores|loads)", report)]
    return {
        "registers": int(re.findall(r"\bREG:(\d+)", usage.stdout)[0]),
        "stack_bytes": int(re.findall(r"\bSTACK:(\d+)", usage.stdout)[0]),
        "spill_bytes": sum(spills),
    }


def _amd_resources(compiled: Any) -> dict[str, int]:
    text = compiled.asm["amdgcn"]

    def count(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", text)
        return int(found.group(1)) if found else 0

    spilled = count("vgpr_spill_count") + count("sgpr_spill_count")
    return {
        "registers": count("vgpr_count"),
        "spilled_registers": spilled,
        "scratch_bytes": count("private_segment_fixed_size"),
    }


def resources(specimen: Specimen, arch: int | str) -> dict[str, Any]:
    """What the compiler made: registers, spills, shared memory, and how many of which matrix and copy instructions."""
    compiled = compile_specimen(specimen, arch)
    amd = isinstance(arch, str)
    text = compiled.asm["amdgcn" if amd else "ptx"]
    counts = {name: len(re.findall(pattern, text)) for name, pattern in INSTRUCTIONS.items()}
    used = _amd_resources(compiled) if isinstance(arch, str) else _nvidia_resources(compiled, arch)
    return {
        "num_warps": specimen.num_warps,
        "num_stages": specimen.num_stages,
        "shared_kilobytes": round(compiled.metadata.shared / 1024, 1),
        **used,
        "instructions": {name: n for name, n in counts.items() if n},
    }


def spilled(row: dict[str, Any]) -> int:
    """Spilled bytes (NVIDIA) or registers (AMD) of one `resources` row; 0 for every default configuration."""
    return int(row.get("spill_bytes", 0) + row.get("spilled_registers", 0))
