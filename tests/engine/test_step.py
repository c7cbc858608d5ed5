"""A training step: what it computes, and that its back ends agree."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from helpers import make_step, with_part, with_train

from fastcifar.data.resident import ResidentLoader
from fastcifar.engine import step as steps
from fastcifar.engine.backends import build_step
from fastcifar.models import build_model
from fastcifar.optim.optimizers import build_optimizer
from fastcifar.optim.schedules import lr_table
from fastcifar.recipe import ImageSize

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
"""Of losses. Against float64, float32's rounding was seen to grow to 6e-7 of them in ten of these steps; another order of sums
does as much, and the tolerance leaves other instruction sets a hundred times that.
"""


@pytest.fixture
def recipe(recipe):
    """Without dropout, whose draws differ between back ends."""
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dropout=0.0))


def test_the_step_is_the_training_loop_one_would_write_by_hand(recipe, dataset):
    model, step = make_step(recipe, dataset)
    plain = copy.deepcopy(model)
    config = recipe.optimizer
    optimizer = torch.optim.SGD(plain.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    loader = ResidentLoader(dataset.train, recipe.augment, batch_size=recipe.train.batch_size, seed=recipe.train.seed)
    table = lr_table(recipe.schedule, config.lr, recipe.train.epochs, len(loader))
    losses = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        for images, labels in loader:
            optimizer.param_groups[0]["lr"] = table[len(losses)].item()
            loss = F.cross_entropy(plain(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    step.run(len(loader))
    step.run(len(loader))
    torch.testing.assert_close(step.losses[: len(losses)], torch.tensor(losses), **TOLERANCE)
    assert step.losses[len(losses) :].isnan().all()


def test_correct_counts_the_current_epoch_only(recipe, dataset):
    _, step = make_step(recipe, dataset)
    length = len(step.loader)
    step.run(length)
    assert 0 <= int(step.correct) <= length * recipe.train.batch_size
    step.correct.fill_(10**6)
    step.run(1)
    assert int(step.correct) <= recipe.train.batch_size


def test_seeking_gives_the_batches_of_that_step(recipe, dataset):
    """A model that is never changed has at step s the same loss, whether it came there or was sent."""
    still = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, lr=1e-30, weight_decay=0.0))
    _, walked = make_step(still, dataset)
    _, sent = make_step(still, dataset)
    length = len(walked.loader)
    walked.run(length + 3)
    sent.seek(length + 1)
    sent.run(2)
    assert torch.equal(sent.losses[length + 1 : length + 3], walked.losses[length + 1 : length + 3])
    assert sent.losses[: length + 1].isnan().all()


@pytest.mark.parametrize("part", [None, "sam", "image_sizes"])
def test_compiled_equals_eager(recipe, dataset, part):
    recipe = with_part(recipe, part) if part else recipe
    _, eager = make_step(recipe, dataset)
    _, compiled = make_step(recipe, dataset, "compiled")
    for step in (eager, compiled):
        step.run(4)
    torch.testing.assert_close(compiled.losses[:4], eager.losses[:4], **TOLERANCE)


def test_images_have_the_size_of_their_epoch(recipe, dataset, monkeypatch):
    recipe = with_train(recipe, epochs=4, image_sizes=(ImageSize(8, 0.25), ImageSize(12, 0.75)))
    _, step = make_step(recipe, dataset)
    sides, forward = [], step.forward
    monkeypatch.setattr(step, "forward", lambda images, labels: (sides.append(images.shape[2:]), forward(images, labels))[1])
    step.run(len(step.losses))
    length = len(step.loader)
    assert sides == [(8, 8)] * length + [(12, 12)] * 2 * length + [(16, 16)] * length


def test_sam_takes_the_gradient_uphill(recipe, dataset):
    """Against the paper's two passes, written with autograd.grad and SGD alone."""
    recipe = with_part(recipe, "sam")
    model, step = make_step(recipe, dataset)
    plain, rho, config = copy.deepcopy(model), recipe.optimizer.sam_rho, recipe.optimizer
    optimizer = torch.optim.SGD(plain.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    loader = ResidentLoader(dataset.train, recipe.augment, batch_size=recipe.train.batch_size, seed=recipe.train.seed)
    weights = list(plain.parameters())
    for index in range(3):
        images, labels = loader.batch(index)
        gradients = torch.autograd.grad(F.cross_entropy(plain(images), labels), weights)
        length = sum((gradient**2).sum() for gradient in gradients).sqrt()
        uphill = copy.deepcopy(plain)
        for weight, gradient in zip(uphill.parameters(), gradients, strict=True):
            weight.data += rho * gradient / length
        F.cross_entropy(uphill(images), labels).backward()
        for weight, other in zip(weights, uphill.parameters(), strict=True):
            weight.grad = other.grad
        optimizer.step()
    step.run(3)
    for (name, tensor), theirs in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_an_epoch_prefers_the_images_of_high_loss(recipe, dataset):
    recipe = with_train(recipe, keep=0.7)
    _, step = make_step(recipe, dataset)
    loader, count = step.loader, len(dataset.train.labels)
    step.run(len(loader))
    seen = loader.image_losses.isfinite()
    assert seen.sum() == len(loader) * recipe.train.batch_size
    step.run(1)
    assert set(range(count)) - set(seen.nonzero().flatten().tolist()) <= set(loader.order.tolist())


def test_a_mark_hears_of_every_phase_in_order(recipe, dataset):
    phases = []
    model = build_model(recipe.model)
    loader = ResidentLoader(dataset.train, recipe.augment, batch_size=16)
    step = build_step(model, build_optimizer(model, recipe.optimizer), loader, recipe, mark=phases.append)
    step.run(2)
    assert phases == ["begin", "augment", "forward", "loss", "backward", "optimizer"] * 2


def test_what_cannot_be_compiled_is_trained_eagerly_and_says_why(recipe, dataset, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such\nbackend")

    monkeypatch.setattr(steps, "compile_static", lambda function: refuse)
    _, eager = make_step(recipe, dataset)
    _, step = make_step(recipe, dataset, "compiled")
    step.warm_up()
    for one in (eager, step):
        one.run(4)
    assert (step.backend, step.failure) == ("eager", "torch.compile failed: no such")
    assert torch.equal(step.losses[:4], eager.losses[:4])


def test_what_fails_with_the_options_that_were_asked_for_is_compiled_with_plain_ones(recipe, dataset, monkeypatch):
    from torch._inductor import config

    def fail_if_tuned(function):
        def compiled(*arguments):
            if config.max_autotune:
                raise RuntimeError("no valid triton configs")
            return function(*arguments)

        return compiled

    monkeypatch.setattr(steps, "compile_static", fail_if_tuned)
    _, eager = make_step(recipe, dataset)
    _, step = make_step(recipe, dataset, "compiled")
    with config.patch(max_autotune=True):
        step.warm_up()
    for one in (eager, step):
        one.run(4)
    assert (step.backend, step.failure) == ("compiled", "")
    assert "no valid triton configs" in step.note
    assert torch.equal(step.losses[:4], eager.losses[:4])


def test_the_tenth_model_of_a_process_is_compiled_as_the_first(monkeypatch):
    """Dynamo stops compiling a code object after eight times."""
    compiled = []
    compile_ = torch.compile
    backend = lambda graph, inputs: (compiled.append(graph), graph.forward)[1]  # noqa: E731
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=backend, **options))

    def make(number):
        model = torch.nn.Linear(2, 2)

        def forward(x):
            return model(x) + number

        return steps.compile_static(forward)

    for number in range(10):
        make(float(number))(torch.ones(1, 2))
    assert len(compiled) == 10
