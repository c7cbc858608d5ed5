"""Peak rates of a device, measured: the two lines of its roofline, and the floor of a run's time that follows from them.

The roofline model: Williams, Waterman and Patterson, Roofline, 2009 (https://doi.org/10.1145/1498765.1498785).
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from fastcifar.runtime.precision import PRECISIONS, arithmetic
from fastcifar.runtime.timing import Clock

FLOPS_PER_MAC = 6  # multiply and add, once forward and twice backward (gradients of inputs and of weights)
SMALLEST_SIDE, LARGEST_SIDE = 512, 8192  # of the square matrices
LONG_ENOUGH_S = 0.05  # a product that takes this long runs near the device's peak rate
COPIED_BYTES = {"cpu": 2**27, "cuda": 2**30}  # more than the caches hold


@dataclass(frozen=True)
class Peaks:
    """Measured peak rates of a device.

    Attributes:
        flops_per_s: FLOP/s of a large square matrix product in the run's precision.
        bytes_per_s: bytes read plus bytes written per second by a large copy.
    """

    flops_per_s: float
    bytes_per_s: float


def measure_peaks(device: torch.device, precision: str) -> Peaks:
    """Measure both peak rates on random data; a few seconds.

    Each is the best of several runs, as in STREAM (McCalpin, https://www.cs.virginia.edu/stream/): other programs lower a
    median, but a peak is what the device can do.

    Args:
        precision: of the matrix product, a key of `PRECISIONS`.
    """
    with _measuring(device, precision) as dtype:
        return Peaks(_product_flops_per_s(device, dtype), _copy_bytes_per_s(device))


def sustained_flops_per_s(device: torch.device, precision: str, seconds: float = 1.0) -> float:
    """Measure the FLOP/s of large matrix products, one after the other for about `seconds`.

    A GPU cannot hold its highest clock under its power limit: that clock raises the best of a few products, but not this rate.
    """
    side = LARGEST_SIDE if device.type == "cuda" else SMALLEST_SIDE
    with _measuring(device, precision) as dtype:
        product = _product(side, device, dtype)
        count = max(1, round(seconds / _least_seconds(product, device)))
        return 2 * side**3 * count / _seconds(lambda: [product() for _ in range(count)], device)


def best_of(first: Peaks, second: Peaks) -> Peaks:
    """Combine two measurements: the higher of each rate."""
    return Peaks(max(first.flops_per_s, second.flops_per_s), max(first.bytes_per_s, second.bytes_per_s))


@contextmanager
def _measuring(device: torch.device, precision: str) -> Iterator[torch.dtype]:
    """Set the switches of `precision`, make `device` current, which events are recorded on, and yield the dtype."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext(), arithmetic(precision):
        yield PRECISIONS[precision].compute


def _product_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the best rate of square products, with the side doubled until one takes LONG_ENOUGH_S.

    No fixed side suits all devices: two CPU cores took 0.09 s with AMX and 50 s with AVX2 for bf16 at side 2048.
    """
    side, seconds, best = SMALLEST_SIDE // 2, 0.0, 0.0
    while seconds < LONG_ENOUGH_S and side < LARGEST_SIDE:
        side *= 2
        seconds = _least_seconds(_product(side, device, dtype), device)
        best = max(best, 2 * side**3 / seconds)
    return best


def _product(side: int, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """Return a function that multiplies two random square matrices."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return functools.partial(torch.mm, left, right, out=torch.empty_like(left))


def _copy_bytes_per_s(device: torch.device) -> float:
    source = torch.randn(COPIED_BYTES[device.type] // 4, device=device)
    return 2 * source.nbytes / _least_seconds(functools.partial(torch.empty_like(source).copy_, source), device)


def _least_seconds(run: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    run()
    return min(_seconds(run, device) for _ in range(repeats))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    clock = Clock(device)
    began = clock.now()
    run()
    return clock.seconds(began, clock.now())
