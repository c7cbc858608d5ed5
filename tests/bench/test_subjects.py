"""Every subject runs from end to end; an invalid request is one clear line."""

import dataclasses

import pytest
import torch

from fastcifar.bench import SUBJECTS, TINY, choose_subjects, make_cases, run
from fastcifar.bench.setting import ON_CPU, ON_CUDA
from fastcifar.runtime.errors import UserError

CPU = torch.device("cpu")
UNITS = {"step": "steps/s", "epoch": "s", "train": "s"}


def test_subjects_come_once_and_in_their_order():
    assert choose_subjects(["step", "prep", "step"]) == ["prep", "step"]
    assert choose_subjects(["all", "step"]) == list(SUBJECTS)


def test_an_unknown_subject_names_the_nearest():
    with pytest.raises(UserError, match="bench augmnet: no such subject; did you mean 'augment'"):
        choose_subjects(["augmnet"])


def test_a_batch_of_one_is_refused(recipe):
    with pytest.raises(UserError, match="batch_size = 1: must be at least 2"):
        run(["step"], CPU, recipe, sizes=TINY, batch_sizes=[1])


@pytest.mark.parametrize("sizes", [ON_CPU, ON_CUDA, TINY])
def test_every_subject_has_its_sizes(sizes):
    assert set(sizes) == set(SUBJECTS)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_titles_are_unique_within_a_subject(subject, recipe):
    titles = [case.title for case in make_cases(subject, CPU, recipe)]
    assert len(set(titles)) == len(titles)


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_subject_runs_from_end_to_end(subject, recipe, without_compiling, monkeypatch):
    monkeypatch.delenv("FASTCIFAR_SOURCE", raising=False)
    shown = []
    rows = run([subject], CPU, recipe, sizes=TINY, progress=shown.append)
    cases = make_cases(subject, CPU, recipe, sizes=TINY)
    assert shown == [f"{subject}: {case.title}" for case in cases]
    assert [row.variant for row in rows] == [implementation.name for case in cases for implementation in case.implementations]
    for row in rows:
        assert (row.subject, row.unit) == (subject, UNITS.get(subject, "images/s"))
        if row.rounds:
            assert len(row.rounds) == TINY[subject].rounds
            assert row.floor > 0
        else:
            assert "is not installed" in row.note or "no source is given" in row.note, row
    assert next(row for row in rows if row.rounds).variant == "fastcifar"
    assert all(row.ratio is None for row in rows if row.variant == "fastcifar")
    assert all(row.ratio > 0 for row in rows if row.rounds and row.variant != "fastcifar")


def test_batch_sizes_replace_those_of_the_sizes(recipe):
    cases = make_cases("step", CPU, recipe, sizes=TINY, batch_sizes=[4, 16])
    assert [case.batch_size for case in cases] == [4, 16]


def test_without_batch_sizes_it_is_the_recipes(recipe):
    sizes = {"epoch": dataclasses.replace(TINY["epoch"], batches=())}
    assert [case.batch_size for case in make_cases("epoch", CPU, recipe, sizes=sizes)] == [recipe.train.batch_size]


def test_a_policy_that_does_not_fit_the_images_is_one_clear_line(recipe):
    from fastcifar.augment import Policy, RandomCrop

    with pytest.raises(UserError, match="RandomCrop: size = 64"):
        run(["augment"], CPU, dataclasses.replace(recipe, augment=Policy((RandomCrop(64),))), sizes=TINY)


@pytest.mark.gpu
@pytest.mark.parametrize("subject", ["step", "augment", "erasing"])  # others take minutes; benchmarks/gpu_suite.py runs them
def test_a_subject_runs_on_a_gpu(subject, recipe):
    rows = run([subject], torch.device("cuda"), recipe, sizes=TINY)
    assert all(row.rounds for row in rows if row.variant.startswith("fastcifar") and row.case != "whole"), rows
