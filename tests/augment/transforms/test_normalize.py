"""Normalize: against torchvision, and the kernel against the reference."""

import pytest
import torch
import torchvision.transforms.v2.functional as TF

from fastcifar.augment import Normalize, Policy
from fastcifar.augment.transforms.base import to_float
from fastcifar.augment.transforms.normalize import normalize
from fastcifar.runtime.errors import UserError


def test_normalize_equals_torchvision(make_images):
    images = make_images((7, 12))
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    ours = normalize(images, *(torch.tensor(values)[:, None, None] for values in (mean, std)))
    assert torch.equal(ours, TF.normalize(to_float(images), mean, std))


def test_the_kernel_equals_the_reference(check_kernel):
    check_kernel(Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))


def test_without_numbers_it_takes_those_of_the_data_set_and_is_refused_without_one():
    policy = Policy((Normalize(),))
    assert policy.fitted_to((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)) == Policy((Normalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),))
    assert Policy((Normalize(0.5, 0.5),)).fitted_to((0.1,) * 3, (0.2,) * 3) == Policy((Normalize(0.5, 0.5),))
    with pytest.raises(UserError, match="Normalize: mean = None: must be given, or taken from a data set"):
        policy.output_size(8, 8, 3)
    with pytest.raises(UserError, match="Normalize: std = None"):
        Normalize(mean=0.5)
