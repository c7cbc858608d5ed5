"""Augmentation: what to do (`policy`), the draws (`philox`) and the PyTorch reference (`reference`)."""

from fastcifar.augment.philox import Stream, epoch_order
from fastcifar.augment.policy import (
    AlternatingFlip,
    ColorJitter,
    Cutout,
    Normalize,
    Policy,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomRotation,
    Translate,
)
from fastcifar.augment.reference import augment

__all__ = [
    "AlternatingFlip",
    "ColorJitter",
    "Cutout",
    "Normalize",
    "Policy",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomRotation",
    "Stream",
    "Translate",
    "augment",
    "epoch_order",
]
