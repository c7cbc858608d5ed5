"""CUDA graphs: capture work once, then replay it with one launch."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def side_stream() -> Iterator[None]:
    """Run work on a separate stream, after earlier and before later work of the current stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            yield
    finally:  # after an error too: kernels launched before it still use their memory
        torch.cuda.current_stream().wait_stream(side)


class CaptureFailed(Exception):
    """Work cannot be captured; the message says why."""


def capture(work: Callable[[], None], pool: Any = None) -> Callable[[], None]:
    """Capture `work`, which must have run before, without running it; return a function that replays it.

    Args:
        pool: memory pool shared between graphs, see `torch.cuda.graph_pool_handle`; a new one by default.

    Raises:
        CaptureFailed: `work` waits for the device, or does something else that a CUDA graph cannot hold.
    """
    gc.collect()  # otherwise a garbage cycle that holds device memory may be freed during the capture
    graph, pool = torch.cuda.CUDAGraph(), pool or torch.cuda.graph_pool_handle()
    try:
        # The outer context is for torch 2.11, which stays on the capture's stream when it fails.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool, capture_error_mode="thread_local"),  # NCCL's watchdog thread is allowed
        ):
            work()
    except Exception as error:
        _end_capture(pool)
        if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
            raise
        # PyTorch raises further errors when a capture has failed; the first one is the cause.
        cause = str(error.__context__ or error).strip().splitlines()
        raise CaptureFailed(cause[0] if cause else type(error).__name__) from error
    return graph.replay


def _end_capture(pool: Any) -> None:
    """End the recording by the memory allocator and the default generator, which a failed capture leaves before torch 2.15."""
    device = torch.cuda.current_device()
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:
        pass  # it has ended and released the pool
    else:
        torch._C._cuda_releasePool(device, pool)
    generator = torch.cuda.default_generators[device]
    state = generator.get_state()
    generator.graphsafe_set_state(torch.Generator("cuda"))
    generator.set_state(state)


@contextmanager
def separate_random_state() -> Iterator[None]:
    """Use a separate random state for a capture that draws nothing, so that its failure does not affect other graphs."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    kept = generator.graphsafe_get_state()
    generator.graphsafe_set_state(torch.Generator("cuda"))
    try:
        yield
    finally:
        generator.graphsafe_set_state(kept)
