"""RandomHorizontalFlip and AlternatingFlip: against torchvision, in distribution, and the kernel against the reference."""

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from scipy import stats

from fastcifar.augment import AlternatingFlip, RandomHorizontalFlip
from fastcifar.augment.transforms.flip import flip


@pytest.mark.parametrize("channels", [1, 3])
def test_flip_equals_torchvision(make_images, each, channels):
    images = make_images((7, 12), channels)
    flipped = torch.arange(len(images)) % 2 == 0
    expected = each(images, lambda image, yes: TF.horizontal_flip(image) if yes else image, flipped.tolist())
    assert torch.equal(flip(images, flipped), expected)


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_flips_happen_with_probability_p(drawn, p):
    (flipped,) = drawn(RandomHorizontalFlip(p))
    assert stats.binomtest(int(flipped.sum()), len(flipped), p).pvalue > 1e-3


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_certain_flips(make_images, augmented, p):
    images = make_images()
    assert torch.equal(augmented(images, RandomHorizontalFlip(p)), (images.flip(3) if p else images) / 255)


def test_the_alternating_flip_alternates_from_a_random_beginning(make_images, augmented):
    images = make_images(count=200)
    epochs = [augmented(images, AlternatingFlip(), epoch=epoch, seed=5) for epoch in range(3)]
    first = (epochs[0] == images.flip(3) / 255).flatten(1).all(1)
    assert 60 < first.sum() < 140
    assert torch.equal(epochs[1], epochs[0].flip(3))
    assert torch.equal(epochs[2], epochs[0])


@pytest.mark.parametrize(
    "transform", [RandomHorizontalFlip(), RandomHorizontalFlip(0.0), RandomHorizontalFlip(1.0), AlternatingFlip()], ids=str
)
def test_the_kernel_equals_the_reference(check_kernel, transform):
    check_kernel(transform)
