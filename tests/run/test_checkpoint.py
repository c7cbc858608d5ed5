"""Checkpoints: what goes in comes out, and what does not fit is refused in one line."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from fastcifar.models import build_model
from fastcifar.optim.optimizers import OptimizerConfig, build_optimizer
from fastcifar.run.checkpoint import checkpoint_tensors, load_checkpoint, restore_model, restore_optimizer, save_checkpoint
from fastcifar.runtime.errors import UserError


def trained(recipe, optimizer_name):
    model = build_model(recipe.model).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, OptimizerConfig(optimizer_name))
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 16, 16)).square().mean().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_training_resumes_from_a_checkpoint_as_if_never_stopped(name, recipe, tmp_path):
    path = tmp_path / "last.safetensors"
    model, optimizer = trained(recipe, name)
    save_checkpoint(path, checkpoint_tensors(model, optimizer), recipe.model, info={"step": 2})
    again = build_model(recipe.model).to(memory_format=torch.channels_last)
    optimizer_again = build_optimizer(again, OptimizerConfig(name))
    checkpoint = load_checkpoint(path)
    restore_model(checkpoint, again, recipe.model)
    restore_optimizer(checkpoint, again, optimizer_again)
    images = torch.randn(4, 3, 16, 16)
    for net, optim in ((model, optimizer), (again, optimizer_again)):
        torch.manual_seed(1)
        optim.zero_grad()
        net(images).square().mean().backward()
        optim.step()
    assert checkpoint.info["step"] == 2
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


def test_another_architecture_is_refused_with_the_key_that_differs(recipe, tmp_path):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, checkpoint_tensors(build_model(recipe.model)), recipe.model)
    other = dataclasses.replace(recipe.model, num_classes=7)
    with pytest.raises(UserError, match=r"of another architecture: model.num_classes is \d+ there and 7 here"):
        restore_model(load_checkpoint(path), build_model(other), other)


@pytest.fixture
def old_checkpoint(recipe, tmp_path):
    """A checkpoint from before these keys existed."""
    new = {"squeeze", "stochastic_depth", "budget"}
    old = {key: value for key, value in dataclasses.asdict(recipe.model).items() if key not in new}
    path = tmp_path / "old.safetensors"
    save_checkpoint(path, checkpoint_tensors(build_model(recipe.model)), recipe.model, info={"model": old})
    checkpoint = load_checkpoint(path)
    assert not new & set(checkpoint.info["model"])
    return checkpoint


@pytest.mark.parametrize("budget", [0, 5_000_000])
def test_a_key_that_an_old_checkpoint_lacks_counts_as_its_default_but_the_budget_never_counts(budget, recipe, old_checkpoint):
    config = dataclasses.replace(recipe.model, budget=budget)
    model = build_model(config)
    restore_model(old_checkpoint, model, config)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, old_checkpoint.tensors[f"model.{key}"]), key


def test_the_budget_of_a_checkpoint_does_not_count(recipe, tmp_path):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, checkpoint_tensors(build_model(recipe.model)), dataclasses.replace(recipe.model, budget=4_000_000))
    restore_model(load_checkpoint(path), build_model(recipe.model), recipe.model)


@pytest.mark.parametrize(("key", "value"), [("squeeze", 4), ("stochastic_depth", 0.5)])
def test_an_old_checkpoint_is_refused_for_a_model_with_new_parts(key, value, recipe, old_checkpoint):
    config = dataclasses.replace(recipe.model, **{key: value})
    with pytest.raises(UserError, match=rf"model.{key} is 0(\.0)? there and {value} here"):
        restore_model(old_checkpoint, build_model(config), config)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such checkpoint"), (b"not safetensors at all", "not a readable safetensors file")],
)
def test_a_missing_or_damaged_file_is_refused(content, words, tmp_path):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_checkpoint(path)


def test_a_truncated_file_is_refused(recipe, tmp_path):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, checkpoint_tensors(build_model(recipe.model)), recipe.model)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_checkpoint(path)


def test_somebody_elses_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a checkpoint of fastcifar"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_restoring_writes_into_the_optimizers_own_tensors(name, recipe, tmp_path):
    """A captured graph updates those, wherever others may be."""
    model, optimizer = trained(recipe, name)
    save_checkpoint(tmp_path / "last.safetensors", checkpoint_tensors(model, optimizer), recipe.model)
    again, optimizer_again = trained(recipe, name)
    before = {id(tensor) for state in optimizer_again.state.values() for tensor in state.values()}
    restore_optimizer(load_checkpoint(tmp_path / "last.safetensors"), again, optimizer_again)
    assert {id(tensor) for state in optimizer_again.state.values() for tensor in state.values()} == before
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        for key, tensor in optimizer.state[one].items():
            assert torch.equal(tensor, optimizer_again.state[other][key])
