"""Clocks and peers' inputs shared by the benchmarks."""

import statistics
from collections.abc import Callable

import torch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
ROUNDS = 9


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """`run` as a CUDA graph."""
    run()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graph.kept = run()  # memory given back would be used again by the next batch, out of the cache
    return graph.replay


def seconds(run: Callable[[], object]) -> float:
    """By CUDA events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def measure_copy_bandwidth() -> float:
    """Bytes read and written a second by `Tensor.copy_` of 1 GiB."""
    source = torch.randint(0, 256, (2**30,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / statistics.median(seconds(lambda: target.copy_(source)) for _ in range(ROUNDS))


def past_the_cache(bytes_each: int) -> int:
    """How many batches of that size fill the L2 cache four times, so that each comes from memory; at least two."""
    return max(2, -(-4 * torch.cuda.get_device_properties(DEVICE).L2_cache_size // bytes_each))
