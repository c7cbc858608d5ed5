"""Out of memory is one line that says what would fit."""

import dataclasses

import pytest
import torch

from fastcifar.engine import out_of_memory as memory
from fastcifar.engine.trainer import train
from fastcifar.runtime.errors import UserError


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
    """A step of the recommended batch runs within the memory that it was computed for, and takes most of it."""
    device, available = torch.device("cuda"), 2**31
    model = dataclasses.replace(recipe.model, channels=(64, 128), dropout=0.0)
    recipe = dataclasses.replace(recipe, model=model)

    def peak(batch):
        return memory.peak_bytes(recipe, dataset.manifest.image_shape, device, batch)

    batch = memory.largest_batch(peak, available)
    assert 0.5 * available < peak(batch) < available
