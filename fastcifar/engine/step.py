"""One training step, by interchangeable back ends that the trainer cannot tell apart.

A `Step` keeps its position in the run, and everything it reads or writes (order, learning-rate table, loss of every step,
count of correct predictions) is on the device. The host only says how many steps to take, so a back end that replays a
captured graph fits the same interface.
"""

import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.config import Recipe
from fastcifar.engine.precision import autocast
from fastcifar.errors import UserError
from fastcifar.optim.schedules import lr_table

BACKENDS = "captured", "compiled", "eager"


class Loader(Protocol):
    """What a step needs of a loader; see `fastcifar.data.resident.ResidentLoader`."""

    def __len__(self) -> int: ...
    def set_epoch(self, epoch: int) -> None: ...
    def batch(self, position: int) -> tuple[torch.Tensor, torch.Tensor]: ...
    def load(self) -> tuple[torch.Tensor, torch.Tensor]: ...  # for "captured"


class Step(Protocol):
    """A training step with a memory of where it is.

    Attributes:
        backend: its name in BACKENDS.
        losses: (total steps,) float32 on the device; NaN where no step was taken yet.
        correct: () int64 on the device, correct predictions since the epoch began.
    """

    backend: str
    losses: torch.Tensor
    correct: torch.Tensor

    def seek(self, step: int) -> None:
        """Go to global step number `step`, 0 being the first of the run."""

    def run(self, count: int) -> None:
        """Take `count` steps; they must lie in one epoch. Returns before the device has finished."""


class EagerStep:
    """The step in plain PyTorch; with `compiled`, forward pass and loss go through torch.compile."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: Loader,
        recipe: Recipe,
        *,
        compiled: bool,
        average_gradients: Callable[[], None] | None = None,
    ) -> None:
        self.backend = "compiled" if compiled else "eager"
        self.average_gradients = average_gradients
        self.model, self.optimizer, self.loader = model, optimizer, loader
        self.lr = optimizer.param_groups[0]["lr"]
        device = self.lr.device
        table = lr_table(recipe.schedule, recipe.optimizer.lr, recipe.train.epochs, len(loader))
        self.lr_table = table.to(device)
        self.losses = torch.full_like(self.lr_table, float("nan"))
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        forward = forward_loss(model, device, recipe)
        self.forward = torch.compile(forward, dynamic=False) if compiled else forward
        self.seek(0)

    def seek(self, step: int) -> None:
        self.position = step
        self.correct.zero_()
        self.loader.set_epoch(step // len(self.loader))

    def run(self, count: int) -> None:
        for _ in range(count):
            if self.position and self.position % len(self.loader) == 0:
                self.seek(self.position)
            self._step()
            self.position += 1

    def _step(self) -> None:
        images, labels = self.loader.batch(self.position % len(self.loader))
        self.lr.copy_(self.lr_table[self.position])
        loss, correct = self.forward(images, labels)
        loss.backward()
        if self.average_gradients:
            self.average_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses[self.position] = loss.detach()
        self.correct += correct


def forward_loss(
    model: nn.Module, device: torch.device, recipe: Recipe
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """A function of (images, labels) that gives the mean cross entropy (float32) and the number predicted correctly.

    Labels are (B,) int64, or probabilities (B, K), of which the likeliest class counts as the correct one.
    """
    smoothing, precision = recipe.train.label_smoothing, recipe.train.precision

    def forward(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(device, precision):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        classes = labels if labels.dim() == 1 else labels.argmax(1)
        return loss, (logits.argmax(1) == classes).sum()

    return forward


def build(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Loader,
    recipe: Recipe,
    backend: str = "eager",
    *,
    average_gradients: Callable[[], None] | None = None,
) -> Step:
    """The training step of `recipe` by the back end named.

    `average_gradients` is called between backward and update; see `fastcifar.engine.distributed`.
    """
    if backend == "captured":
        from fastcifar.engine.captured import CapturedStep  # here: it builds on this module

        return CapturedStep(model, optimizer, loader, recipe, average_gradients=average_gradients)
    return EagerStep(model, optimizer, loader, recipe, compiled=backend == "compiled", average_gradients=average_gradients)


def choose_backend(asked: str, device: torch.device) -> tuple[str, str]:
    """(back end, reason) for "auto" or one of BACKENDS.

    Raises:
        UserError: no such back end, "compiled" where torch.compile cannot work, or "captured" without CUDA.
    """
    if asked not in ("auto", *BACKENDS):
        raise UserError(f"--step {asked}: must be auto or one of {', '.join(BACKENDS)}")
    missing = _missing_compiler()
    if asked == "captured" and device.type != "cuda":
        raise UserError(f"--step captured: a CUDA graph needs a CUDA device, this is {device}; leave --step out")
    if asked in ("compiled", "captured") and missing:
        raise UserError(f"--step {asked}: torch.compile needs {missing}")
    if asked != "auto":
        return asked, "as asked"
    if device.type != "cuda":
        return "eager", "torch.compile is no gain on a CPU"
    if missing:
        return "eager", f"torch.compile needs {missing}"
    return "compiled", "captured is not measured yet"


def _missing_compiler() -> str:
    """What torch.compile would look for in vain: it and Triton build small C and C++ libraries. "" where it is all there."""
    if not any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang")):
        return "a C compiler, and none is installed (Debian: build-essential)"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return f"{header}, which is not installed (Debian: python3-dev)"
    return ""
