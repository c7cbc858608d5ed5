"""Fixtures for single transforms: random images, torchvision image by image, and a transform's draws."""

import pytest
import torch

from fastcifar.augment import Policy
from fastcifar.augment.philox import Draws


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def make_images(generator):
    """Make uint8 images (count, C, H, W)."""

    def make(size=(32, 32), channels=3, count=24):
        return torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=generator)

    return make


@pytest.fixture
def each():
    """Apply a function of torchvision to each image with its own parameters."""

    def apply(images, function, *parameters):
        return torch.stack([function(image, *values) for image, *values in zip(images, *parameters, strict=True)])

    return apply


@pytest.fixture
def make_draws():
    """Make the words of 6,000 samples for a transform."""
    return lambda transform: Draws(1, 0, torch.arange(6000), Policy((transform,)).streams())


@pytest.fixture
def drawn(make_draws):
    """Parameters that the reference draws for 6,000 images of 32 x 32 pixels."""
    return lambda transform: transform.draw(make_draws(transform), (3, 32, 32))[1:]


@pytest.fixture
def applied(make_draws):
    """Apply a transform to 6,000 images (B, C, H, W)."""

    def apply(transform, images):
        function, *parameters = transform.draw(make_draws(transform), tuple(images.shape[1:]))
        return function(images, *parameters)

    return apply


@pytest.fixture
def augmented():
    """Apply transforms to uint8 images (B, C, H, W), with the draws of samples 0 to B - 1."""
    from fastcifar.augment import augment

    def apply(images, *transforms, epoch=0, seed=0):
        images_NHWC = images.permute(0, 2, 3, 1).contiguous()
        return augment(images_NHWC, torch.arange(len(images)), epoch=epoch, seed=seed, policy=Policy(transforms))

    return apply


@pytest.fixture
def torchvisions_draws():
    """Seed the global generator, from which torchvision draws, so that every run of a test is the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
