"""The score of a split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Score:
    """Loss and confusion matrix of one split.

    Attributes:
        loss: mean cross entropy in nats.
        confusion: (K, K) int64 on the CPU; row: true class, column: predicted class.
    """

    loss: float
    confusion: torch.Tensor

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of images predicted correctly, 0 to 1."""
        return int(self.confusion.diagonal().sum()) / self.images

    @property
    def per_class(self) -> list[float | None]:
        """Share of each class's images predicted correctly; None for a class without images."""
        pairs = zip(self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist(), strict=True)
        return [right / images if images else None for right, images in pairs]

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the score as JSON values, with the classes named."""
        return {
            "images": self.images,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "per_class": dict(zip(classes, self.per_class, strict=True)),
            "confusion": self.confusion.tolist(),
        }

    @classmethod
    def of_sums(cls, sums: torch.Tensor) -> "Score":
        """Compute the score from the sums of `fastcifar.engine.evaluate.Evaluator`, (2 + K * K,) float64 on the CPU."""
        confusion = sums[2:].long()
        num_classes = math.isqrt(len(confusion))
        return cls(loss=sums[0].item() / int(confusion.sum()), confusion=confusion.view(num_classes, num_classes))
