"""Augmentation: policies (`policy`, `transforms`), draws (`philox`), PyTorch (`reference`, `batch`), Triton (`fused`).

Random erasing is also a module of its own (`erasing`), with a kernel and a reference.
"""

from fastcifar.augment.batch import IGNORE
from fastcifar.augment.philox import Stream, epoch_order
from fastcifar.augment.policy import Policy
from fastcifar.augment.reference import augment
from fastcifar.augment.transforms import *  # noqa: F403
from fastcifar.augment.transforms import TRANSFORMS

__all__ = ["IGNORE", "TRANSFORMS", "Policy", "Stream", "augment", "epoch_order", *TRANSFORMS]
