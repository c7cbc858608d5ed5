"""Recipe, device and amount of work of the measurements, and their random images."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastcifar.data.dataset import Dataset, Manifest, Split
from fastcifar.recipe import Recipe
from fastcifar.runtime.precision import PRECISIONS

SHAPE = 32, 32, 3
"""(H, W, C) of CIFAR's images."""
IMAGE_BYTES = math.prod(SHAPE)
"""Bytes of a uint8 image, one per element."""
CLASSES = 10


@dataclass(frozen=True)
class Size:
    """Amount of work per subject.

    Attributes:
        rounds: counted rounds.
        images: per round, in whole batches. For epoch and train: trained on per epoch; a quarter as many are scored.
        slow_images: the same for peers that would take too long with `images`.
        batches: batch sizes; empty for the recipe's own.
        epochs: of a training run.
    """

    rounds: int
    images: int
    slow_images: int = 0
    batches: tuple[int, ...] = ()
    epochs: int = 1


ON_CPU = {
    "prep": Size(rounds=5, images=20_000),
    "loader": Size(rounds=7, images=8192, slow_images=2048, batches=(64, 512)),
    "augment": Size(rounds=7, images=8192, slow_images=2048, batches=(64, 512, 2048)),
    "erasing": Size(rounds=7, images=4096, slow_images=1024, batches=(64, 1024)),
    "step": Size(rounds=5, images=128, batches=(64, 128, 256)),
    "epoch": Size(rounds=3, images=256),
    "train": Size(rounds=3, images=256),
}
"""All subjects take ten minutes on two cores."""

ON_CUDA = {
    "prep": Size(rounds=5, images=50_000),
    "loader": Size(rounds=5, images=40_960, slow_images=16_384, batches=(64, 512)),
    "augment": Size(rounds=7, images=2**17, slow_images=2**13, batches=(64, 256, 1024, 4096, 16384)),
    "erasing": Size(rounds=7, images=2**17, slow_images=2**13, batches=(64, 256, 1024, 4096, 16384)),
    "step": Size(rounds=7, images=6_400, batches=(64, 512)),
    "epoch": Size(rounds=3, images=40_000),
    "train": Size(rounds=2, images=40_000, epochs=2),
}
"""Planned for one to two minutes per subject, mostly compiling and starting workers; not measured."""

TINY = {name: Size(rounds=2, images=16, slow_images=8, batches=(8,)) for name in ON_CPU}
"""Only to check that everything runs; the times mean nothing."""


@dataclass(frozen=True)
class Setting:
    """Parameters of one subject's cases."""

    device: torch.device
    recipe: Recipe
    size: Size

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of a batch's images."""
        return PRECISIONS[self.recipe.train.precision].compute

    @property
    def batches(self) -> tuple[int, ...]:
        return self.size.batches or (self.recipe.train.batch_size,)


def whole_batches(images: int, batch: int) -> int:
    """Return the number of batches that `images` fill, at least one."""
    return max(1, images // batch)


@functools.lru_cache(maxsize=2)
def random_split(count: int) -> Split:
    """Make random pixels and labels, always the same, not to be written to. With zeros, some devices would be faster."""
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8), rng.integers(0, CLASSES, count))


def random_dataset(train: int, scored: int) -> Dataset:
    """Make a data set of random images; `scored` is the size of its validation and its test split, and 0 omits both."""
    counts = {"train": train, "val": scored, "test": scored}
    splits = {name: random_split(count) if count else None for name, count in counts.items()}
    manifest = Manifest(
        name="random",
        classes=tuple(map(str, range(CLASSES))),
        image_shape=SHAPE,
        counts={name: count for name, count in counts.items() if count},
        split_seed=0,
        val_fraction=0.0,
        mean=(0.5,) * 3,
        std=(0.289,) * 3,
        sha256={},
        source="random numbers",
    )
    return Dataset(Path("random"), manifest, **splits)
