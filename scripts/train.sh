#!/usr/bin/env bash
# Prepare CIFAR-10 and train on it: the seed recipe where there is a CUDA GPU, the cpu recipe where there is none.
# Where CIFAR-10 is neither given nor downloadable, train on the built-in synthetic set instead and say so, first and last.
set -euo pipefail
cd "$(dirname "$0")/.."

fastcifar() { .venv/bin/python -m fastcifar "$@"; }

data=betons
substitute=
if [ -z "${FASTCIFAR_SOURCE:-}" ] && [ ! -e data ] && ! reason=$(fastcifar prep --out "$data" 2>&1); then
    data=betons-synthetic
    substitute="SYNTHETIC DATA, not CIFAR-10, which is neither given nor downloadable; give it as FASTCIFAR_SOURCE=DIR"
    echo "$substitute"
    echo "$reason"
    fastcifar prep synthetic --out "$data"
else
    fastcifar prep --out "$data"
fi

if .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    recipe=seed
    echo "training the seed recipe: PyTorch sees a CUDA GPU"
else
    recipe=cpu
    echo "training the cpu recipe: PyTorch sees no CUDA GPU"
fi
fastcifar train --recipe "$recipe" --data "$data" "$@"
[ -z "$substitute" ] || echo "$substitute"
