"""Score a model on a split."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.augment import IGNORE
from fastcifar.data.choice import choose_loader, open_loader
from fastcifar.data.dataset import SPLITS, Dataset
from fastcifar.data.loader import Batch, Loader
from fastcifar.engine.step import compile_static
from fastcifar.models import build_model
from fastcifar.recipe import Recipe
from fastcifar.run.checkpoint import load_checkpoint, restore_model
from fastcifar.run.score import Score
from fastcifar.runtime.cuda_graph import CaptureFailed, capture, separate_random_state, side_stream
from fastcifar.runtime.distributed import World
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.precision import PRECISIONS, arithmetic, autocast, to_weights_dtype
from fastcifar.runtime.shard import WHOLE, Shard

Logits = Callable[[torch.Tensor], torch.Tensor]
Views = list[tuple[torch.Tensor, float]]


class Evaluator:
    """Scores a model repeatedly.

    The sums stay on the device until `score`, so that the host need not wait, and a batch can be captured. Padded images
    (label `IGNORE`) do not count. The model's mode (training or evaluation) is restored.

    Args:
        model: put into evaluation mode while it is scored.
        logits: maps images (B, C, H, W) to logits (B, K) float32; see `logits_of`.
        loader: does not shuffle; see `ResidentLoader(shuffle=False)`.
        num_classes: K.
        captured: replay a CUDA graph of one batch.
        arithmetic: PyTorch's switches while the model runs; see `fastcifar.runtime.precision.arithmetic`.
        world: if given, each rank's loader holds a part of the split, and every rank gets the score of the whole.

    Attributes:
        sums: (2 + K * K,) float64 on the device, after `run`: sum of the losses, number of padded images, confusion matrix.
    """

    def __init__(
        self,
        model: nn.Module,
        logits: Logits,
        loader: Loader,
        num_classes: int,
        *,
        captured: bool = False,
        world: World | None = None,
        arithmetic: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.model, self.logits, self.loader, self.num_classes = model, logits, loader, num_classes
        self.captured, self.world, self.arithmetic = captured, world, arithmetic
        self.sums = torch.zeros(2 + num_classes**2, dtype=torch.float64, device=next(model.parameters()).device)
        self.replay: Callable[[], None] | None = None

    def warm_up(self) -> None:
        """Compile and capture, so that a later `run` only scores."""
        self._capture()
        if not self.replay and len(self.loader):  # a rank may have no images
            with self._evaluating():
                self._add(self.loader.batch(0))

    def run(self) -> None:
        """Score the split; returns before the device has finished."""
        self._capture()
        self.sums.zero_()
        with self._evaluating():
            if self.replay:
                self.loader.seek(0)
                for _ in range(len(self.loader)):
                    self.replay()
            else:
                for batch in self.loader:
                    self._add(batch)
        if self.world:
            self.world.all_reduce_sum(self.sums)

    def score(self) -> Score:
        """Return the result of the last `run`; waits for it."""
        return Score.of_sums(self.sums.cpu())

    def _capture(self) -> None:
        """Capture a batch, once; if that fails, the result is the same and slower."""
        if not self.captured or self.replay:
            return
        with self._evaluating(), side_stream():
            self._next_batch()
        try:
            with self._evaluating(), separate_random_state():
                self.replay = capture(self._next_batch)
        except CaptureFailed:
            self.captured = False

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.arithmetic():
                yield
        finally:
            self.model.train(was_training)

    def _next_batch(self) -> None:
        """Score the batch at the loader's position and advance it; needs nothing from the host."""
        self._add(self.loader.load())
        self.loader.advance()

    def _add(self, batch: Batch) -> None:
        images, labels = batch
        logits = self.logits(images)
        self.sums[0] += F.cross_entropy(logits, labels, reduction="sum")
        cells = (2 + labels * self.num_classes + logits.argmax(1)).masked_fill_(labels == IGNORE, 1)
        self.sums.index_add_(0, cells, torch.ones_like(cells, dtype=self.sums.dtype))


def mirrored(images: torch.Tensor, weight: float = 1.0) -> Views:
    """An image and its mirror, of equal weight."""
    return [(images, weight / 2), (images.flip(3), weight / 2)]


def multi_crop(images: torch.Tensor) -> Views:
    """An image and two views moved by one pixel, up and left, down and right, each with its mirror.

    The image has half of the weight, as in airbench (Jordan, https://arxiv.org/abs/2404.00498).
    """
    height, width = images.shape[2:]
    wider = F.pad(images, (1, 1, 1, 1), mode="reflect")
    moved = (wider[:, :, i : i + height, i : i + width].contiguous(memory_format=torch.channels_last) for i in (0, 2))
    return mirrored(images, 0.5) + [view for one in moved for view in mirrored(one, 0.25)]


VIEWS: dict[str, Callable[[torch.Tensor], Views]] = {
    "none": lambda images: [(images, 1.0)],
    "flip": mirrored,
    "multi_crop": multi_crop,
}
"""Value of `evaluate.tta` -> function of images (B, C, H, W) to views of them, each with its weight; the weights sum to 1."""

VIEW_COUNTS = {"none": 1, "flip": 2, "multi_crop": 6}
"""Forward passes per image of each of `VIEWS`."""


def logits_of(
    model: nn.Module, precision: str, tta: str = "none", *, tta_share: float = 1.0, compiled: bool = False
) -> Logits:
    """Return a function of images (B, C, H, W) to the model's logits (B, K) in float32.

    Args:
        model: its weights are expected in the dtype of `precision`.
        precision: a value of `train.precision`.
        tta: test-time augmentation, a key of `VIEWS`.
        tta_share: share of each batch that gets it: the images whose two highest logits are closest. The logits of the others
            are those of the image alone.
        compiled: use torch.compile.
    """
    device = next(model.parameters()).device

    def of_views(images: torch.Tensor) -> torch.Tensor:
        return sum(model(view).float() * weight for view, weight in VIEWS[tta](images))

    def logits(images: torch.Tensor) -> torch.Tensor:
        with autocast(device, precision):
            if tta_share == 1:
                return of_views(images)
            alone = model(images).float()
            highest = alone.topk(2).values
            unsure = (highest[:, 0] - highest[:, 1]).topk(math.ceil(tta_share * len(images)), largest=False).indices
            moved = images[unsure].contiguous(memory_format=torch.channels_last)
            return alone.index_copy(0, unsure, of_views(moved))

    return compile_static(logits) if compiled else logits


def evaluate(
    model: nn.Module,
    loader: Loader,
    num_classes: int,
    *,
    precision: str = "bf16",
    tta: str = "none",
    tta_share: float = 1.0,
    world: World | None = None,
) -> Score:
    """Score `model` once; the arguments are those of `Evaluator` and `logits_of`."""
    switches, logits = partial(arithmetic, precision), logits_of(model, precision, tta, tta_share=tta_share)
    evaluator = Evaluator(model, logits, loader, num_classes, world=world, arithmetic=switches)
    evaluator.run()
    return evaluator.score()


def evaluation_loader(
    dataset: Dataset, split: str, recipe: Recipe, device: torch.device, *, kind: str = "resident", shard: Shard = WHOLE
) -> Loader | None:
    """Open the loader to score a split, or a rank's part of it, with the recipe's settings; None for an absent split."""
    if getattr(dataset, split) is None:
        return None
    options = {"batch_size": recipe.evaluate.batch_size, "device": device, "shuffle": False, "shard": shard}
    options["dtype"] = PRECISIONS[recipe.train.precision].compute
    return open_loader(kind, dataset, split, recipe.augment.evaluation(), **options)


def evaluate_run(
    recipe: Recipe,
    path: Path,
    dataset: Dataset,
    split: str,
    device: torch.device,
    loader: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> Score:
    """Score the checkpoint at `path`, trained with `recipe`, on the "train", "val" or "test" split.

    Args:
        loader: "auto", "resident" or "streaming"; see `choose_loader`.
        say: called with one line that says why, if the split is streamed.

    Raises:
        UserError: no such split, or the checkpoint does not fit the recipe and data set.
    """
    if split not in SPLITS:
        raise UserError(f"`split={split}`: must be train, val or test")
    if getattr(dataset, split) is None:
        raise UserError(f"`split={split}`: {dataset.root} has no {split} split")
    recipe = recipe.fitted_to(dataset.manifest)
    recipe, _ = recipe.resolved(device)  # a run's own recipe is resolved already
    precision = recipe.train.precision
    model = to_weights_dtype(build_model(recipe.model), precision)
    restore_model(load_checkpoint(path), model, recipe.model)
    kind, reason = choose_loader(loader, dataset.split_bytes(split), device)
    if kind == "streaming":
        say(f"streaming from {dataset.root}: {reason}")
    batches = evaluation_loader(dataset, split, recipe, device, kind=kind)
    model.to(device, memory_format=torch.channels_last)
    tta = {"tta": recipe.evaluate.tta, "tta_share": recipe.evaluate.tta_share}
    return evaluate(model, batches, recipe.model.num_classes, precision=precision, **tta)
