"""When the device's memory is not enough: the one line that says what would fit."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fastcifar.config import Recipe
from fastcifar.data.dataset import Manifest
from fastcifar.engine.precision import to_weights_dtype
from fastcifar.engine.step import forward_loss
from fastcifar.errors import UserError
from fastcifar.models import build_model
from fastcifar.optim.optimizers import build_optimizer

PROBES = 16, 48
"""Batch sizes whose memory is measured; between them it grows by so much an image."""
USABLE = 0.9
"""Share of the memory to count on; the rest is fragments, cuDNN's and the compiler's work space."""


@contextmanager
def advised(recipe: Recipe, manifest: Manifest, device: torch.device) -> Iterator[None]:
    """Turn running out of device memory into one line with the largest training batch that would fit."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # they hold the batch that was too large
        asked, advice = recipe.train.batch_size, _advice(recipe, manifest, device)
        raise UserError(f"{device} is out of memory at train.batch_size = {asked}; {advice}") from None


def largest_batch(peak: Callable[[int], int], available: int) -> int:
    """The largest batch whose training step fits `available` bytes, a multiple of 8, 0 where none does.

    Args:
        peak: bytes that a step of a batch needs at its peak, model and optimizer included.
        available: bytes.
    """
    small, large = PROBES
    least, most = peak(small), peak(large)
    an_image = (most - least) / (large - small)
    fixed = least - small * an_image
    return max(0, int((USABLE * available - fixed) / an_image)) // 8 * 8


def _advice(recipe: Recipe, manifest: Manifest, device: torch.device) -> str:
    recipe = recipe.with_classes(len(manifest.classes), manifest.image_shape[2])
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    try:
        batch = largest_batch(lambda batch: peak_bytes(recipe, manifest.image_shape, device, batch), free)
    except torch.OutOfMemoryError:
        batch = 0
    if batch == 0:
        return f"{free / 2**20:,.0f} MiB are free, too little for any batch: another program may be using the device"
    return f"the largest that fits {free / 2**20:,.0f} MiB is about {batch}"


def peak_bytes(recipe: Recipe, image_shape: tuple[int, int, int], device: torch.device, batch: int) -> int:
    """Bytes that one eager training step of `batch` images of (H, W, C) takes at its peak, model and optimizer included."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    model = to_weights_dtype(build_model(recipe.model), recipe.train.precision)
    model.to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, recipe.optimizer)
    height, width, channels = image_shape
    shape, dtype = (batch, channels, height, width), getattr(torch, recipe.augment.dtype)
    images = torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)
    loss, _ = forward_loss(model, device, recipe)(images, torch.zeros(batch, dtype=torch.int64, device=device))
    loss.backward()
    optimizer.step()
    return torch.cuda.max_memory_allocated(device) - before
