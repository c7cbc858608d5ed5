"""The reference of random erasing against torchvision's erase, and its noise."""

import pytest
import torch
import torchvision.transforms.v2.functional as TF

from fastcifar.augment import erasing_reference
from fastcifar.augment.erasing_reference import Parameters
from fastcifar.augment.philox import Draws
from fastcifar.augment.transforms.erasing import erasing_noise

STATE = torch.tensor([3, 5])
"""Seed and call."""


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_it_equals_torchvisions_erase(p, count):
    images = torch.rand(40, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    parameters = Parameters(p, (0.02, 0.33), (0.3, 3.3), (1.0, 2.0, 3.0), count)
    out = torch.empty_like(images)
    erasing_reference.erase_batch(images, out, STATE, parameters)
    boxes = erasing_reference.draw_boxes(*STATE.tolist(), images.shape, parameters)
    assert abs((boxes[..., 2] > 0).float().mean() - p) < 0.2
    for image, result, image_boxes in zip(images, out, boxes.tolist(), strict=True):
        for box in image_boxes:
            image = TF.erase(image, *box, torch.tensor(parameters.value)[:, None, None])
        assert torch.equal(result, image)


def test_noise_is_that_of_the_transform():
    images = torch.zeros(3, 6, 9, 8)
    out, parameters = torch.empty_like(images), Parameters(1.0, (0.2, 0.4), (0.5, 2.0), ())
    erasing_reference.erase_batch(images, out, STATE, parameters)
    boxes = erasing_reference.draw_boxes(*STATE.tolist(), images.shape, parameters)
    noise = erasing_noise(Draws(*STATE.tolist(), torch.arange(3), ()), images.shape)
    assert torch.equal(out, noise * erasing_reference.erased_pixels(boxes, images.shape)[:, None])
