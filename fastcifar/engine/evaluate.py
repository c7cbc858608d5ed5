"""Scoring a model on a split."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.augment import IGNORE
from fastcifar.config import Recipe
from fastcifar.data.dataset import Dataset
from fastcifar.data.shard import WHOLE, Shard
from fastcifar.data.streaming import choose_loader, open_loader
from fastcifar.engine.captured import CaptureFailed, capture, separate_random_state, side_stream
from fastcifar.engine.checkpoint import load_checkpoint, restore_model
from fastcifar.engine.distributed import World
from fastcifar.engine.precision import arithmetic, autocast, resolve_precision, to_weights_dtype
from fastcifar.engine.step import compile_alone
from fastcifar.errors import UserError
from fastcifar.models import build_model

Scored = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""A loader that does not shuffle; for "captured" with `state` and `load`, see `ResidentLoader`."""
Logits = Callable[[torch.Tensor], torch.Tensor]


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


class Evaluator:
    """Scores a model on every image of an evaluation loader, as often as asked.

    `run` gives the device a whole pass and returns; the sums stay there until `score` reads them, all in one transfer.
    Padding (labels `IGNORE`) does not count. The model is left in the mode (training or evaluation) in which it came.

    Args:
        model: whose logits they are.
        logits: maps images (B, C, H, W) to logits (B, K) float32; see `logits_of`.
        loader: yields (images, labels); see `ResidentLoader(shuffle=False)`.
        num_classes: K.
        captured: replay a CUDA graph of one batch.
        world: where given, the loaders of its ranks hold parts of the split, and every rank gets the score of the whole.

    Attributes:
        sums: (2 + K * K,) float64 on the device, after `run`: the loss summed, the padding counted, and the confusion matrix.
    """

    def __init__(
        self,
        model: nn.Module,
        logits: Logits,
        loader: Scored,
        num_classes: int,
        *,
        captured: bool = False,
        world: World | None = None,
    ) -> None:
        self.model, self.logits, self.loader, self.num_classes = model, logits, loader, num_classes
        self.captured, self.world = captured, world
        self.sums = torch.zeros(2 + num_classes**2, dtype=torch.float64, device=next(model.parameters()).device)
        self.replay: Callable[[], None] | None = None

    def warm_up(self) -> None:
        """Compile and capture; a later `run` does nothing but score."""
        self._capture()
        if not self.replay:
            with self._evaluating():
                for batch in islice(self.loader, 1):  # a rank may have none
                    self._add(batch)

    def run(self) -> None:
        """Score the split; returns before the device has finished."""
        self._capture()
        self.sums.zero_()
        with self._evaluating():
            if self.replay:
                self.loader.state[2].zero_()
                for _ in range(len(self.loader)):
                    self.replay()
            else:
                for batch in self.loader:
                    self._add(batch)
        if self.world:
            self.world.sum(self.sums)

    def _capture(self) -> None:
        """Once; where it cannot be had, the pass is slower and the same."""
        if not self.captured or self.replay:
            return
        with self._evaluating(), side_stream():
            self._one()
        try:
            with self._evaluating(), separate_random_state():
                self.replay = capture(self._one)
        except CaptureFailed:
            self.captured = False

    def score(self) -> Evaluation:
        """What the last `run` came to; waits for it."""
        return read_sums(self.sums.cpu())

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)

    def _one(self) -> None:
        """The batch whose number stands in the loader's state, with nothing from the host."""
        self._add(self.loader.load())
        self.loader.state[2] += 1

    def _add(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        images, labels = batch
        logits = self.logits(images)
        self.sums[0] += F.cross_entropy(logits, labels, reduction="sum")
        cells = (2 + labels * self.num_classes + logits.argmax(1)).masked_fill_(labels == IGNORE, 1)
        self.sums.index_add_(0, cells, torch.ones_like(cells, dtype=self.sums.dtype))


def read_sums(sums: torch.Tensor) -> Evaluation:
    """The score that an evaluator's sums, on the CPU, make."""
    confusion = sums[2:].long()
    num_classes = math.isqrt(len(confusion))
    return Evaluation(loss=sums[0].item() / int(confusion.sum()), confusion=confusion.view(num_classes, num_classes))


def logits_of(model: nn.Module, precision: str, tta: str = "none", *, compiled: bool = False) -> Logits:
    """A function of images (B, C, H, W) that gives the model's logits (B, K) in float32.

    Args:
        model: its weights are expected in the dtype of `precision`.
        precision: a value of `train.precision`.
        tta: test-time augmentation; "flip" averages the logits of each image and its mirror, "none" does not.
        compiled: by torch.compile.
    """
    device = next(model.parameters()).device

    def logits(images: torch.Tensor) -> torch.Tensor:
        with autocast(device, precision):
            plain = model(images).float()
            return (plain + model(images.flip(3)).float()) / 2 if tta == "flip" else plain

    return compile_alone(logits) if compiled else logits


def evaluate(
    model: nn.Module,
    loader: Scored,
    num_classes: int,
    *,
    precision: str = "bf16",
    tta: str = "none",
    world: World | None = None,
) -> Evaluation:
    """Score `model` once; the arguments are those of `Evaluator` and `logits_of`."""
    evaluator = Evaluator(model, logits_of(model, precision, tta), loader, num_classes, world=world)
    evaluator.run()
    return evaluator.score()


def evaluation_loader(
    dataset: Dataset, split: str, recipe: Recipe, device: torch.device, *, kind: str = "resident", shard: Shard = WHOLE
) -> Scored | None:
    """The loader that scores a split, or a part of it, as the recipe says; None for a split that there is not."""
    if getattr(dataset, split) is None:
        return None
    options = {"batch_size": recipe.evaluate.batch_size, "device": device, "shuffle": False, "shard": shard}
    return open_loader(kind, dataset, split, recipe.augment.evaluation(), **options)


def evaluate_run(
    recipe: Recipe,
    path: Path,
    dataset: Dataset,
    split: str,
    device: torch.device,
    loader: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Score the checkpoint at `path`, trained with `recipe`, on the "train", "val" or "test" split.

    Args:
        loader: "auto", "resident" or "streaming"; see `choose_loader`.
        say: told, in a line, that the split is streamed and why.

    Raises:
        UserError: no such split, or the checkpoint does not fit the recipe and data set.
    """
    if split not in ("train", "val", "test"):
        raise UserError(f"--split {split}: must be train, val or test")
    if getattr(dataset, split) is None:
        raise UserError(f"--split {split}: {dataset.root} has no {split} split")
    recipe = recipe.with_classes(len(dataset.manifest.classes), dataset.manifest.image_shape[2])
    recipe, _ = resolve_precision(recipe, device)  # a run's own recipe has it resolved
    precision, tta = recipe.train.precision, recipe.evaluate.tta
    model = to_weights_dtype(build_model(recipe.model), precision)
    restore_model(load_checkpoint(path), model, recipe.model)
    kind, reason = choose_loader(loader, dataset.split_bytes(split), device)
    if kind == "streaming":
        say(f"streaming from {dataset.root}: {reason}")
    batches = evaluation_loader(dataset, split, recipe, device, kind=kind)
    model.to(device, memory_format=torch.channels_last)
    with arithmetic(precision):
        return evaluate(model, batches, recipe.model.num_classes, precision=precision, tta=tta)
