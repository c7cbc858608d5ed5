"""The captured step: its body needs nothing from the host, its warm-up leaves no trace, and it equals the other back ends."""

import dataclasses

import pytest
import torch

from fastcifar.data.resident import ResidentLoader
from fastcifar.engine import step as steps
from fastcifar.engine.captured import CapturedStep
from fastcifar.errors import UserError
from fastcifar.models import build_model
from fastcifar.optim.optimizers import build_optimizer


@pytest.fixture(params=["sgd", "adamw"])
def recipe(recipe, request):
    """Without dropout, whose draws differ between back ends."""
    optimizer = dataclasses.replace(recipe.optimizer, name=request.param)
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dropout=0.0), optimizer=optimizer)


def make_step(recipe, dataset, backend, device="cpu"):
    torch.manual_seed(0)
    model = build_model(recipe.model).to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, recipe.optimizer)
    batch, seed = recipe.train.batch_size, recipe.train.seed
    loader = ResidentLoader(dataset.train, recipe.augment, batch_size=batch, seed=seed, device=device)
    return model, steps.build(model, optimizer, loader, recipe, backend)


@pytest.fixture
def uncaptured(monkeypatch):
    """Without a graph: what it would record is run each time, after the warm-up."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)

    def capture(step):
        step._warm_up()
        return step._body

    monkeypatch.setattr(CapturedStep, "_capture", capture)


def test_what_is_captured_takes_the_steps_of_the_eager_one(recipe, dataset, uncaptured):
    model, eager = make_step(recipe, dataset, "eager")
    other, captured = make_step(recipe, dataset, "captured")
    length = len(eager.loader)
    for step in (eager, captured):
        for count in (2, length - 2, length):
            step.run(count)
    assert torch.equal(captured.losses, eager.losses)
    assert torch.equal(captured.correct, eager.correct)
    for (name, tensor), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, theirs), name


def test_seeking_before_and_after_the_capture_goes_to_that_step(recipe, dataset, uncaptured):
    _, captured = make_step(recipe, dataset, "captured")
    captured.seek(3)
    captured.run(1)
    assert not captured.losses[3].isnan()
    assert captured.losses.isnan().sum() == len(captured.losses) - 1
    captured.seek(0)
    captured.run(2)
    assert captured.at.tolist() == [2]
    assert not captured.losses[:2].isnan().any()


def test_without_cuda_there_is_nothing_to_capture():
    with pytest.raises(UserError, match=r"--step captured: a CUDA graph needs a CUDA device"):
        steps.choose_backend("captured", torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_compiled_and_eager_agree_on_a_gpu(recipe, dataset, precision):
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, precision=precision))
    losses = {}
    for backend in ("eager", "compiled", "captured"):
        _, step = make_step(recipe, dataset, backend, "cuda")
        step.run(len(step.loader))
        step.run(len(step.loader))
        losses[backend] = step.losses.cpu()
    tolerance = 1e-3 if precision == "fp32" else 5e-2
    torch.testing.assert_close(losses["compiled"], losses["eager"], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(losses["captured"], losses["compiled"], rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
def test_a_replay_waits_for_nothing(recipe, dataset):
    _, step = make_step(recipe, dataset, "captured", "cuda")
    step.run(1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.run(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
