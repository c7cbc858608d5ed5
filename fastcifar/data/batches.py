"""What the resident and the streaming loader have in common: what a batch is, whatever its pixels come from."""

import numpy as np
import torch

from fastcifar.augment import Policy
from fastcifar.augment.backend import batch_loader, choose_augment
from fastcifar.data.shard import Shard
from fastcifar.errors import UserError


class Batches:
    """The labels, the policy and the position of a loader; its arguments and attributes are those of the two loaders.

    A subclass sets `order` (this rank's samples of the epoch, int64 on the device), and has `set_epoch` and `batch`.
    """

    order: torch.Tensor

    def __init__(
        self,
        labels: np.ndarray,
        image_shape: tuple[int, int, int],
        policy: Policy,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        shuffle: bool,
        num_classes: int | None,
        shard: Shard,
    ) -> None:
        if shuffle and batch_size > len(labels):
            raise UserError(
                f"train.batch_size = {batch_size}: larger than the split of {len(labels)} images; choose a smaller one"
            )
        policy.output_size(*image_shape)  # raises where the policy does not fit the images
        self.labels = torch.from_numpy(labels).to(device)
        self.policy, self.seed, self.shuffle = policy, seed, shuffle
        self.shard, self.global_batch_size = shard, batch_size
        self.batch_size = shard.training_batch(batch_size) if shuffle else shard.evaluation_batch(batch_size)
        self.num_classes = num_classes or int(labels.max()) + 1
        self.state = torch.tensor([seed, 0, 0], device=device)  # seed, epoch, step: read on the device
        self.augment, self.augment_reason = choose_augment(self.labels.device)
        self._load_batch = batch_loader(self.augment)

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        whole, rest = divmod(len(self.order), self.batch_size)
        return whole if self.shuffle or not rest else whole + 1

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch, which decides the order (when shuffling) and the draws."""
        raise NotImplementedError

    def reseed(self, seed: int) -> None:
        """Become, in place, the loader of another seed, at epoch 0."""
        self.seed = seed
        self.state[0].fill_(seed)
        self.set_epoch(0)
