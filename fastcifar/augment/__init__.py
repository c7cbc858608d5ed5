"""Augmentation: what to do (`policy`), the draws (`philox`), PyTorch (`reference`, `batch`), Triton (`fused`, `erasing`)."""

from fastcifar.augment.batch import IGNORE
from fastcifar.augment.philox import Stream, epoch_order
from fastcifar.augment.policy import (
    AlternatingFlip,
    ColorJitter,
    CutMix,
    Cutout,
    MixUp,
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
    "IGNORE",
    "AlternatingFlip",
    "ColorJitter",
    "CutMix",
    "Cutout",
    "MixUp",
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
