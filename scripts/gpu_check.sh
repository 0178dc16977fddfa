#!/usr/bin/env bash
# Correctness, then speed, of every Triton kernel on the GPU of this machine; figures go to benchmarks/results/.
#
#   scripts/gpu_check.sh [OUTPUT.json]
#
# Exits 0 when all kernels agree with their twins, 1 when one does not, 2 when python lacks what it needs (PYTHON names
# another one), 3 when there is no GPU to check on.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}

lacking() {
    echo "${python} cannot import $1: pip install -e '.[triton,test]', or set PYTHON" >&2
    exit 2
}

"$python" -c 'import torch' || lacking torch
if ! name=$("$python" -c 'import sys, torch
if not torch.cuda.is_available(): sys.exit(1)
print(torch.cuda.get_device_name().replace(" ", "-").lower())'); then
    echo "no GPU here: nothing was checked (pytest -m interpreter runs the kernels on a CPU)" >&2
    exit 3
fi
"$python" -c 'import triton, pytest' || lacking "triton and pytest"
out=${1:-benchmarks/results/kernels_${name}.json}
unset TRITON_INTERPRET

echo "== correctness on ${name}"
"$python" -m pytest -m gpu tests/kernels || exit 1
echo "== speed on ${name} -> ${out}"
"$python" benchmarks/kernels_gpu.py --out "$out" || exit 1
