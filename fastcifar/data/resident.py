"""The resident loader: a whole split in device memory, so that a batch is a slice of indices.

Shapes: N images in the split, B images a batch, H x W pixels, C channels.
"""

import math
from collections.abc import Iterator

import torch

from fastcifar.augment import Policy, epoch_order
from fastcifar.data.batches import Batches
from fastcifar.data.dataset import Split
from fastcifar.data.shard import WHOLE, Shard

PORTION = 2**26
"""Bytes of pixels that pass through host memory at a time."""


class ResidentLoader(Batches):
    """Batches of a split that lives on the device whole.

    Iterating yields `(images, labels)`: images `(B, C, H, W)` in channels-last memory and the policy's dtype, labels
    `(B,)` int64, both on the device. With `shuffle` it serves training: the order of epoch e is a function of
    (seed, e) alone and the last partial batch is dropped. Without, it serves evaluation: the stored order, and the last
    batch is padded to B images with labels `IGNORE`. A policy that mixes images gives probabilities (B, K) float32 instead
    of labels.

    Args:
        split: images (N, H, W, C) uint8 and labels (N,) int64.
        policy: the transforms of a batch; `policy.evaluation()` for evaluation.
        batch_size: B of all ranks together.
        seed: 64-bit seed of the order and of every augmentation draw.
        device: where the split lives.
        shuffle: training (True) or evaluation (False).
        num_classes: K; by default one more than the largest label.
        shard: this process's part of every training batch, or of an evaluation's images; B above is then its share.

    Attributes:
        batch_size: images of this rank in a batch.
        augment: "fused" (the Triton kernel, on CUDA) or "reference" (PyTorch), and `augment_reason` why.

    Raises:
        UserError: training with a batch larger than the split, or one that the ranks cannot share equally.
    """

    def __init__(
        self,
        split: Split,
        policy: Policy,
        *,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        shuffle: bool = True,
        num_classes: int | None = None,
        shard: Shard = WHOLE,
    ) -> None:
        super().__init__(
            split.labels,
            split.image_shape,
            policy,
            batch_size=batch_size,
            seed=seed,
            device=device,
            shuffle=shuffle,
            num_classes=num_classes,
            shard=shard,
        )
        on_host = self.labels.device.type == "cpu"
        self.images = torch.from_numpy(split.images) if on_host else uploaded(split, self.labels.device)
        self.order: torch.Tensor | None = None
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.state[1].fill_(epoch)
        if self.shuffle:
            order = epoch_order(self.seed, epoch, len(self.labels), self.labels.device)
            order = self.shard.of_training(order, self.global_batch_size)
        else:
            order = self.shard.of_evaluation(torch.arange(len(self.labels), device=self.labels.device))
        if self.order is None:
            self.order = order
        else:
            self.order.copy_(order)  # in place: a captured graph reads it there

    def batch(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Batch number `position` of the selected epoch, 0 to `len(self) - 1`."""
        self.state[2].fill_(position)
        return self.load()

    def load(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch whose number is in `state[2]`: nothing of it comes from the host, so that it can be captured."""
        return self._load_batch(
            self.images,
            self.labels,
            self.order,
            self.state,
            batch_size=self.batch_size,
            policy=self.policy,
            num_classes=self.num_classes,
        )

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return (self.batch(position) for position in range(len(self)))


def uploaded(split: Split, device: torch.device, portion: int = PORTION) -> torch.Tensor:
    """All images of a split on a device, (N, H, W, C) uint8; the host never holds more than `portion` bytes of a file's.

    A GPU may have more memory than its host.
    """
    count = len(split.labels)
    images = torch.empty(count, *split.image_shape, dtype=torch.uint8, device=device)
    rows = max(1, portion // math.prod(split.image_shape))
    for first in range(0, count, rows):
        images[first : first + rows] = torch.from_numpy(split.part(first, first + rows).images)
    return images
