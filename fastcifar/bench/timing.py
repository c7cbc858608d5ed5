"""What makes a timing on CUDA say something of the device."""

from collections.abc import Callable

import torch

from fastcifar.bench.peers import Unavailable
from fastcifar.runtime.cuda_graph import CaptureFailed, capture, side_stream

REPLAYS = 4
"""Of a graph in a round, so that starting it, some 10 us, is little of it."""


def captured(run: Callable[[], list[torch.Tensor]]) -> Callable[[], list[torch.Tensor]]:
    """`run` as a CUDA graph, replayed `REPLAYS` times: the device's time, without that of the host.

    Raises:
        Unavailable: it cannot be captured.
    """
    kept = []
    with side_stream():
        run()  # compiles
    try:
        replay = capture(lambda: kept.extend(run()))
    except CaptureFailed as error:
        raise Unavailable(f"it could not be captured: {error}") from None

    def replay_all() -> list[torch.Tensor]:
        for _ in range(REPLAYS):
            replay()
        return kept  # memory given back would be used again by the next batch, out of the cache

    return replay_all


def past_the_cache(bytes_each: int, device: torch.device) -> int:
    """How many batches of that size fill a GPU's L2 cache four times, so that each comes from memory; 1 on a CPU."""
    if device.type == "cpu":
        return 1
    return -(-4 * torch.cuda.get_device_properties(device).L2_cache_size // bytes_each)
