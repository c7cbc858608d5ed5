"""RandomRotation: against PIL and torchvision, in distribution, and the kernel against the reference."""

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from scipy import stats

from fastcifar.augment import RandomRotation
from fastcifar.augment.transforms.base import to_float
from fastcifar.augment.transforms.rotation import FIXED_POINT, rotate, rotation

SIZES = [(32, 32), (7, 12), (13, 5)]


@pytest.mark.parametrize("size", SIZES)
def test_rotation_equals_pils_to_the_pixel(make_images, generator, each, size):
    images = make_images(size, count=200)
    degrees = torch.rand(200, generator=generator, dtype=torch.float64) * 720 - 360
    expected = each(images, lambda image, angle: TF.pil_to_tensor(TF.to_pil_image(image).rotate(angle)), degrees.tolist())
    assert torch.equal(rotate(images, rotation(degrees, size)), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_rotation_equals_torchvisions_of_tensors(make_images, each, size, channels):
    images = to_float(make_images(size, channels, count=60))
    degrees = torch.linspace(-180, 180, 60)  # none a multiple of 90, where pixels lie exactly between two
    theirs = each(images, TF.rotate, degrees.tolist())
    # Fixed point places a centre within 2**-11 of a pixel: nearer to a border than that, it may fall to the other side.
    assert (rotate(images, rotation(degrees, size)) != theirs).float().mean() < 1e-3


@pytest.mark.parametrize("degrees", [0.0, 90.0, 180.0, 270.0])
def test_quarter_turns_lose_nothing(make_images, degrees):
    images = make_images((8, 8))
    expected = torch.rot90(images, round(degrees / 90), (2, 3))
    assert torch.equal(rotate(images, rotation(torch.full((len(images),), degrees), (8, 8))), expected)


def test_angles_are_uniform(drawn):
    (turns,) = drawn(RandomRotation(15))
    angles = torch.rad2deg(torch.asin(turns[:, 3].double() / 2**FIXED_POINT))
    assert stats.kstest(angles.numpy(), "uniform", (-15, 30)).pvalue > 1e-3


def test_the_kernel_equals_the_reference(check_kernel):
    check_kernel(RandomRotation(180))
