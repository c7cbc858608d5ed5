"""The subjects of `fastcifar bench`, and how they are run."""

import dataclasses
import gc
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from fastcifar.bench import augment, erasing, loader, prep, training
from fastcifar.bench.interleaved import Case, run_interleaved
from fastcifar.bench.setting import ON_CPU, ON_CUDA, Setting, Size, random_dataset
from fastcifar.recipe import Recipe
from fastcifar.runtime.device import make_current
from fastcifar.runtime.errors import UserError, nearest
from fastcifar.runtime.measurement import Measurement

SUBJECTS: dict[str, Callable[[Setting], list[Case]]] = {
    "prep": prep.cases,
    "loader": loader.cases,
    "augment": augment.cases,
    "erasing": erasing.cases,
    "step": training.step_cases,
    "epoch": training.epoch_cases,
    "train": training.train_cases,
}


def choose_subjects(names: Iterable[str]) -> list[str]:
    """Resolve names of subjects: each once, in the order of SUBJECTS; "all" stands for all of them.

    Raises:
        UserError: there is no such subject.
    """
    asked = set(names)
    for name in asked - {"all", *SUBJECTS}:
        raise UserError(f"bench {name}: no such subject{nearest(name, ['all', *SUBJECTS])}")
    return [name for name in SUBJECTS if "all" in asked or name in asked]


def make_cases(
    subject: str,
    device: torch.device,
    recipe: Recipe,
    *,
    sizes: Mapping[str, Size] | None = None,
    batch_sizes: Sequence[int] = (),
) -> list[Case]:
    """List the cases that `run` would measure; nothing is built or started yet."""
    size = (sizes or (ON_CUDA if device.type == "cuda" else ON_CPU))[subject]
    if batch_sizes:
        size = dataclasses.replace(size, batches=tuple(batch_sizes))
    recipe, _ = recipe.at_one_size().resolved(device)  # peers have one size too
    return SUBJECTS[subject](Setting(device, recipe.fitted_to(random_dataset(1, 0).manifest), size))


def run(
    subjects: Iterable[str],
    device: torch.device,
    recipe: Recipe,
    *,
    sizes: Mapping[str, Size] | None = None,
    batch_sizes: Sequence[int] = (),
    progress: Callable[[str], None] = lambda what: None,
) -> list[Measurement]:
    """Measure subjects, with every peer that is installed.

    Args:
        subjects: names of SUBJECTS, or "all".
        device: for all but prep, which runs on the host.
        recipe: gives the policy, model, optimizer and precision.
        sizes: by subject; `fastcifar.bench.TINY` only checks that everything runs. Default: ON_CPU or ON_CUDA.
        batch_sizes: replace those of `sizes`.
        progress: called with the name of each case before it is measured.

    Raises:
        UserError: no such subject, or the recipe does not fit images of 32 x 32 pixels.
    """
    make_current(device)
    rows: list[Measurement] = []
    for subject in choose_subjects(subjects):
        for case in make_cases(subject, device, recipe, sizes=sizes, batch_sizes=batch_sizes):
            progress(f"{subject}: {case.title}")
            rows += measure(case)
    return rows


def measure(case: Case) -> list[Measurement]:
    """Run one case, then free its memory and compiled code: PyTorch stops compiling at its recompilation limit."""
    try:
        return run_interleaved(case)
    finally:
        gc.collect()
        if case.device.type == "cuda":
            torch.compiler.reset()
            torch.cuda.empty_cache()
