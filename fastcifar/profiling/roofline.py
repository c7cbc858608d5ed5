"""The ceilings of a device, measured on the spot, and the floor they set under a run.

The roofline model: Williams, Waterman and Patterson, Roofline, 2009 (https://doi.org/10.1145/1498765.1498785).
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FLOPS_PER_MAC = 6  # multiply and add, once forward and twice backward (gradients of inputs and of weights)


@dataclass(frozen=True)
class Ceilings:
    """What a device reached.

    Attributes:
        flops_per_s: of a large square matrix product in the run's dtype, FLOP/s.
        bytes_per_s: of a large copy, bytes read plus bytes written a second.
    """

    flops_per_s: float
    bytes_per_s: float


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure both ceilings: the median of several runs after a warm-up, on random data; about a second."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    matmul = _median_seconds(lambda: torch.matmul(left, right, out=product), device)
    source = torch.randn((2**30 if device.type == "cuda" else 2**27) // 4, device=device)
    target = torch.empty_like(source)
    copy = _median_seconds(lambda: target.copy_(source), device)
    return Ceilings(flops_per_s=2 * side**3 / matmul, bytes_per_s=2 * source.nbytes / copy)


def floor_seconds(macs: int, images: int, ceilings: Ceilings) -> float:
    """Seconds that the arithmetic of training on `images` images takes at the ceiling, `macs` being one forward pass."""
    return FLOPS_PER_MAC * macs * images / ceilings.flops_per_s


def _median_seconds(run: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    for _ in range(2):
        run()
    return statistics.median(_seconds(run, device) for _ in range(repeats))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    run()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended) / 1000
