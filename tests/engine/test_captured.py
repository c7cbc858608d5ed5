"""The captured step: its body needs nothing from the host, its warm-up leaves no trace, and it equals the other back ends."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from helpers import PARTS, make_step, with_part

from fastcifar.data.resident import ResidentLoader
from fastcifar.engine import captured, evaluate
from fastcifar.engine import step as steps
from fastcifar.engine.engine import Engine
from fastcifar.models import build_model
from fastcifar.runtime.distributed import process_group

TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""Of losses, relative and absolute, between kernels that sum or round in another order.

Rounding was seen to grow, against float64 on a CPU and in ten of these steps, to 6e-6 of the loss in float32 (AdamW, which
divides by small gradients; SGD: 6e-7), and to 0.06 where losses are 0.7 in bf16 (AdamW; SGD: 0.001): below 5e-2 of both kinds
together. For float32 a GPU has a hundred times that.
"""


@pytest.fixture(params=["sgd", "adamw", "muon"])
def recipe(recipe, request):
    """Without dropout, whose draws differ between back ends."""
    lr = 0.01 if request.param == "muon" else recipe.optimizer.lr
    optimizer = dataclasses.replace(recipe.optimizer, name=request.param, lr=lr)
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dropout=0.0), optimizer=optimizer)


@pytest.fixture
def uncaptured(monkeypatch):
    """Without a graph: after the warm-up, the work that it would capture runs each time."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    for module in (captured, evaluate):
        monkeypatch.setattr(module, "capture", lambda work, pool=None: work)
        monkeypatch.setattr(module, "side_stream", nullcontext)
    monkeypatch.setattr(evaluate, "separate_random_state", nullcontext)


def test_adam_is_marked_capturable_in_the_capture_and_not_in_the_warm_up(recipe, dataset, uncaptured, monkeypatch):
    """Otherwise Adam refuses the capture, or warns in the warm-up, on CUDA only."""
    _, step = make_step(recipe, dataset, "captured")
    (group, *_), told = step.optimizer.param_groups, []
    take = step._step
    monkeypatch.setattr(step, "_step", lambda: (told.append(group.get("capturable")), take()))
    step.run(1)
    warm_up, replayed = told[: steps.WARM_UP_STEPS], told[steps.WARM_UP_STEPS :]
    assert set(warm_up) == ({False} if recipe.optimizer.name == "adamw" else {None})
    assert set(replayed) == ({True} if recipe.optimizer.name == "adamw" else {None})


def test_what_is_captured_takes_the_steps_of_the_eager_one(recipe, dataset, uncaptured):
    model, eager = make_step(recipe, dataset, "eager")
    other, replayed = make_step(recipe, dataset, "captured")
    length = len(eager.loader)
    for step in (eager, replayed):
        for count in (2, length - 2, length):
            step.run(count)
    assert torch.equal(replayed.losses, eager.losses)
    assert torch.equal(replayed.correct, eager.correct)
    for (name, tensor), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, theirs), name


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_captured_as_it_is_taken_eagerly(recipe, dataset, uncaptured, part):
    recipe = with_part(recipe, part)
    model, eager = make_step(recipe, dataset, "eager")
    other, replayed = make_step(recipe, dataset, "captured")
    for step in (eager, replayed):
        step.run(len(step.losses))
    assert torch.equal(replayed.losses, eager.losses)
    for (name, tensor), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, theirs), name


def test_seeking_before_and_after_the_capture_goes_to_that_step(recipe, dataset, uncaptured):
    _, step = make_step(recipe, dataset, "captured")
    step.seek(3)
    step.run(1)
    assert not step.losses[3].isnan()
    assert step.losses.isnan().sum() == len(step.losses) - 1
    step.seek(0)
    step.run(2)
    assert step.loader.step.tolist() == [2]
    assert not step.losses[:2].isnan().any()


def test_a_step_that_cannot_be_captured_continues_compiled_and_says_why(recipe, dataset, uncaptured, monkeypatch):
    def refuse(work, pool=None):
        raise captured.CaptureFailed("operation not permitted when stream is capturing")

    monkeypatch.setattr(captured, "capture", refuse)
    _, eager = make_step(recipe, dataset, "eager")
    _, step = make_step(recipe, dataset, "captured")
    length = len(step.loader)
    for one in (eager, step):
        one.run(length + 2)
    assert step.backend == "compiled"
    assert step.failure == "the step could not be captured: operation not permitted when stream is capturing"
    assert torch.equal(step.losses[: length + 2], eager.losses[: length + 2])


def test_running_out_of_memory_is_not_a_failed_capture(recipe, dataset, uncaptured, monkeypatch):
    def refuse(work, pool=None):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(captured, "capture", refuse)
    _, step = make_step(recipe, dataset, "captured")
    with pytest.raises(torch.OutOfMemoryError):
        step.warm_up()


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_a_captured_evaluation_scores_as_a_plain_one(recipe, dataset, uncaptured, tta):
    """The last batch is padded; a second pass starts from the first batch."""
    model = build_model(recipe.model)
    options = {"batch_size": 12, "shuffle": False}
    loader = ResidentLoader(dataset.val, recipe.augment.evaluation(), **options)
    expected = evaluate.evaluate(model, loader, 3, precision="fp32", tta=tta)
    evaluator = evaluate.Evaluator(model, evaluate.logits_of(model, "fp32", tta), loader, 3, captured=True)
    for _ in range(2):
        evaluator.run()
        score = evaluator.score()
        assert torch.equal(score.confusion, expected.confusion)
        assert score.loss == expected.loss


@pytest.mark.gpu
def test_a_capture_that_fails_on_a_gpu_leaves_dropout_and_the_step_working(recipe, dataset, monkeypatch):
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dropout=0.5))
    _, step = make_step(recipe, dataset, "captured", "cuda")
    take = step._step
    monkeypatch.setattr(step, "_step", lambda: (take(), step.correct.item()))
    step.run(len(step.loader) + 2)
    assert step.backend == "compiled"
    assert "could not be captured" in step.failure
    assert step.losses[: len(step.loader) + 2].isfinite().all()


@pytest.mark.gpu
def test_captured_graphs_follow_the_seed_though_the_evaluation_could_not_be_captured(recipe, dataset, monkeypatch):
    """Dropout's draws are read from the random state that the step was captured with."""
    add = evaluate.Evaluator._add
    monkeypatch.setattr(evaluate.Evaluator, "_add", lambda self, batch: (add(self, batch), self.sums.sum().item()))
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dropout=0.5))
    losses = []
    with process_group("cuda") as world:
        engine = Engine(recipe, dataset, world, backend="captured")
        engine.warm_up()
        assert engine.backend == "captured"
        assert not engine.evaluator("val").captured
        for seed in (1, 2, 1):
            engine.reset(seed)
            engine.step.run(5)
            losses.append(engine.step.losses[:5].cpu())
    tolerance = {"rtol": TOLERANCE["fp32"], "atol": TOLERANCE["fp32"]}  # kernels may add in any order
    torch.testing.assert_close(losses[2], losses[0], **tolerance)
    assert not torch.allclose(losses[1], losses[0], **tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_compiled_and_eager_agree_on_a_gpu(recipe, dataset, precision):
    recipe = recipe.with_precision(precision)
    losses = {}
    for backend in ("eager", "compiled", "captured"):
        _, step = make_step(recipe, dataset, backend, "cuda")
        step.run(2 * len(step.loader))
        assert step.backend == backend
        losses[backend] = step.losses.cpu()
    tolerance = {"rtol": TOLERANCE[precision], "atol": TOLERANCE[precision]}
    torch.testing.assert_close(losses["compiled"], losses["eager"], **tolerance)
    torch.testing.assert_close(losses["captured"], losses["compiled"], **tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("part", PARTS)
def test_a_captured_part_takes_the_eager_steps_on_a_gpu(recipe, dataset, part, without_waiting):
    recipe, losses = with_part(recipe, part), {}
    for backend in ("eager", "captured"):
        _, step = make_step(recipe, dataset, backend, "cuda")
        step.run(1)
        step.run(len(step.losses) - 1)
        assert step.backend == backend
        losses[backend] = step.losses.cpu()
    torch.testing.assert_close(losses["captured"], losses["eager"], rtol=TOLERANCE["fp32"], atol=TOLERANCE["fp32"])
    step.seek(0)
    with without_waiting():
        step.run(len(step.loader) + 3)


@pytest.mark.gpu
def test_a_replay_waits_for_nothing(recipe, dataset, without_waiting):
    """Not even for the next epoch's order."""
    _, step = make_step(recipe, dataset, "captured", "cuda")
    step.run(1)
    with without_waiting():
        step.run(len(step.loader) + 3)
