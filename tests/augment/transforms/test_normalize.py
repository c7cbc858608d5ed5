"""Normalize: against torchvision, and the kernel against the reference."""

import torch
import torchvision.transforms.v2.functional as TF

from fastcifar.augment import Normalize
from fastcifar.augment.transforms.base import to_float
from fastcifar.augment.transforms.normalize import normalize


def test_normalize_equals_torchvision(make_images):
    images = make_images((7, 12))
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    ours = normalize(images, *(torch.tensor(values)[:, None, None] for values in (mean, std)))
    assert torch.equal(ours, TF.normalize(to_float(images), mean, std))


def test_the_kernel_equals_the_reference(check_kernel):
    check_kernel(Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))
