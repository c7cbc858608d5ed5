"""RandomCrop and Translate: against torchvision, in distribution, and the kernel against the reference."""

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from scipy import stats

from fastcifar.augment import Policy, RandomCrop, Translate
from fastcifar.augment.reference import augment
from fastcifar.augment.transforms.crop import crop, pad


@pytest.mark.parametrize("size", [(32, 32), (7, 12), (13, 5)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_pad_and_crop_equal_torchvision(make_images, generator, each, size, channels, mode):
    images = make_images(size, channels)
    padded = pad(images, 3, mode)
    assert torch.equal(padded, TF.pad(images, [3], padding_mode=mode))
    top, left = (torch.randint(0, 7, (len(images),), generator=generator) for _ in range(2))
    expected = each(padded, lambda image, t, x: TF.crop(image, t, x, *size), top.tolist(), left.tolist())
    assert torch.equal(crop(padded, top, left, size), expected)


@pytest.mark.parametrize("transform", [RandomCrop(32, padding=4), Translate(4)])
def test_offsets_are_uniform(drawn, transform):
    top, left = drawn(transform)
    table = torch.bincount(top * 9 + left, minlength=81)
    assert len(table) == 81
    assert stats.chisquare(table.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    "transform",
    [
        RandomCrop(8, padding=4),
        RandomCrop(6, padding=3, padding_mode="reflect"),
        RandomCrop(5),
        Translate(2),
        Translate(3, "constant"),
    ],
    ids=str,
)
def test_the_kernel_equals_the_reference(check_kernel, transform):
    check_kernel(transform)


def test_a_crop_without_a_size_is_as_large_as_the_image():
    assert RandomCrop(padding=2).output_size(10, 14) == (10, 14)
    images, index = torch.randint(0, 256, (4, 12, 12, 3), dtype=torch.uint8), torch.arange(4)
    policies = Policy((RandomCrop(padding=2),)), Policy((RandomCrop(12, padding=2),))
    one, other = (augment(images, index, epoch=1, seed=2, policy=policy) for policy in policies)
    assert torch.equal(one, other)
