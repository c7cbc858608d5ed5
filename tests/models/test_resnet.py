"""The ResNet: the seed's counts, its shapes, and what it refuses."""

import pytest
import torch

from fastcifar.models import MODELS, ResNet, ResNetConfig, build_model
from fastcifar.runtime.errors import UserError

SMALL = {"stem_channels": 8, "channels": (8, 16), "blocks": (2, 1), "strides": (1, 2)}


def test_the_seed_model_has_the_seeds_parameters_all_trainable():
    parameters = list(build_model(ResNetConfig()).parameters())
    assert sum(p.numel() for p in parameters) == 4_662_098
    assert all(p.requires_grad for p in parameters)


def test_no_convolution_has_a_bias():
    convolutions = [m for m in build_model(ResNetConfig()).modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 1 + 7 * 2 + 3  # the stem, two a block, and a shortcut where a stage changes its width
    assert all(m.bias is None for m in convolutions)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize(("size", "channels", "classes"), [((32, 32), 3, 10), ((17, 9), 1, 100)])
def test_logits_of_any_image_size_channels_and_classes(block, size, channels, classes):
    model = build_model(ResNetConfig(num_classes=classes, in_channels=channels, block=block, **SMALL))
    assert model(torch.randn(2, channels, *size)).shape == (2, classes)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_block_of_zero_weights_is_the_relu_of_its_input(block):
    model = build_model(ResNetConfig(block=block, **SMALL)).eval()
    second = model.stages[0][1]
    torch.nn.init.zeros_(second.body[-1].norm.weight)
    images = torch.randn(2, 8, 5, 5)
    assert torch.equal(second(images.clone()), images.relu())


def test_dropout_acts_in_training_only():
    model = build_model(ResNetConfig(**SMALL, dropout=0.5))
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(model.eval()(images), model(images))
    assert not torch.equal(model.train()(images), model(images))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": ()}, "channels = []"),
        ({"blocks": (1,)}, "blocks = [1]: must hold one number for each of 2 channels"),
        ({"strides": (1, 0)}, "strides = [1, 0]"),
        ({"stem_channels": 0}, "stem_channels = 0"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"channels": (2, 8), "block": "bottleneck"}, "bottleneck"),
        ({"block": "fancy"}, "must be basic or bottleneck"),
    ],
)
def test_impossible_configurations_are_refused(changes, words):
    with pytest.raises(UserError) as caught:
        ResNetConfig(**SMALL | changes)
    assert words in str(caught.value)


def test_the_registry_builds_what_it_names():
    assert isinstance(build_model(MODELS["resnet"][0](**SMALL)), ResNet)
