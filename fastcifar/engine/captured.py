"""Work captured in CUDA graphs, which the host only replays: the training step, and a batch of an evaluation.

Gather, augmentation, forward, backward, update, learning rate and metrics read their step number, epoch and order from device
memory and move the step number on themselves. A replay therefore needs nothing from the host, and replays follow each other
without a gap. torch.compile makes the kernels, without CUDA graphs of its own: the capture has one owner.

Stages: warm up (compile, tune, allocate; what it trained is undone), capture, replay.
"""

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fastcifar.engine.step import EagerStep

STEPS_A_GRAPH = 5
"""Steps that one replay takes where so many are left; every graph launched leaves the device idle for a moment."""


class CapturedStep(EagerStep):
    """A `Step` that replays CUDA graphs of one step and of several; see `fastcifar.engine.step.EagerStep`.

    Where the capture fails, the step goes on as `compiled`, and `failure` says why.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.graphs: dict[int, Callable[[], None]] = {}
        """Number of steps -> what takes them."""
        super().__init__(*args, compiled=True, **options)
        self.backend = "captured"

    def warm_up(self) -> None:
        if self.graphs or self.failure:
            return
        with side_stream():
            super().warm_up()
        if self.failure:
            return
        pool = torch.cuda.graph_pool_handle()  # one for both: nothing in it is needed after a replay
        self._declare_capturable(True)
        try:
            self.graphs = {n: capture(functools.partial(self._several, n), pool) for n in (STEPS_A_GRAPH, 1)}
        except CaptureFailed as error:
            self._fall_back("compiled", f"the step could not be captured: {error}")
            self._declare_capturable(False)

    def seek(self, step: int) -> None:
        super().seek(step)
        self.loader.state[2].fill_(step % len(self.loader))

    def _advance(self, count: int) -> None:
        self.warm_up()
        if self.failure:
            return super()._advance(count)
        self.position += count
        for length, replay in self.graphs.items():
            for _ in range(count // length):
                replay()
            count %= length

    def _one(self) -> None:
        """One step; captured, it needs nothing from the host."""
        if self.failure:
            return super()._one()
        self.mark("begin")
        batch = self.loader.load()
        self.loader.state[2] += 1
        self._train(batch)

    def _several(self, count: int) -> None:
        for _ in range(count):
            self._one()

    def _declare_capturable(self, capturable: bool) -> None:
        """Adam wants to be told, though fused it always is; it warns where it is told and not captured."""
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = capturable

    def _changed(self) -> list[torch.Tensor]:
        return [*super()._changed(), self.loader.state]


@contextmanager
def side_stream() -> Iterator[None]:
    """Work goes to a stream of its own, between what was given to the current stream before and what is given to it after."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            yield
    finally:  # after an error too: what was launched before it still uses its memory
        torch.cuda.current_stream().wait_stream(side)


class CaptureFailed(Exception):
    """Some work cannot be captured; the message says why."""


def capture(work: Callable[[], None], pool: Any = None) -> Callable[[], None]:
    """Record `work`, which has run before, without running it; what comes back runs it on the device.

    Args:
        pool: memory that graphs share, see `torch.cuda.graph_pool_handle`; one of its own by default.

    Raises:
        CaptureFailed: it waits for the device, or does what else a CUDA graph cannot hold.
    """
    gc.collect()  # a dead cycle that holds device memory would be freed, or not, in the middle of the capture
    graph, pool = torch.cuda.CUDAGraph(), pool or torch.cuda.graph_pool_handle()
    try:
        # The outer context is for torch 2.11, which stays on the capture's stream when it fails.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool, capture_error_mode="thread_local"),  # NCCL's watchdog is a thread of its own
        ):
            work()
    except Exception as error:
        _end_capture(pool)
        if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
            raise
        # PyTorch has many ways to say that a capture failed; the first error is the cause.
        cause = str(error.__context__ or error).strip().splitlines()
        raise CaptureFailed(cause[0] if cause else type(error).__name__) from error
    return graph.replay


def _end_capture(pool: Any) -> None:
    """End what a failed capture leaves recording before torch 2.15: the memory allocator and the default generator."""
    device = torch.cuda.current_device()
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:
        pass  # it has ended, and the pool is released
    else:
        torch._C._cuda_releasePool(device, pool)
    generator = torch.cuda.default_generators[device]
    state = generator.get_state()
    generator.graphsafe_set_state(torch.Generator("cuda"))
    generator.set_state(state)


@contextmanager
def separate_random_state() -> Iterator[None]:
    """A random state of its own for a capture that draws nothing, so that its failure leaves alone what other graphs read."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    kept = generator.graphsafe_get_state()
    generator.graphsafe_set_state(torch.Generator("cuda"))
    try:
        yield
    finally:
        generator.graphsafe_set_state(kept)
