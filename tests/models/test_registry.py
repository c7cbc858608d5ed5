"""The registry: every name builds the model that its configuration describes."""

from dataclasses import replace

import pytest
import torch

from fastcifar.models import MODELS, ResNetConfig, build_model
from fastcifar.recipe import load_recipe, recipe_names
from fastcifar.runtime.errors import UserError


@pytest.mark.parametrize("name", MODELS)
def test_every_named_model_is_built_for_the_classes_and_channels_of_its_configuration(name):
    config = replace(MODELS[name][0](), num_classes=7, in_channels=2)
    assert config.name == name
    assert build_model(config).eval()(torch.randn(1, 2, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_of_pytorch_decides_the_weights(name):
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build_model(MODELS[name][0]()).parameters()])

    with torch.random.fork_rng(devices=[]):
        assert torch.equal(weights(0), weights(0))
        assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_may_have_as_many_parameters_as_its_budget_and_no_more(name):
    config = MODELS[name][0]()
    count = sum(p.numel() for p in build_model(config).parameters())
    build_model(replace(config, budget=count))
    with pytest.raises(UserError, match=f"model.budget = {count - 1:,}: the model has {count:,} parameters"):
        build_model(replace(config, budget=count - 1))
    with pytest.raises(UserError, match="budget = -1: must be at least 0"):
        replace(config, budget=-1)


def test_the_error_about_the_budget_names_the_largest_layers():
    with pytest.raises(UserError) as caught:
        build_model(ResNetConfig(budget=1_000_000))
    assert str(caught.value) == (
        "model.budget = 1,000,000: the model has 4,662,098 parameters; the largest layers: stages.3.0.body.2.conv 1,327,104, "
        "stages.3.0.body.0.conv 663,552, stages.1.0.body.2.conv 345,744"
    )


@pytest.mark.parametrize("name", recipe_names())
def test_the_shipped_recipes_keep_to_five_million_parameters(name):
    model = load_recipe(name).model
    assert model.budget == 5_000_000
    build_model(model)
