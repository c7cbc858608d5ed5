"""Plain PyTorch trains on every batch, scores every image, and leaves no process behind."""

import dataclasses
import multiprocessing

import pytest
import torch

from fastcifar.bench.peers import Unavailable
from fastcifar.bench.plain import PlainTraining, plain_optimizer
from fastcifar.bench.setting import random_dataset
from fastcifar.models import build_model

CPU = torch.device("cpu")


@pytest.fixture
def small(recipe):
    """Recipe with training batches of 4 and scoring batches of 3."""
    train, evaluate = (dataclasses.replace(recipe.train, batch_size=4), dataclasses.replace(recipe.evaluate, batch_size=3))
    return dataclasses.replace(recipe, train=train, evaluate=evaluate)


def test_an_epoch_takes_a_step_for_each_whole_batch_and_scores_every_image(small, tmp_path):
    plain = PlainTraining(small, CPU)
    plain.load(random_dataset(10, 5), tmp_path)
    before = [parameter.clone() for parameter in plain.model.parameters()]
    score = plain.epoch()
    steps = {buffer.item() for name, buffer in plain.model.named_buffers() if name.endswith("num_batches_tracked")}
    assert steps == {2}
    assert round(score * 5, 4) in range(6)
    assert not any(map(torch.equal, before, plain.model.parameters()))
    assert plain.model.training


def test_its_workers_end_when_it_is_deleted(small, tmp_path):
    plain = PlainTraining(small, CPU)
    plain.load(random_dataset(10, 5), tmp_path)
    plain.epoch()
    assert multiprocessing.active_children()
    del plain
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_the_optimizer_is_pytorchs_own_with_the_recipes_numbers(recipe, name, kind):
    config = dataclasses.replace(recipe.optimizer, name=name)
    optimizer = plain_optimizer(build_model(recipe.model), config)
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (config.lr, config.weight_decay)
    assert not group["fused"]


def test_an_optimizer_that_pytorch_lacks_is_unavailable_and_named(recipe):
    config = dataclasses.replace(recipe.optimizer, name="muon")
    with pytest.raises(Unavailable, match="muon"):
        plain_optimizer(build_model(recipe.model), config)
