"""Training in plain PyTorch, as in its tutorials: the peer of step, epoch and train.

Eager float32 in PyTorch's default memory layout and settings (cuDNN may round factors to TF32), fed by a `DataLoader` with
torchvision's PIL transforms. It has two advantages: no loss is read, so nothing synchronises, and the learning rate is fixed.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.bench.peers import Unavailable, data_loader
from fastcifar.data.dataset import Dataset
from fastcifar.models import build_model
from fastcifar.optim.optimizers import OptimizerConfig
from fastcifar.recipe import Recipe

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(images, labels) to the mean loss."""


class PlainTraining:
    """Trainer of the recipe's model with plain PyTorch.

    It is in no reference cycle: its workers exit as soon as it is deleted, and not while another implementation is timed.

    Raises:
        Unavailable: PyTorch has no such optimizer or transform.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.model = model = build_model(recipe.model).to(device)
        optimizer = plain_optimizer(model, recipe.optimizer)
        self.step = train_step(optimizer, lambda images, labels: F.cross_entropy(model(images), labels))

    def load(self, dataset: Dataset, folder: Path) -> None:
        """Build the data loaders; the pixels are written to `folder`."""
        recipe, device = self.recipe, self.device
        self.training = data_loader(dataset.train, folder, recipe.augment, recipe.train.batch_size, device)
        policy, batch = recipe.augment.evaluation(), recipe.evaluate.batch_size
        self.validation = data_loader(dataset.val, folder, policy, batch, device, shuffle=False)

    def epoch(self) -> float:
        """Train on every batch, then return `score`."""
        for batch in self.training:
            self.step(*self._moved(batch))
        return self.score()

    def score(self) -> float:
        """Compute the accuracy on the validation split, 0 to 1."""
        self.model.eval()
        with torch.no_grad():
            batches = map(self._moved, self.validation)
            right = [self.model(images).argmax(1) == labels for images, labels in batches]
        self.model.train()
        return torch.cat(right).float().mean().item()

    def _moved(self, batch: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        return [tensor.to(self.device, non_blocking=True) for tensor in batch]


def plain_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build PyTorch's own optimizer, with its defaults."""
    shared = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.name == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=config.momentum, nesterov=config.nesterov, **shared)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if config.name not in kinds:
        raise Unavailable(f"there is no plain PyTorch way here for the optimizer {config.name}")
    return kinds[config.name](model.parameters(), betas=(config.momentum, 0.999), **shared)


def train_step(optimizer: torch.optim.Optimizer, loss_of: Loss) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Build a function that takes one step on (images, labels) without synchronising."""

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        loss = loss_of(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
