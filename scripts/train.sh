#!/usr/bin/env bash
# Prepare CIFAR-10 and train on it: the seed recipe on a CUDA GPU, else the quick recipe.
# Where CIFAR-10 is neither given nor downloadable, train on the synthetic set; the first and the last line say so.
set -euo pipefail
cd "$(dirname "$0")/.."

fastcifar() { .venv/bin/python -m fastcifar "$@"; }

data=betons
code=0
[ ! -t 2 ] || printf 'looking for CIFAR-10; it is downloaded (170 MB) where it is not given\r' >&2
said=$(fastcifar prep --out "$data" 2>&1) || code=$?
[ ! -t 2 ] || printf '\033[K' >&2  # erase that line
if [ "$code" = 2 ] && [[ $said == *"could not be downloaded"* ]] && [ -e "$data/dataset.json" ]; then
    echo "training on $data as it was prepared before: CIFAR-10 is neither given nor downloadable now"
elif [ "$code" = 2 ] && [[ $said == *"could not be downloaded"* ]]; then
    data=betons-synthetic
    substitute="SYNTHETIC DATA, not CIFAR-10, which is neither given nor downloadable; give it as FASTCIFAR_SOURCE=DIR"
    trap 'echo "$substitute"' EXIT
    echo "$substitute"
    echo "$said"
    fastcifar prep synthetic --out "$data"
else
    echo "$said"
    [ "$code" = 0 ] || exit "$code"
fi

if [ "$(.venv/bin/python -c 'import torch; print(torch.cuda.is_available())')" = True ]; then
    recipe=seed why="PyTorch sees a CUDA GPU"
else
    recipe=quick why="PyTorch sees no CUDA GPU"
fi
echo "training the recipe $recipe: $why"
fastcifar train --recipe "$recipe" --data "$data" "$@"
