"""Ours and every peer augment as many images as they say, to the same shape and dtype."""

import multiprocessing

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


def test_pil_runs_in_one_process_per_core_on_all_images_together():
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
    """Setting the position is not captured with it, and yet every batch is another one."""
    monkeypatch.setattr(augment, "captured", lambda run: run)
    case = recipe.augment, 4, 3, torch.device("cpu"), torch.float32
    _, run = augment._loader(*case)
    expected = run()
    monkeypatch.setattr(ResidentLoader, "batch", lambda *_: pytest.fail("it sets its position first"))
    with augment.graph(*case) as work:
        assert all(map(torch.equal, work.run(), expected))


class Operators(TorchDispatchMode):
    """Lists the operators that run in its context."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **kwargs or {})


def test_between_two_captured_batches_nothing_runs(recipe, monkeypatch):
    """Every operator of the device in a graph is a kernel that its time includes."""
    monkeypatch.setattr(augment, "captured", lambda run: run)
    case = recipe.augment, 4, 3, torch.device("cpu"), torch.float32
    loader, _ = augment._loader(*case)
    with Operators() as alone:
        loader.load()
    with augment.graph(*case) as work, Operators() as all_batches:
        work.run()
    assert all_batches.names == 3 * alone.names
