"""Report running out of device memory in one line, with the batch size that would fit."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fastcifar.data.dataset import Manifest
from fastcifar.engine.step import forward_loss
from fastcifar.models import build_model
from fastcifar.optim.optimizers import build_optimizer
from fastcifar.recipe import Recipe
from fastcifar.runtime.distributed import World
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.precision import PRECISIONS, to_weights_dtype

PROBES = 16, 16, 48
"""Batch sizes whose memory is measured. The first is not counted: it includes what CUDA's libraries allocate once."""
USABLE = 0.9
"""Share of the free memory to plan with; the rest is for fragmentation, cuDNN's and the compiler's workspaces."""


@contextmanager
def out_of_memory_as_user_error(recipe: Recipe, manifest: Manifest, world: World) -> Iterator[None]:
    """Turn running out of device memory into one line with the largest training batch that would fit."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # the frames hold the batch that was too large
        asked = f"train.batch_size = {recipe.train.batch_size}, evaluate.batch_size = {recipe.evaluate.batch_size}"
        raise UserError(f"{world.device} is out of memory at {asked}; {_advice(recipe, manifest, world)}") from None


def largest_batch(peak: Callable[[int], int], available: int) -> int:
    """Return the largest batch size, a multiple of 8, whose training step fits `available` bytes; 0 if none does.

    Args:
        peak: maps a batch size to the peak bytes of a step, including model and optimizer.
        available: bytes.
    """
    _, least, most = map(peak, PROBES)
    _, small, large = PROBES
    bytes_per_image = max(1.0, (most - least) / (large - small))
    return max(0, int((USABLE * available - (least - small * bytes_per_image)) / bytes_per_image)) // 8 * 8


def _advice(recipe: Recipe, manifest: Manifest, world: World) -> str:
    recipe, _ = recipe.fitted_to(manifest).resolved(world.device)
    torch.backends.cudnn.benchmark = False  # its trials take memory, and the run has ended
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(world.device)
    try:
        batch = largest_batch(lambda batch: peak_bytes(recipe, manifest.image_shape, world.device, batch), free) * world.size
    except torch.OutOfMemoryError:
        batch = 0
    if batch == 0:
        return f"{free / 2**20:,.0f} MiB are free, too little for any batch: another program may be using the device"
    return f"{free / 2**20:,.0f} MiB are free, enough for a train.batch_size of about {batch}"


def peak_bytes(recipe: Recipe, image_shape: tuple[int, int, int], device: torch.device, batch: int) -> int:
    """Measure the peak bytes of one eager training step with `batch` images of (H, W, C), including model and optimizer."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    model = to_weights_dtype(build_model(recipe.model), recipe.train.precision)
    model.to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, recipe.optimizer)
    shape = (batch, image_shape[2], *recipe.augment.output_size(*image_shape))
    dtype = PRECISIONS[recipe.train.precision].compute
    images = torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    loss, *_ = forward_loss(model, device, recipe)(images, labels)
    loss.backward()
    optimizer.step()
    return torch.cuda.max_memory_allocated(device) - before
