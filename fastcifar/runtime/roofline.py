"""Ceilings of a device: the measured peak rates that bound its roofline, and the floor they give for the time of a run.

The roofline model: Williams, Waterman and Patterson, Roofline, 2009 (https://doi.org/10.1145/1498765.1498785).
"""

import functools
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch

FLOPS_PER_MAC = 6  # multiply and add, once forward and twice backward (gradients of inputs and of weights)
SMALLEST_SIDE, LARGEST_SIDE = 512, 8192  # of the square matrices
LONG_ENOUGH_S = 0.05  # a product that takes this long runs near the device's peak rate
COPIED_BYTES = {"cpu": 2**27, "cuda": 2**30}  # more than the caches hold


@dataclass(frozen=True)
class Ceilings:
    """Measured peak rates of a device.

    Attributes:
        flops_per_s: FLOP/s of a large square matrix product in the run's dtype.
        bytes_per_s: bytes read plus bytes written per second by a large copy.
    """

    flops_per_s: float
    bytes_per_s: float


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure both ceilings on random data; a few seconds.

    Each is the best of several runs, as in STREAM (McCalpin, https://www.cs.virginia.edu/stream/): other programs lower a
    median, but a ceiling is what the device can do.
    """
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # events belong to the current device
        return Ceilings(_product_flops_per_s(device, dtype), _copy_bytes_per_s(device))


def sustained_flops_per_s(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Measure the FLOP/s of large matrix products, one after the other for about `seconds`.

    A GPU cannot hold its highest clock under its power limit: that clock raises the best of a few products, but not this rate.
    """
    side = LARGEST_SIDE if device.type == "cuda" else SMALLEST_SIDE
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = functools.partial(torch.mm, left, right, out=torch.empty_like(left))
    count = max(1, round(seconds / _least_seconds(product, device)))
    return 2 * side**3 * count / _seconds(lambda: [product() for _ in range(count)], device)


def floor_seconds(macs: int, images: int, ceilings: Ceilings) -> float:
    """Seconds to train on `images` images at the peak FLOP/s; `macs`: multiply-accumulates per image, forward."""
    return FLOPS_PER_MAC * macs * images / ceilings.flops_per_s


def best_of(first: Ceilings, second: Ceilings) -> Ceilings:
    """Combine two measurements: the higher of each rate."""
    return Ceilings(max(first.flops_per_s, second.flops_per_s), max(first.bytes_per_s, second.bytes_per_s))


def _product_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the best rate of square products, with the side doubled until one takes LONG_ENOUGH_S.

    No fixed side suits all devices: two CPU cores took 0.09 s with AMX and 50 s with AVX2 for bf16 at side 2048.
    """
    side, seconds, best = SMALLEST_SIDE // 2, 0.0, 0.0
    while seconds < LONG_ENOUGH_S and side < LARGEST_SIDE:
        side *= 2
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = _least_seconds(functools.partial(torch.mm, left, right, out=torch.empty_like(left)), device)
        best = max(best, 2 * side**3 / seconds)
    return best


def _copy_bytes_per_s(device: torch.device) -> float:
    source = torch.randn(COPIED_BYTES[device.type] // 4, device=device)
    return 2 * source.nbytes / _least_seconds(functools.partial(torch.empty_like(source).copy_, source), device)


def _least_seconds(run: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    run()
    return min(_seconds(run, device) for _ in range(repeats))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    run()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1000
