"""Record a run's metrics as rows of metrics.jsonl and lines on the console, and check that they are finite."""

import math
from typing import Any

import torch

from fastcifar.display.console import Reporter
from fastcifar.run.metrics import MetricsLog
from fastcifar.run.score import Score


class Diverged(Exception):
    """The loss or the weights are no longer finite."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(what)
        self.step = step


class Recorder:
    """Records a run on the host.

    Args:
        log: receives the rows.
        reporter: receives the lines.
        lr_table: (total steps,) learning rate of each step and the first parameter group, on the CPU.
        steps_per_epoch: batches of the training loader.
        batch_size: images per step, of all ranks.
        log_every: steps per row of the mean loss.

    Attributes:
        losses: (total steps,) float32 on the CPU; NaN where the host does not know them yet.
        logged: number of steps whose losses are in the log.
    """

    def __init__(
        self,
        log: MetricsLog,
        reporter: Reporter,
        lr_table: torch.Tensor,
        *,
        steps_per_epoch: int,
        batch_size: int,
        log_every: int,
    ) -> None:
        self.log, self.reporter, self.lr_table = log, reporter, lr_table
        self.steps_per_epoch, self.batch_size, self.log_every = steps_per_epoch, batch_size, log_every
        self.losses = torch.full_like(lr_table, float("nan"))
        self.logged = 0

    @property
    def best_val_accuracy(self) -> float | None:
        """Highest validation accuracy of the epochs so far; None without a validation split."""
        known = [row["val_accuracy"] for row in self.log.epochs() if row["val_accuracy"] is not None]
        return max(known, default=None)

    def resume(self, losses: torch.Tensor, position: int) -> None:
        """Load the log and the losses of an earlier process, at global step `position`."""
        self.losses.copy_(losses)
        self.log.load(position)
        self.logged = max((row["global_step"] for row in self.log.rows), default=0)

    def progress(self, position: int, images_per_s: float) -> None:
        """Move the progress bar to `position`, with the newest loss that the host knows."""
        since = self.losses[self.logged : position]
        since = since[~since.isnan()]
        rows = [row for row in self.log.rows[-2:] if row["kind"] == "steps"]
        loss = since.mean().item() if len(since) else rows[-1]["loss"] if rows else math.nan
        self.reporter.advance(position, loss, images_per_s)

    def steps(self, end: int) -> None:
        """Log the mean loss of each complete window of steps before `end`; the last window of an epoch may be shorter.

        Raises:
            Diverged: a loss is not finite.
        """
        while self.logged < end:
            epoch, done = divmod(self.logged, self.steps_per_epoch)
            last = epoch * self.steps_per_epoch + min((done // self.log_every + 1) * self.log_every, self.steps_per_epoch)
            if last > end:
                return
            self.check_finite(last)
            loss = self.losses[self.logged : last].mean().item()
            row = {"epoch": epoch + 1, "step": last - epoch * self.steps_per_epoch, "global_step": last, "loss": loss}
            self.reporter.steps(self.log.add("steps", **row))
            self.logged = last

    def epoch(
        self,
        end: int,
        losses: torch.Tensor,
        *,
        correct: float,
        largest_weight: float,
        validation: Score | None,
        images_per_s: float,
        train_seconds: float,
    ) -> dict[str, Any]:
        """Log the epoch that ends at global step `end`; returns its row.

        Args:
            losses: (steps_per_epoch,) loss of each step.
            correct: training images predicted correctly.
            largest_weight: largest magnitude of a weight; NaN or infinite if any weight is.

        Raises:
            Diverged: a loss or a weight is not finite.
        """
        self.losses[end - self.steps_per_epoch : end] = losses
        self.check_finite(end, largest_weight)
        self.steps(end)
        if validation and not math.isfinite(validation.loss):
            raise Diverged(f"the validation loss became {validation.loss}", end - 1)
        return self.log.add(
            "epoch",
            epoch=end // self.steps_per_epoch,
            global_step=end,
            train_loss=losses.mean().item(),
            train_accuracy=correct / (self.steps_per_epoch * self.batch_size),
            val_loss=validation.loss if validation else None,
            val_accuracy=validation.accuracy if validation else None,
            lr=self.lr_table[end - 1].item(),
            images_per_s=images_per_s,
            train_seconds=train_seconds,
        )

    def check_finite(self, end: int, largest_weight: float = 0.0) -> None:
        """Check the losses before `end` that are not logged yet, and the weights.

        Weights may be infinite after the last update although all losses are finite.

        Raises:
            Diverged: one of them is not finite.
        """
        bad = torch.nonzero(~torch.isfinite(self.losses[self.logged : end]))
        if len(bad):
            step = self.logged + int(bad[0])
            raise Diverged(f"the loss became {self.losses[step].item()}", step)
        if not math.isfinite(largest_weight):
            raise Diverged("the weights became infinite or NaN", end - 1)
