# ruff: noqa: F401
"""The transforms, one file each. An import here registers a transform: recipes and policies then know its name."""

from fastcifar.augment.transforms.base import Transform
from fastcifar.augment.transforms.crop import RandomCrop, Translate
from fastcifar.augment.transforms.cutout import Cutout
from fastcifar.augment.transforms.erasing import RandomErasing
from fastcifar.augment.transforms.flip import AlternatingFlip, RandomHorizontalFlip
from fastcifar.augment.transforms.jitter import ColorJitter
from fastcifar.augment.transforms.mixing import CutMix, MixUp
from fastcifar.augment.transforms.normalize import Normalize
from fastcifar.augment.transforms.rotation import RandomRotation

TRANSFORMS: dict[str, type[Transform]] = {
    name: value
    for name, value in vars().items()
    if isinstance(value, type) and issubclass(value, Transform) and value != Transform
}

__all__ = [*TRANSFORMS]
