#!/usr/bin/env bash
# Train the embedded model's students one after the other, each from the one that its paper starts from:
#
#   scripts/train_students.sh [FOLDER]      checkpoints, logs and adapters; runs/students when not given
#
# One thread of a CPU, about an hour. A run that was stopped goes on where it was. The adapters are left in FOLDER/out; those
# that are worth it are copied to longvid/models/embedded/students by hand (docs/training.md).
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs/students}
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true

train() { # KIND STEPS [INITIAL]
  "$python" scripts/train_student.py --kind "$1" --model embedded --steps "$2" --threads 1 --log-every 5 --save-every 20 \
    --config "configs/students/$1.yaml" --folder "$runs/$1" --out "$runs/out/$1" --overwrite \
    ${3:+--initial "$runs/out/$3"}
}

train self-forcing 600
train rolling-forcing 400 self-forcing
train reward-forcing 140 self-forcing
