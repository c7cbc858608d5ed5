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
from fastcifar.data.dataset import Dataset
from fastcifar.data.shard import WHOLE, Shard
from fastcifar.data.streaming import open_loader
from fastcifar.engine.checkpoint import load_checkpoint, restore_model
from fastcifar.engine.distributed import World
from fastcifar.engine.precision import arithmetic, autocast
from fastcifar.errors import UserError
from fastcifar.models import build_model

Loader = Iterable[tuple[torch.Tensor, torch.Tensor]]


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
    loader: Loader,
    num_classes: int,
    *,
    precision: str = "bf16",
    tta: str = "none",
    world: World | None = None,
) -> Evaluation:
    """Score `model` on every image of an evaluation loader.

    Sums stay on the device; one transfer at the end. Padding (labels `IGNORE`) does not count. The model is left in the
    mode (training or evaluation) in which it came.

    Args:
        model: maps images (B, C, H, W) to logits (B, K).
        loader: yields (images, labels); see `ResidentLoader(shuffle=False)`.
        num_classes: K.
        precision: "bf16", "tf32" or "fp32".
        tta: "flip" averages the logits of each image and its mirror; "none" does not.
        world: where given, the loaders of its ranks hold parts of the split, and every rank gets the score of the whole.
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
    if world:
        world.sum(loss, confusion)
    confusion = confusion[:-1].view(num_classes, num_classes).cpu()
    return Evaluation(loss=loss.item() / int(confusion.sum()), confusion=confusion)


def evaluation_loader(
    dataset: Dataset, split: str, recipe: Recipe, device: torch.device, *, kind: str = "resident", shard: Shard = WHOLE
) -> Loader | None:
    """The loader that scores a split, or a part of it, as the recipe says; None for a split that there is not."""
    if getattr(dataset, split) is None:
        return None
    options = {"batch_size": recipe.evaluate.batch_size, "device": device, "shuffle": False, "shard": shard}
    return open_loader(kind, dataset, split, recipe.augment.evaluation(), **options)


def score_model(model: nn.Module, loader: Loader, recipe: Recipe, world: World | None = None) -> Evaluation:
    """Score `model` with the precision and test-time augmentation of the recipe."""
    precision, tta = recipe.train.precision, recipe.evaluate.tta
    return evaluate(model, loader, recipe.model.num_classes, precision=precision, tta=tta, world=world)


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
    loader = evaluation_loader(dataset, split, recipe, device)
    if loader is None:
        raise UserError(f"--split {split}: {dataset.root} has no {split} split")
    with arithmetic(recipe.train.precision):
        return score_model(model.to(device, memory_format=torch.channels_last), loader, recipe)
