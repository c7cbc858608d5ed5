"""Ours and plain PyTorch run the stated number of steps, epochs and runs."""

import dataclasses
import multiprocessing

import pytest
import torch

from fastcifar.bench import training
from fastcifar.bench.plain import PlainTraining
from fastcifar.bench.setting import Setting, Size
from fastcifar.recipe import load_recipe


def one(cases):
    (case,) = cases
    return case


def implementation(case, name):
    return next(implementation for implementation in case.implementations if implementation.name == name)


@pytest.fixture
def engines(monkeypatch):
    """The engines that were built."""
    built, build = [], training.Job.engine
    monkeypatch.setattr(training.Job, "engine", lambda job, *options: built.append(build(job, *options)) or built[-1])
    return built


@pytest.fixture
def here(monkeypatch):
    """Keep peers in this process."""
    monkeypatch.setattr(training, "in_own_process", lambda ready: ready())


def test_a_round_is_the_stated_steps_of_the_engine_for_any_number_of_rounds(setting, engines):
    with implementation(one(training.step_cases(setting)), "fastcifar").ready() as work:
        for _ in range(setting.size.rounds + 2):
            work.run()
    assert work.amount == 2
    assert torch.isfinite(engines[0].step.losses).sum() == 8
    assert "eager step" in work.note()


@pytest.mark.parametrize("name", [training.PLAIN, "eager PyTorch as the recipe"])
def test_a_round_of_a_peer_is_the_same_steps_of_the_same_model(setting, here, monkeypatch, name):
    models, build = [], training.build_model
    for module in ("training", "plain"):
        monkeypatch.setattr(f"fastcifar.bench.{module}.build_model", lambda config: models.append(build(config)) or models[-1])
    with implementation(one(training.step_cases(setting)), name).ready() as work:
        work.run()
    counts = {buffer.item() for key, buffer in models[-1].named_buffers() if key.endswith("num_batches_tracked")}
    assert counts == {work.amount} == {2}
    assert models[-1].training


def test_an_epoch_trains_on_all_and_scores_a_quarter(setting, engines):
    case = one(training.epoch_cases(setting))
    with implementation(case, "fastcifar").ready() as work:
        work.run()
    assert engines[0].loader.position == 2
    assert engines[0].evaluator("val").score().images == 4
    assert case.name == "seed, 16 images"


def test_a_run_has_the_requested_epochs_and_its_own_directory(setting):
    case = one(training.train_cases(dataclasses.replace(setting, size=Size(rounds=1, images=16, batches=(8,), epochs=3))))
    assert case.name == "seed, 3 x 16 images"
    with implementation(case, "fastcifar").ready() as work:
        for _ in range(2):
            summary = work.run()
            assert (summary.epochs, summary.steps) == (3, 6)
    assert "train" in work.note()


def test_a_plain_run_has_the_same_epochs_and_its_workers_end_with_it(setting, here, monkeypatch):
    epochs, epoch = [], PlainTraining.epoch
    monkeypatch.setattr(PlainTraining, "epoch", lambda plain: epochs.append(plain) or epoch(plain))
    case = one(training.train_cases(dataclasses.replace(setting, size=Size(rounds=1, images=16, batches=(8,), epochs=2))))
    with case.implementations[1].ready() as work:
        assert 0 <= work.run() <= 1
    assert len(epochs) == 2
    epochs.clear()
    assert not multiprocessing.active_children()


def test_the_floor_of_a_run_counts_every_pass_of_training_and_scoring(setting, peaks):
    size = Size(rounds=1, images=16, batches=(8,), epochs=3)
    case = one(training.train_cases(dataclasses.replace(setting, size=size)))
    assert "for each of 48 images and" in case.bound().of
    assert "for each of 16 scored" in case.bound().of  # 4 after each of 3 epochs, and 4 of the test split


def test_a_warm_up_of_the_learning_rate_longer_than_the_run_is_shortened():
    recipe = load_recipe("quick", ["schedule.warmup_epochs=5.0", "model.widths=[8, 8]", "train.image_sizes=[]"])
    setting = Setting(torch.device("cpu"), recipe, Size(rounds=1, images=16, batches=(8,)))
    with one(training.train_cases(setting)).implementations[0].ready() as work:
        assert work.run().steps == 2


@pytest.mark.parametrize("cases", [training.step_cases, training.epoch_cases, training.train_cases])
def test_plain_training_on_a_cpu_runs_in_its_own_process(setting, monkeypatch, cases):
    sent = []
    monkeypatch.setattr(training, "in_own_process", sent.append)
    case = one(cases(setting))
    for implementation in case.implementations[1:]:
        implementation.ready()
    assert len(sent) == 1
