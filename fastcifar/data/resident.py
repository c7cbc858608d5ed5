"""The resident loader: a whole split in device memory, so that a batch is a slice of indices.

Shapes: N images in the split, B images a batch, H x W pixels, C channels.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastcifar.augment import Policy, augment, epoch_order
from fastcifar.data.dataset import Split
from fastcifar.errors import UserError

IGNORE = -100
"""Label of an image that only pads a batch; `torch.nn.functional.cross_entropy` ignores it by default."""


class ResidentLoader:
    """Batches of a split that lives on the device whole.

    Iterating yields `(images, labels)`: images `(B, C, H, W)` in channels-last memory and the policy's dtype, labels
    `(B,)` int64, both on the device. With `shuffle` it serves training: the order of epoch e is a function of
    (seed, e) alone and the last partial batch is dropped. Without, it serves evaluation: the stored order, and the last
    batch is padded to B images with labels `IGNORE`.

    Args:
        split: images (N, H, W, C) uint8 and labels (N,) int64.
        policy: the transforms of a batch; `policy.evaluation()` for evaluation.
        batch_size: B.
        seed: 64-bit seed of the order and of every augmentation draw.
        device: where the split lives.
        shuffle: training (True) or evaluation (False).

    Raises:
        UserError: training with a batch larger than the split.
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
    ) -> None:
        self.images = torch.from_numpy(split.images).to(device)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.policy, self.batch_size, self.seed, self.shuffle = policy, batch_size, seed, shuffle
        if shuffle and batch_size > len(self.labels):
            raise UserError(
                f"train.batch_size = {batch_size}: larger than the split of {len(self.labels)} images; choose a smaller one"
            )
        self.set_epoch(0)

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        whole, rest = divmod(len(self.labels), self.batch_size)
        return whole if self.shuffle or not rest else whole + 1

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch, which decides the order (when shuffling) and the draws."""
        self.epoch = epoch
        if self.shuffle:
            self.order = epoch_order(self.seed, epoch, len(self.labels), self.labels.device)
        else:
            self.order = torch.arange(len(self.labels), device=self.labels.device)

    def batch(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Batch number `position` of the selected epoch, 0 to `len(self) - 1`."""
        index = self.order[position * self.batch_size : (position + 1) * self.batch_size]
        labels = self.labels[index]
        missing = self.batch_size - len(index)
        if missing:
            index, labels = F.pad(index, (0, missing)), F.pad(labels, (0, missing), value=IGNORE)
        images = augment(self.images[index], index, epoch=self.epoch, seed=self.seed, policy=self.policy)
        return images, labels

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return (self.batch(position) for position in range(len(self)))
