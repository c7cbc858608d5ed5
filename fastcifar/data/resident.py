"""The resident loader: a whole split in device memory, so that a batch is a slice of indices.

Shapes: N images in the split, B images per batch, H x W pixels, C channels.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from fastcifar.augment import Policy, epoch_order
from fastcifar.data.dataset import Split
from fastcifar.data.loader import Batch, Loader

PORTION = 2**26
"""Bytes of pixels in host memory at a time during the upload."""


class ResidentLoader(Loader):
    """Batches of a split that is stored on the device.

    Args:
        split: images (N, H, W, C) uint8 and labels (N,) int64.
        policy, options: as of `Loader`: batch_size, seed, device, dtype, shuffle, num_classes, shard, keep.

    Raises:
        UserError: as `Loader`.
    """

    def __init__(self, split: Split, policy: Policy, **options: Any) -> None:
        super().__init__(split.labels, split.image_shape, policy, **options)
        on_host = self.labels.device.type == "cpu"
        self.images = torch.from_numpy(split.images) if on_host else uploaded(split, self.labels.device)
        self.image_losses = torch.full((len(split.labels),), math.inf, device=self.labels.device)
        """The loss of each image when it was last trained on; infinite before."""
        self.order = self._order_of(0)

    def load(self) -> Batch:
        """Return the batch at the position; the position does not move. Nothing comes from the host: it can be captured."""
        return self._make_batch(self.images)

    def record(self, losses: torch.Tensor) -> None:
        if self.keep < 1:
            batch = self.state[2] * self.batch_size + torch.arange(self.batch_size, device=losses.device)
            self.image_losses.index_copy_(0, self.order.index_select(0, batch), losses)

    def recorded(self) -> dict[str, torch.Tensor]:
        return {"image_losses": self.image_losses, "order": self.order} if self.keep < 1 else {}

    def restore(self, position: int, recorded: Mapping[str, torch.Tensor]) -> None:
        if self.keep < 1:
            self.image_losses.copy_(recorded["image_losses"])
        self.seek(position)
        if self.keep < 1 and position % len(self):  # the losses have changed since the epoch began
            self.order.copy_(recorded["order"])

    def reseed(self, seed: int) -> None:
        self.image_losses.fill_(math.inf)
        super().reseed(seed)

    def _select_epoch(self, epoch: int) -> None:
        if self.shuffle:
            self.order.copy_(self._order_of(epoch))

    def _order_of(self, epoch: int) -> torch.Tensor:
        device, count = self.labels.device, len(self.labels)
        if self.shuffle:
            order = epoch_order(self.seed, epoch, count, device)
            if self.keep < 1:
                order = preferring_hard(order, self.image_losses, round(self.keep * count))
            return self.shard.of_training(order, self.global_batch_size)
        return self.shard.of_evaluation(torch.arange(count, device=device))


def preferring_hard(order: torch.Tensor, losses: torch.Tensor, count: int) -> torch.Tensor:
    """Choose `count` images of a shuffled order (N,): first those with at least the mean loss, then others at random.

    As InfoBatch (Qin et al., 2024, https://arxiv.org/abs/2303.04947), but of a fixed number, and without its larger weights
    for the easy images that stay. The images not seen yet count as hard. The order of those chosen stays.

    Args:
        losses: (N,) of each image when it was last seen; infinite for one not seen yet.
    """
    hard = (losses >= losses.mean())[order]
    chosen = torch.argsort(hard, descending=True, stable=True)[:count]
    return order[chosen.sort().values]


def uploaded(split: Split, device: torch.device, portion: int = PORTION) -> torch.Tensor:
    """Copy a split's images to a device, (N, H, W, C) uint8, with at most `portion` bytes of a file in host memory at a time.

    A GPU may have more memory than its host.
    """
    count = len(split.labels)
    images = torch.empty(count, *split.image_shape, dtype=torch.uint8, device=device)
    rows = max(1, portion // math.prod(split.image_shape))
    for first in range(0, count, rows):
        images[first : first + rows] = torch.from_numpy(split.part(first, first + rows).images)
    return images
