"""SpeedNet: airbench94's size, whitened patches, and an identity where a group begins."""

import pytest
import torch

from fastcifar.models import SpeedNet, SpeedNetConfig, build_model
from fastcifar.models.summary import summarize
from fastcifar.runtime.errors import UserError


def test_the_defaults_have_airbench94s_size():
    summary = summarize(build_model(SpeedNetConfig()), (3, 32, 32))
    filters = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    biases, head = 24 + 2 * (64 + 256 + 256), 256 * 10
    assert summary.trainable == filters + biases + head  # 1.97 M, as its README says
    assert summary.parameters - summary.trainable == 24 * 12 + 2 * (64 + 256 + 256)  # whitening, and BatchNorm's weights
    assert 0.70e9 < 6 * summary.macs < 0.74e9  # FLOP per image trained


def test_the_first_layer_whitens_patches():
    """Correlated colours become features of second moment 1 without correlation, in pairs of opposite sign."""
    torch.manual_seed(0)
    images = torch.randn(200, 1, 16, 16).expand(-1, 3, -1, -1) + 0.5 * torch.randn(200, 3, 16, 16)
    model = SpeedNet(SpeedNetConfig())
    model.initialize_from(images)
    features = torch.nn.functional.conv2d(images, model.first.weight).permute(1, 0, 2, 3).flatten(1)
    moments = features @ features.T / features.shape[1]
    torch.testing.assert_close(moments[:12, :12], torch.eye(12), rtol=0, atol=0.01)
    torch.testing.assert_close(features[12:], -features[:12])


def test_a_convolution_begins_as_the_identity_on_the_channels_that_it_is_given():
    model = SpeedNet(SpeedNetConfig(widths=(16, 32)))
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(model.groups[1].conv1(x)[:, :16], x)


def test_the_scale_of_the_logits_is_divided_by_the_number_of_features():
    model = SpeedNet(SpeedNetConfig(head_scale=2.0)).eval()
    assert model.scale == 2.0 / 256
    assert model.head.weight.std().item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"widths": ()}, "widths"), ({"depth": 0}, "depth"), ({"batchnorm_momentum": 0.0}, "batchnorm_momentum")],
)
def test_impossible_values_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        SpeedNetConfig(**changes)
