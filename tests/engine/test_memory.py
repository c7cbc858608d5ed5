"""Freed memory is kept; out of memory is one line that says what would fit."""

import dataclasses
import platform
import resource

import pytest
import torch

from fastcifar.engine import memory
from fastcifar.engine.distributed import World
from fastcifar.engine.engine import Engine
from fastcifar.engine.trainer import train
from fastcifar.errors import UserError


def faults(size, times=5):
    """Pages that the kernel gave while a tensor of `size` bytes was made and let go, again and again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(size, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told")
def test_memory_that_was_freed_is_used_again():
    size = 2**27  # more than glibc would keep on its own
    memory.keep_freed_memory()
    faults(size)
    assert faults(size) < size / resource.getpagesize() / 10


def test_an_engine_on_a_cpu_keeps_what_it_frees(recipe, dataset, monkeypatch):
    told = []
    monkeypatch.setattr("fastcifar.engine.engine.keep_freed_memory", lambda: told.append(True))
    Engine(recipe, dataset, World(torch.device("cpu")))
    assert told


@pytest.mark.parametrize(("fixed", "an_image"), [(0, 1000), (50_000, 700), (10**7, 123_456)])
def test_the_largest_batch_fits_and_the_next_does_not(fixed, an_image):
    available = 10**9
    batch = memory.largest_batch(lambda images: fixed + images * an_image, available)
    assert batch % 8 == 0
    assert fixed + batch * an_image <= memory.USABLE * available < fixed + (batch + 8) * an_image


def test_a_step_whose_memory_does_not_grow_is_no_division_by_zero():
    assert memory.largest_batch(lambda images: 1000, 2000) > 0


def test_where_not_even_the_model_fits_the_largest_batch_is_0():
    assert memory.largest_batch(lambda images: 1000 + images, 500) == 0


def test_running_out_of_memory_is_one_line_with_the_batch_that_fits(recipe, dataset, tmp_path, monkeypatch):
    """A CPU has no such error; here a step raises CUDA's, and the measurements are made up."""

    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 TiB.")

    monkeypatch.setattr("fastcifar.engine.step.EagerStep.run", exhausted)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**31))
    monkeypatch.setattr(memory, "peak_bytes", lambda recipe, shape, device, batch: 2**20 * (100 + batch))
    with pytest.raises(UserError) as caught:
        train(recipe, dataset, tmp_path / "run", device="cpu")
    expected = "cpu is out of memory at train.batch_size = 16, evaluate.batch_size = 32; 1,024 MiB are free, enough for a "
    assert str(caught.value) == f"{expected}train.batch_size of about 816"


@pytest.mark.gpu
def test_the_advice_fits_on_a_gpu(recipe, dataset):
    """A step of the advised batch runs within the memory it was advised for, and takes most of it."""
    device, available = torch.device("cuda"), 2**31
    wide = dataclasses.replace(recipe.model, channels=(64, 128), dropout=0.0)
    recipe = dataclasses.replace(recipe, model=wide)

    def peak(batch):
        return memory.peak_bytes(recipe, dataset.manifest.image_shape, device, batch)

    batch = memory.largest_batch(peak, available)
    assert 0.5 * available < peak(batch) < available
