"""Ours and every peer augment as many images as they say, to the same shape and dtype."""

import multiprocessing

import pytest
import torch

from fastcifar.bench import augment, peers
from fastcifar.data.resident import ResidentLoader
from fastcifar.recipe import load_recipe

CPU = torch.device("cpu")
SEED = load_recipe("seed", ["train.precision=bf16"]).augment


@pytest.mark.parametrize("make", [augment.ours, augment.v2, augment.kornia])
def test_a_round_gives_every_batch_augmented(make):
    if make is augment.kornia:
        pytest.importorskip("kornia", reason="kornia is not installed")
    with make(SEED, 4, 3, CPU, torch.bfloat16) as work:
        batches = work.run()
        again = work.run()
    assert work.amount == 12
    assert [(batch.shape, batch.dtype) for batch in batches] == [((4, 3, 32, 32), torch.bfloat16)] * 3
    assert make is augment.ours or not all(map(torch.equal, batches, again))  # ours draws by epoch and sample


def test_pil_works_in_a_process_for_each_core_on_as_many_images_in_all():
    with augment.pil(SEED, 3) as work:
        work.run()
        assert len(multiprocessing.active_children()) == peers.CORES
    assert 3 <= work.amount < 3 + peers.CORES
    assert not multiprocessing.active_children()


def test_both_policies_are_measured_at_each_batch_size(setting):
    titles = [case.title for case in augment.cases(setting)]
    assert titles == ["seed policy, batch 8", "basic policy, batch 8"]


@pytest.mark.gpu
def test_captured_batches_are_those_of_the_loader():
    case = SEED, 4, 3, torch.device("cuda"), torch.bfloat16
    with augment.ours(*case) as ours, augment.graph(*case) as graph:
        assert all(map(torch.equal, graph.run(), ours.run()))
        assert graph.amount > ours.amount


def test_a_captured_batch_is_the_loader_alone(recipe, monkeypatch):
    """Nothing that moves a position on is timed with it, and the batches are still different ones."""
    monkeypatch.setattr(augment, "captured", lambda run: run)
    case = recipe.augment, 4, 3, torch.device("cpu"), torch.float32
    _, run = augment._loader(*case)
    expected = run()
    monkeypatch.setattr(ResidentLoader, "batch", lambda *_: pytest.fail("it writes its position first"))
    with augment.graph(*case) as work:
        assert all(map(torch.equal, work.run(), expected))
