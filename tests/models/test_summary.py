"""Counts of a model: the seed's figures, and a small model counted by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastcifar.models import ResNetConfig, SpeedNetConfig, build_model
from fastcifar.models.summary import evaluation_flops, summarize, training_flops


def test_the_seed_models_published_figures():
    summary = summarize(build_model(ResNetConfig()))
    assert summary.parameters == summary.trainable == 4_662_098
    assert f"{summary.parameter_mb:.2f}" == "17.78"
    assert f"{summary.activation_mb:.2f}" == "14.43"
    assert f"{summary.macs / 1e9:.3f}" == "0.497"


def test_a_small_model_counted_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    summary = summarize(model, (3, 8, 8))
    rows = [(layer.kind, layer.output_shape, layer.parameters, layer.macs) for layer in summary.layers]
    assert rows == [
        ("Conv2d", (4, 4, 4), 108, 108 * 16),
        ("ReLU", (4, 4, 4), 0, 0),
        ("Flatten", (64,), 0, 0),
        ("Linear", (5,), 325, 320),
    ]
    assert summary.macs == 108 * 16 + 320
    assert summary.activation_mb == 2 * 4 * (3 * 64 + 5) / 2**20


def test_a_module_called_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x))

    assert summarize(Twice(), (3, 4, 4)).macs == 2 * 9 * 16


@pytest.mark.parametrize("config", [ResNetConfig(dropout=0.0), SpeedNetConfig(), SpeedNetConfig(depth=1, whitening=3)])
@pytest.mark.parametrize("side", [32, 24])
def test_operations_are_those_that_pytorchs_own_counter_sees(config, side):
    """It counts the convolutions and matrix products that forward and backward really call."""
    model = build_model(config).eval()  # one image has no batch statistics
    with FlopCounterMode(display=False) as forward:
        logits = model(torch.rand(1, 3, side, side))
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert evaluation_flops(model, (3, side, side)) == forward.get_total_flops()
    assert training_flops(model, (3, side, side)) == forward.get_total_flops() + backward.get_total_flops()


def test_no_gradient_is_counted_before_the_first_trained_parameter():
    """Three layers of 9 multiply-accumulates for each of 16 pixels: frozen; frozen, but with a trained bias; trained."""
    model = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(3))).requires_grad_(False)
    model[1].bias.requires_grad = True
    model[2].weight.requires_grad = True
    layers = summarize(model, (3, 4, 4)).layers
    assert [layer.training_macs // (9 * 16) for layer in layers] == [1, 1, 3]
    model[1].bias.requires_grad = False
    assert training_flops(model, (3, 4, 4)) == 2 * (1 + 1 + 2) * 9 * 16
    with torch.no_grad():  # as inside an evaluation
        assert training_flops(model, (3, 4, 4)) == 2 * (1 + 1 + 2) * 9 * 16


def test_the_model_is_left_as_it_was():
    model = build_model(ResNetConfig()).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    summarize(model)
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
