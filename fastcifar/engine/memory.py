"""What a CPU's allocator keeps, and the one line that says what would fit when a device's memory is not enough."""

import ctypes
import platform
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fastcifar.config import Recipe
from fastcifar.data.dataset import Manifest
from fastcifar.engine.distributed import World
from fastcifar.engine.precision import resolve_precision, to_weights_dtype
from fastcifar.engine.step import forward_loss
from fastcifar.errors import UserError
from fastcifar.models import build_model
from fastcifar.optim.optimizers import build_optimizer

PROBES = 16, 16, 48
"""Batch sizes whose memory is measured, the first to no account: it pays for what CUDA's libraries take once."""
USABLE = 0.9
"""Share of the memory to count on; the rest is fragments, cuDNN's and the compiler's work space."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of mallopt(3)."""


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, for all of this process, so that the next step finds its memory where this one left it.

    By default it gives large blocks back to the kernel, which fills every page with zeros when they are needed again: some 100
    MB in a step of the seed recipe. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


@contextmanager
def advised(recipe: Recipe, manifest: Manifest, world: World) -> Iterator[None]:
    """Turn running out of device memory into one line with the largest training batch that would fit."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # they hold the batch that was too large
        asked = f"train.batch_size = {recipe.train.batch_size}, evaluate.batch_size = {recipe.evaluate.batch_size}"
        raise UserError(f"{world.device} is out of memory at {asked}; {_advice(recipe, manifest, world)}") from None


def largest_batch(peak: Callable[[int], int], available: int) -> int:
    """The largest batch whose training step fits `available` bytes, a multiple of 8, 0 where none does.

    Args:
        peak: bytes that a step of a batch needs at its peak, model and optimizer included.
        available: bytes.
    """
    _, least, most = map(peak, PROBES)
    _, small, large = PROBES
    an_image = max(1.0, (most - least) / (large - small))
    return max(0, int((USABLE * available - (least - small * an_image)) / an_image)) // 8 * 8


def _advice(recipe: Recipe, manifest: Manifest, world: World) -> str:
    recipe, _ = resolve_precision(recipe.with_classes(len(manifest.classes), manifest.image_shape[2]), world.device)
    torch.backends.cudnn.benchmark = False  # its trials take what memory there is, and the run is over
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
    """Bytes that one eager training step of `batch` images of (H, W, C) takes at its peak, model and optimizer included."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    model = to_weights_dtype(build_model(recipe.model), recipe.train.precision)
    model.to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, recipe.optimizer)
    shape, dtype = (batch, image_shape[2], *recipe.augment.output_size(*image_shape)), getattr(torch, recipe.augment.dtype)
    images = torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    loss, _ = forward_loss(model, device, recipe)(images, labels)
    loss.backward()
    optimizer.step()
    return torch.cuda.max_memory_allocated(device) - before
