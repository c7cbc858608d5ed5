"""Choose and open the loader that makes batches: the resident one, unless the split is too large for the device's memory."""

from typing import Any

import torch

from fastcifar.augment import Policy
from fastcifar.data.dataset import Dataset
from fastcifar.data.resident import ResidentLoader
from fastcifar.data.streaming import StreamingLoader
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.memory import free_memory

LOADERS = "resident", "streaming"
RESIDENT_SHARE = 0.8
"""Share of the free memory that a resident split may take; the rest is for the model and its activations."""


def choose_loader(asked: str, split_bytes: int, device: torch.device | str, free_bytes: int | None = None) -> tuple[str, str]:
    """Choose between the loaders; return ("resident" or "streaming", reason).

    Args:
        asked: "auto", or one of LOADERS.
        split_bytes: of the split's pixels.
        device: where the batches are made.
        free_bytes: free memory of the device; None queries it.

    Raises:
        UserError: no such loader.
    """
    if asked not in ("auto", *LOADERS):
        raise UserError(f"`loader={asked}`: must be auto or one of {', '.join(LOADERS)}")
    if asked != "auto":
        return asked, "as asked"
    device = torch.device(device)
    free = free_memory(device) if free_bytes is None else free_bytes
    if free is None:
        return "resident", f"free memory of {device} unknown"
    amount = f"{split_bytes / 2**20:,.0f} MiB of pixels, {free / 2**20:,.0f} MiB free on {device}"
    if split_bytes > RESIDENT_SHARE * free:
        return "streaming", f"{amount}, a resident split may take {RESIDENT_SHARE:.0%} of it"
    return "resident", amount


def open_loader(kind: str, dataset: Dataset, split: str, policy: Policy, **options: Any) -> ResidentLoader | StreamingLoader:
    """Open the loader of kind "resident" or "streaming" for a split; `options` are those of `Loader`."""
    if kind == "streaming":
        return StreamingLoader(dataset.root / f"{split}.beton", policy, **options)
    return ResidentLoader(getattr(dataset, split), policy, **options)
