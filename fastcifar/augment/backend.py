"""Choice of the implementation that makes batches: the Triton kernel or the PyTorch reference."""

import os
from collections.abc import Callable

import torch

from fastcifar.augment import batch
from fastcifar.runtime.compiler import missing_for_kernels
from fastcifar.runtime.errors import UserError

VARIABLE = "FASTCIFAR_AUGMENT"

LoadBatch = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""A function with the arguments and results of `fastcifar.augment.batch.load_batch`."""


def choose_augment(device: torch.device) -> tuple[str, str]:
    """Choose ("fused" or "reference", reason): the kernel on CUDA, the reference elsewhere, or as $FASTCIFAR_AUGMENT says.

    Raises:
        UserError: the variable has an unknown value, or names a kernel that cannot run.
    """
    asked = os.environ.get(VARIABLE) or "auto"
    if asked not in ("auto", "fused", "reference"):
        raise UserError(f"{VARIABLE}={asked}: must be fused or reference, or not set")
    missing = missing_for_kernels(device, interpreter=True)
    if asked == "fused" and missing:
        raise UserError(f"{VARIABLE}=fused: {missing}")
    if asked != "auto":
        return asked, f"{VARIABLE} says so"
    if device.type == "cuda" and not missing:
        return "fused", "the fastest on CUDA"
    return "reference", missing or "Triton interprets, slowly"


def batch_loader(name: str) -> LoadBatch:
    """Return the `load_batch` of "fused" or "reference"."""
    if name == "reference":
        return batch.load_batch
    from fastcifar.augment import fused  # not at the top: Triton may not be installed

    return fused.load_batch
