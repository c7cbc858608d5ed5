"""Counts of a model: the seed's figures, and a small model counted by hand."""

import torch
from torch import nn

from fastcifar.models import ResNetConfig, build_model
from fastcifar.models.summary import summarize


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


def test_the_model_is_left_as_it_was():
    model = build_model(ResNetConfig()).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    summarize(model)
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
