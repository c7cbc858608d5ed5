"""Back ends of the training step (eager, compiled, captured): choose one and build it."""

from typing import Any

import torch
from torch import nn

from fastcifar.data.loader import Loader
from fastcifar.engine.captured import CapturedStep
from fastcifar.engine.step import EagerStep
from fastcifar.recipe import Recipe
from fastcifar.runtime.compiler import missing_compiler
from fastcifar.runtime.errors import UserError

BACKENDS = "captured", "compiled", "eager"


def choose_backend(asked: str, device: torch.device, *, streaming: bool = False) -> tuple[str, str]:
    """Choose a back end; return (back end, reason). Where `asked` is not possible, it is the next one of BACKENDS.

    Raises:
        UserError: no such back end.
    """
    if asked not in ("auto", *BACKENDS):
        raise UserError(f"`backend={asked}`: must be auto or one of {', '.join(BACKENDS)}")
    if asked == "eager":
        return "eager", "as asked"
    if asked == "auto" and device.type != "cuda":
        return "eager", "torch.compile is no gain on a CPU"
    missing = missing_compiler()
    if missing:
        return "eager", f"torch.compile needs {missing}"
    if asked == "compiled":
        return "compiled", "as asked"
    if device.type != "cuda":
        return "compiled", f"a CUDA graph needs a CUDA device, this is {device}"
    if streaming:
        return "compiled", "streamed batches come from the host, which a CUDA graph cannot wait for"
    return "captured", "as asked" if asked == "captured" else "the fewest launches"


def build_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Loader,
    recipe: Recipe,
    backend: str = "eager",
    **options: Any,
) -> EagerStep:
    """Build the training step of `recipe` with a back end; `options` are those of `EagerStep`."""
    if backend == "captured":
        return CapturedStep(model, optimizer, loader, recipe, **options)
    return EagerStep(model, optimizer, loader, recipe, compiled=backend == "compiled", **options)
