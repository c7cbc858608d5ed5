"""The registry: every name builds the model that its configuration describes."""

from dataclasses import replace

import pytest
import torch

from fastcifar.models import MODELS, build_model


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
