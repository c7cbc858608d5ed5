"""Timing of the device alone on CUDA: no launch overhead, no hits in the L2 cache."""

from collections.abc import Callable

import torch

from fastcifar.bench.peers import Unavailable
from fastcifar.runtime.cuda_graph import CaptureFailed, capture, side_stream

REPLAYS = 4
"""Replays of a graph per round: launching it costs some 10 us, which should be a small part of the round."""


def captured(run: Callable[[], list[torch.Tensor]]) -> Callable[[], list[torch.Tensor]]:
    """Capture `run` as a CUDA graph; return a function that replays it `REPLAYS` times, without the host's work.

    Raises:
        Unavailable: `run` cannot be captured.
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
        return kept  # freed memory would be reused by the next batch, and hit the cache

    return replay_all


def past_the_cache(bytes_each: int, device: torch.device) -> int:
    """Return the number of batches that fill a GPU's L2 cache four times, so that each is read from memory; 1 on a CPU."""
    if device.type == "cpu":
        return 1
    return -(-4 * torch.cuda.get_device_properties(device).L2_cache_size // bytes_each)
