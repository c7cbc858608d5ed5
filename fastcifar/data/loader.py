"""Base class of the resident and the streaming loader: labels, order, and the position in the run.

Position: batch number `step` of the run is batch `step % len(loader)` of epoch `step // len(loader)`. The host has it as
`position`. The device has it in `state`, which `load` reads, so that a captured CUDA graph loads the right batch.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from fastcifar.augment import Policy
from fastcifar.augment.backend import batch_loader, choose_augment
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.shard import WHOLE, Shard

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images (B, C, H, W), and labels (B,) int64 or their probabilities (B, K) float32."""


class Loader:
    """Base class of the resident and the streaming loader.

    Iterating yields `(images, labels)`: images (B, C, H, W) in channels-last memory and `dtype`, labels (B,) int64, both on
    the device. With `shuffle` (training), the order of epoch e depends on (seed, e) alone, and the last partial batch is
    dropped. Without (evaluation), the order is the stored one, and the last batch is padded to B images with labels `IGNORE`.
    A policy that mixes images gives probabilities (B, K) float32 instead of labels.

    A subclass sets `order`, and defines `_select_epoch` and `load`.

    Args:
        labels: (N,) int64 of the split.
        image_shape: of the split, (H, W, C).
        policy: the transforms of a batch; `policy.evaluation()` for evaluation.
        batch_size: B of all ranks together.
        seed: 64-bit seed of the order and of every augmentation draw.
        device: where the batches are made.
        dtype: of a batch's images: float32, float16 or bfloat16.
        shuffle: training (True) or evaluation (False).
        num_classes: K; by default the largest label plus one.
        shard: this rank's part of every training batch, or of the images to evaluate; B above is then its share.
        keep: share of the images in a training epoch; below 1, those of high loss are preferred, see `preferring_hard`.

    Attributes:
        batch_size: this rank's images per batch.
        labels: (N,) int64 on the device.
        order: this rank's samples of the epoch, int64 on the device.
        augment, augment_reason: "fused" (the Triton kernel, on CUDA) or "reference" (PyTorch), and the reason.

    Raises:
        UserError: a training batch is larger than the split, the policy does not fit the images, or the ranks cannot share a
            batch equally.
    """

    order: torch.Tensor

    def __init__(
        self,
        labels: np.ndarray,
        image_shape: tuple[int, int, int],
        policy: Policy,
        *,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        shuffle: bool = True,
        num_classes: int | None = None,
        shard: Shard = WHOLE,
        keep: float = 1.0,
    ) -> None:
        if shuffle and batch_size > round(keep * len(labels)):
            share = "" if keep == 1 else f", of which train.keep = {keep}"
            raise UserError(
                f"train.batch_size = {batch_size}: larger than the split of {len(labels)} images{share}; choose a smaller one"
            )
        if keep < 1 and shard.count > 1:
            raise UserError(f"train.keep = {keep}: {shard.count} ranks cannot choose images by loss; use one")
        policy.output_size(*image_shape)  # raises if the policy does not fit the images
        self.labels = torch.from_numpy(labels).to(device)
        self.policy, self.seed, self.dtype, self.shuffle = policy, seed, dtype, shuffle
        self.shard, self.global_batch_size, self.keep = shard, batch_size, keep
        self.batch_size = shard.training_batch(batch_size) if shuffle else shard.evaluation_batch(batch_size)
        self.num_classes = num_classes or int(labels.max()) + 1
        self.epoch = self.position = 0
        self.state = torch.tensor([seed, 0, 0], device=device)
        """Seed, epoch and batch of the epoch, on the device."""
        self.augment, self.augment_reason = choose_augment(self.labels.device)
        self._load_batch = batch_loader(self.augment)

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        whole, rest = divmod(len(self.order), self.batch_size)
        return whole if self.shuffle or not rest else whole + 1

    @property
    def step(self) -> torch.Tensor:
        """The position, (1,) int64 on the device; the host does not wait for it."""
        return torch.add(self.state[2:], self.state[1:2], alpha=len(self))

    def seek(self, step: int) -> None:
        """Go to batch number `step` of the run, 0 being the first of epoch 0."""
        epoch, batch = divmod(step, max(1, len(self)))  # a rank may have nothing to evaluate
        if epoch != self.epoch:
            self.epoch = epoch
            self._select_epoch(epoch)
        self.position = step
        self.state[1].fill_(epoch)
        self.state[2].fill_(batch)

    def advance(self) -> None:
        """Go to the next batch of the epoch, on the host and on the device; a CUDA graph captures the device's part."""
        self.position += 1
        self.state[2] += 1

    def replayed_to(self, position: int) -> None:
        """Set the host's position after a replay of CUDA graphs has moved the device's, within the epoch."""
        self.position = position

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch of an epoch; the epoch determines the order (when shuffling) and the draws."""
        self.seek(epoch * len(self))

    def reseed(self, seed: int) -> None:
        """Change the seed in place, and go to the run's first batch."""
        self.seed = seed
        self.state[0].fill_(seed)
        self.epoch = 0
        self._select_epoch(0)
        self.seek(0)

    def load(self) -> Batch:
        """Return the batch at the position; the position does not move."""
        raise NotImplementedError

    def record(self, losses: torch.Tensor) -> None:
        """Tell the loader each image's loss, (B,) float32, of the batch at the position."""

    def recorded(self) -> dict[str, torch.Tensor]:
        """Return what the loader knows of the losses and a checkpoint must hold; {} if it chooses no images by them."""
        return {}

    def restore(self, position: int, recorded: Mapping[str, torch.Tensor]) -> None:
        """Go to batch number `position` of a run whose loader had `recorded`."""
        self.seek(position)

    def batch(self, number: int) -> Batch:
        """Return batch `number` of the selected epoch, 0 to `len(self) - 1`."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        self.seek(self.epoch * len(self) + number)
        return self.load()

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(number) for number in range(len(self)))

    def close(self) -> None:
        """End the reading threads, if there are any."""

    def _select_epoch(self, epoch: int) -> None:
        """Set the order of an epoch; in place if a captured graph may read it."""
        raise NotImplementedError

    def _make_batch(self, images_NHWC: torch.Tensor, *, streamed: bool = False) -> Batch:
        return self._load_batch(
            images_NHWC,
            self.labels,
            self.order,
            self.state,
            batch_size=self.batch_size,
            policy=self.policy,
            num_classes=self.num_classes,
            dtype=self.dtype,
            streamed=streamed,
        )
