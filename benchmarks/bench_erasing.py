"""How fast is random erasing, against torchvision, kornia and timm?

    pytest benchmarks/bench_erasing.py --benchmark-only

Batches of 3 x 32 x 32, p = 0.5, other arguments by default. On CUDA they are bf16 (uint8 where it says so) in channels-last
memory, timed by CUDA events, over batches that fill the L2 cache four times, so that all of them come from memory. `captured`
replays a CUDA graph and so times the device alone, `eager` what the host does as well. `share_of_copy` is the bytes read and
written a second, as a share of those of `Tensor.copy_` in the same run. torchvision's v2 module draws one box for a whole
batch, which is less work than a box an image; on the CPU its module is given image by image.
"""

import statistics

import pytest
import torch
import torchvision.transforms
from timing import CUDA, DEVICE, ROUNDS, captured, past_the_cache, seconds
from torchvision.transforms import v2

from fastcifar.augment.erasing import RandomErasing

IMAGE = 3 * 32 * 32  # elements


def kornia():
    augmentation = pytest.importorskip("kornia.augmentation", reason="kornia is not installed")
    return augmentation.RandomErasing(p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3))


def timm():
    module = pytest.importorskip("timm.data.random_erasing", reason="timm is not installed")
    return module.RandomErasing(probability=0.5, min_area=0.02, max_area=0.33, mode="const", device=DEVICE.type)


def uint8():
    return RandomErasing(mean=0.5, std=0.5)


def in_place():
    return RandomErasing(inplace=True)


def each_by_torchvision():
    module = torchvision.transforms.RandomErasing()
    return lambda images: torch.stack([module(image) for image in images])


def make_batches(batch: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Random batches, as many as fill the L2 cache four times."""
    count = past_the_cache(batch * IMAGE * dtype.itemsize)
    pixels = torch.randint(0, 256, (count, batch, 32, 32, 3), dtype=torch.uint8, device=DEVICE)
    pixels = pixels if dtype == torch.uint8 else pixels.to(dtype).div_(255)
    return list(pixels.permute(0, 1, 4, 2, 3).unbind())


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device, PyTorch sees none")
@pytest.mark.parametrize("batch", [64, 256, 1024, 4096, 16384])
@pytest.mark.parametrize("make", [RandomErasing, in_place, uint8, v2.RandomErasing, kornia, timm])
@pytest.mark.parametrize("mode", ["eager", "captured"])
@pytest.mark.benchmark(group="erasing on CUDA")
def test_cuda(benchmark, copy_bandwidth, make, batch, mode):
    if mode == "captured" and make not in (RandomErasing, in_place, uint8):
        pytest.skip("it draws on the host: a captured graph would repeat its boxes")
    module, dtype = make(), torch.uint8 if make is uint8 else torch.bfloat16
    batches, times = make_batches(batch, dtype), []

    def run():
        return [module(images) for images in batches]

    run = captured(run) if mode == "captured" else run
    benchmark.pedantic(lambda: times.append(seconds(run) / len(batches)), rounds=ROUNDS, warmup_rounds=2)
    times = times[-ROUNDS:]  # without the warm-up
    rate = batch / statistics.median(times)
    benchmark.extra_info |= {"images_per_s": rate, "seconds_a_batch": times, "device": torch.cuda.get_device_name()}
    if make in (RandomErasing, uint8):  # the others change some of the pixels in place, or copy more than once
        bytes_per_s = rate * IMAGE * (dtype.itemsize + torch.bfloat16.itemsize)
        benchmark.extra_info |= {"bytes_per_s": bytes_per_s, "share_of_copy": bytes_per_s / copy_bandwidth}


@pytest.mark.skipif(CUDA, reason="measures the CPU where there is no GPU")
@pytest.mark.parametrize("make", [RandomErasing, in_place, each_by_torchvision, timm])
@pytest.mark.benchmark(group="erasing on the CPU")
def test_cpu(benchmark, make):
    module, images = make(), torch.rand(1024, 3, 32, 32)
    benchmark.pedantic(lambda: module(images), rounds=ROUNDS, warmup_rounds=2)
    benchmark.extra_info["images_per_s"] = len(images) / benchmark.stats.stats.median
