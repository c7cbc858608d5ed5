"""ColorJitter: against torchvision, in distribution, and the kernel against the reference."""

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from scipy import stats
from torchvision.transforms import v2

from fastcifar.augment import ColorJitter
from fastcifar.augment.transforms.base import to_float
from fastcifar.augment.transforms.jitter import JITTER_ORDERS, jitter
from fastcifar.runtime.errors import UserError

FUNCTIONS = TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_each_operation_equals_torchvision(make_images, generator, each, channels, kind):
    images = make_images((9, 11), channels)
    factor = torch.rand(len(images), generator=generator) * 2
    factors = torch.ones(len(images), 3)
    factors[:, kind] = factor
    expected = each(to_float(images), FUNCTIONS[kind], factor.tolist())
    ours = jitter(to_float(images), factors, torch.zeros(len(images), dtype=torch.int64))
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("order", range(6))
def test_operations_in_every_order_equal_torchvision(make_images, generator, each, order):
    images = make_images((9, 11))
    factors = torch.rand(len(images), 3, generator=generator) * 2

    def theirs(image, row):
        for kind in JITTER_ORDERS[order]:
            image = FUNCTIONS[kind](image, row[kind])
        return image

    expected = each(to_float(images), theirs, factors.tolist())
    ours = jitter(images, factors, torch.full((len(images),), order))
    torch.testing.assert_close(ours, expected, rtol=0, atol=5e-6)


def test_bounds_are_torchvisions():
    assert ColorJitter(1.5, (0.3, 0.4), 0.0).bounds() == ((0.0, 2.5), (0.3, 0.4), (1.0, 1.0))


def test_neither_one_nor_three_channels_are_refused(make_images, augmented):
    with pytest.raises(UserError, match="images of 4 channels"):
        augmented(make_images(channels=4), ColorJitter(0.1))


def test_factors_are_uniform_in_their_bounds_and_the_order_is_any_of_six(drawn):
    factors, order = drawn(ColorJitter(0.2, (0.5, 0.8), 1.5))
    for column, (low, high) in enumerate([(0.8, 1.2), (0.5, 0.8), (0.0, 2.5)]):
        assert stats.kstest(factors[:, column].numpy(), "uniform", (low, high - low)).pvalue > 1e-3
    counts = torch.bincount(order, minlength=6)
    assert len(counts) == 6
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_images_have_torchvisions_distribution(applied, torchvisions_draws):
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    ours = applied(ColorJitter(0.4, 0.4, 0.4), image.expand(6000, -1, -1, -1))
    theirs = torch.stack([v2.ColorJitter(0.4, 0.4, 0.4)(to_float(image)) for _ in range(2000)])
    for statistic in (lambda x: x.mean((1, 2, 3)), lambda x: x.std((1, 2, 3)), lambda x: x[:, 0, 3, 3] - x[:, 2, 3, 3]):
        assert stats.ks_2samp(statistic(ours).numpy(), statistic(theirs).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    "transform", [ColorJitter(0.4, 0.4, 0.4), ColorJitter(brightness=0.9), ColorJitter(contrast=(0.2, 2.5))], ids=str
)
def test_the_kernel_equals_the_reference(check_kernel, transform):
    check_kernel(transform)
