"""Scoring a model on a split."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.augment import IGNORE
from fastcifar.config import Recipe
from fastcifar.data.dataset import Dataset, Split
from fastcifar.data.resident import ResidentLoader
from fastcifar.engine.checkpoint import load_checkpoint, restore_model
from fastcifar.engine.precision import autocast
from fastcifar.errors import UserError
from fastcifar.models import build_model


@dataclass(frozen=True)
class Evaluation:
    """The score of one split.

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
        """The score with its classes named, ready for JSON."""
        return {
            "images": self.images,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "per_class": dict(zip(classes, self.per_class, strict=True)),
            "confusion": self.confusion.tolist(),
        }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[torch.Tensor, torch.Tensor]],
    num_classes: int,
    *,
    precision: str = "bf16",
    tta: str = "none",
) -> Evaluation:
    """Score `model` on every image of an evaluation loader.

    Sums stay on the device; one transfer at the end. Padding (labels `IGNORE`) does not count. The model is left in the
    mode (training or evaluation) in which it came.

    Args:
        model: maps images (B, C, H, W) to logits (B, K).
        loader: yields (images, labels); see `ResidentLoader(shuffle=False)`.
        num_classes: K.
        precision: "bf16" or "fp32".
        tta: "flip" averages the logits of each image and its mirror; "none" does not.
    """
    device = next(model.parameters()).device
    loss = torch.zeros((), device=device)
    confusion = torch.zeros(num_classes * num_classes + 1, dtype=torch.int64, device=device)  # the last cell: padding
    was_training = model.training
    model.eval()
    for images, labels in loader:
        with autocast(device, precision):
            logits = model(images).float()
            if tta == "flip":
                logits = (logits + model(images.flip(3)).float()) / 2
        loss += F.cross_entropy(logits, labels, reduction="sum")
        cells = torch.where(labels == IGNORE, num_classes**2, labels * num_classes + logits.argmax(1))
        confusion.index_add_(0, cells, torch.ones_like(cells))
    model.train(was_training)
    confusion = confusion[:-1].view(num_classes, num_classes).cpu()
    return Evaluation(loss=loss.item() / int(confusion.sum()), confusion=confusion)


def evaluation_loader(split: Split | None, recipe: Recipe, device: torch.device) -> ResidentLoader | None:
    """The loader that scores a split as the recipe says; None for a split that the data set does not have."""
    if split is None:
        return None
    policy = recipe.augment.evaluation()
    return ResidentLoader(split, policy, batch_size=recipe.evaluate.batch_size, device=device, shuffle=False)


def score_model(model: nn.Module, loader: ResidentLoader, recipe: Recipe) -> Evaluation:
    """Score `model` with the precision and test-time augmentation of the recipe."""
    return evaluate(model, loader, recipe.model.num_classes, precision=recipe.train.precision, tta=recipe.evaluate.tta)


def evaluate_run(recipe: Recipe, path: Path, dataset: Dataset, split: str, device: torch.device) -> Evaluation:
    """Score the checkpoint at `path`, trained with `recipe`, on the "train", "val" or "test" split.

    Raises:
        UserError: no such split, or the checkpoint does not fit the recipe and data set.
    """
    if split not in ("train", "val", "test"):
        raise UserError(f"--split {split}: must be train, val or test")
    recipe = recipe.with_classes(len(dataset.manifest.classes), dataset.manifest.image_shape[2])
    model = build_model(recipe.model)
    restore_model(load_checkpoint(path), model, recipe.model)
    loader = evaluation_loader(getattr(dataset, split), recipe, device)
    if loader is None:
        raise UserError(f"--split {split}: {dataset.root} has no {split} split")
    return score_model(model.to(device, memory_format=torch.channels_last), loader, recipe)
