"""Compile every Triton kernel for GPUs that are not here and record registers, spills and shared memory.

    python scripts/aot_compile.py --out benchmarks/results/kernels_aot.json
    python scripts/aot_compile.py --arch 90 --only attention_forward --dump build/
    python scripts/aot_compile.py --only rotate_tokens --merge --out benchmarks/results/kernels_aot.json

Exits 1 if a kernel in its default configuration spills, or wants more shared memory than the architecture has.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from longvid.kernels.aot import ARCHITECTURES, SHARED_LIMIT, compile_specimen, digests, resources, specimens, spilled


def _only_asked_changed(before: dict[str, Any], only: list[str]) -> bool:
    """Whether every kernel that differs from the recorded table is among those compiled now."""
    changed = {name for name, digest in digests().items() if before.get("sources", {}).get(name) != digest}
    return all(any(name.startswith(part.split("/")[0]) for part in only) for name in changed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="*", default=[str(a) for a in ARCHITECTURES], help="90, 100, gfx942 ...")
    parser.add_argument("--only", nargs="*", default=[""], help="only kernels whose name contains one of these")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    parser.add_argument(
        "--merge", action="store_true", help="keep the other rows of --out: their kernels did not change"
    )
    parser.add_argument("--dump", type=Path, help="also write assembly and binaries into this folder")
    options = parser.parse_args()
    table: dict[str, dict[str, object]] = {}
    failures = 0
    before = json.loads(options.out.read_text()) if options.merge else {"kernels": {}}
    if options.merge and (before["triton"] != version("triton") or not _only_asked_changed(before, options.only)):
        parser.error(f"--merge: {options.out} has rows of another triton, or of kernels that changed; compile them too")
    for name in options.arch:
        arch: int | str = int(name) if name.isdigit() else name
        rows: dict[str, object] = {}
        for specimen in specimens(arch):
            if not any(part in specimen.name for part in options.only):
                continue
            row = resources(specimen, arch)
            too_much = row["shared_kilobytes"] > SHARED_LIMIT[arch]
            failures += bool(spilled(row) or too_much)
            verdict = "SPILLS" if spilled(row) else "SHARED MEMORY" if too_much else "ok"
            print(
                f"{name:7s} {specimen.name:44s} {row['registers']:4d} registers {row['shared_kilobytes']:6.1f} KB "
                f"{spilled(row):5d} spilled  {row['instructions']}  {verdict}",
                flush=True,
            )
            rows[specimen.name] = row
            if options.dump:
                options.dump.mkdir(parents=True, exist_ok=True)
                compiled = compile_specimen(specimen, arch)
                for kind in {"ptx", "cubin", "amdgcn", "hsaco"} & set(compiled.asm):
                    content = compiled.asm[kind]
                    path = options.dump / f"{specimen.name.replace('/', '-')}.{name}.{kind}"
                    path.write_bytes(content if isinstance(content, bytes) else content.encode())
        label = f"sm_{name}" if isinstance(arch, int) else name
        kept = before["kernels"].get(label, {}) | rows
        table[label] = {s.name: kept[s.name] for s in specimens(arch) if s.name in kept}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        limits = {f"sm_{a}" if isinstance(a, int) else a: kb for a, kb in SHARED_LIMIT.items()}
        table = before["kernels"] | table
        facts = {"triton": version("triton"), "sources": digests(), "shared_limit_kilobytes": limits, "kernels": table}
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
