"""One rank's part of every batch."""

from dataclasses import dataclass

import torch

from fastcifar.runtime.errors import UserError


@dataclass(frozen=True)
class Shard:
    """The part of rank `rank` in a run of `count` ranks; the default is a run of one rank."""

    rank: int = 0
    count: int = 1

    def training_batch(self, batch_size: int) -> int:
        """Return this rank's rows of a training batch of `batch_size`, the same number on every rank.

        Raises:
            UserError: `batch_size` is not a multiple of `count`.
        """
        if batch_size % self.count:
            raise UserError(
                f"train.batch_size = {batch_size}: {self.count} processes cannot share it equally; choose a multiple of "
                f"{self.count}, such as {-(-batch_size // self.count) * self.count}"
            )
        return batch_size // self.count

    def evaluation_batch(self, batch_size: int) -> int:
        """Return this rank's rows of an evaluation batch of `batch_size`, rounded up."""
        return -(-batch_size // self.count)

    def of_training(self, order: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Return this rank's samples of an epoch's `order`, in training batches of `batch_size` over all ranks.

        Rank r has the rows r * B / count .. (r + 1) * B / count - 1 of each batch, batch after batch, so that its own batches
        of B / count are slices too; the last partial batch is dropped. Order (N,) int64 -> int64.
        """
        if self.count == 1:
            return order
        batches = order[: len(order) // batch_size * batch_size].view(-1, self.count, self.training_batch(batch_size))
        return batches[:, self.rank].flatten()

    def of_evaluation(self, order: torch.Tensor) -> torch.Tensor:
        """Return every count-th sample of `order` from index `rank`: ranks differ by at most one. (N,) int64 -> int64."""
        return order if self.count == 1 else order[self.rank :: self.count].contiguous()


WHOLE = Shard()
