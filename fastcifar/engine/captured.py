"""The training step captured in CUDA graphs, which the host only replays.

Batch, forward, backward, update, learning rate and metrics read the run's position from device memory, and the step advances
it there. So a replay needs nothing from the host, and replays follow each other without a gap. torch.compile makes the kernels
and captures no CUDA graphs itself: the capture has one owner.

Stages: warm up (compile, tune, allocate; then restore all state), capture, replay.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fastcifar.engine.step import EagerStep
from fastcifar.runtime.cuda_graph import CaptureFailed, capture, side_stream

STEPS_PER_GRAPH = 5
"""Steps per replay where so many are left; the device is idle for a moment between two graphs."""
LENGTHS = STEPS_PER_GRAPH, 1


class CapturedStep(EagerStep):
    """A step that replays CUDA graphs of one step and of several; see `fastcifar.engine.step.EagerStep`.

    If the capture fails, the back end becomes "compiled", and `failure` says why.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.graphs: dict[tuple[int | None, int], Callable[[], None]] = {}
        """Side of the images and number of steps -> function that replays these steps."""
        super().__init__(*args, compiled=True, **options)
        self.backend = "captured"

    def _warm_up(self) -> None:
        if self.graphs or self.failure:
            return
        with side_stream():
            super()._warm_up()
        if not self.failure:
            self._capture()

    def _capture(self) -> None:
        position, take = self.loader.position, super()._take
        pool = torch.cuda.graph_pool_handle()  # one for all graphs: nothing in it is needed after a replay
        self._set_capturable(True)
        try:
            for side in dict.fromkeys(self.sides):
                self.side = side
                for count in LENGTHS:
                    self.graphs[self.side, count] = capture(partial(take, count), pool)
        except CaptureFailed as error:
            self.graphs.clear()
            self._fall_back("compiled", f"the step could not be captured: {error}")
            self._set_capturable(False)
        finally:
            self.loader.seek(position)  # the capture advanced the host's position, but not the device's

    def _take(self, count: int) -> None:
        self.warm_up()
        if self.failure:
            return super()._take(count)
        left, end = count, self.loader.position + count
        for length in LENGTHS:
            for _ in range(left // length):
                self.graphs[self.side, length]()
            left %= length
        self.loader.replayed_to(end)

    def _set_capturable(self, capturable: bool) -> None:
        """Set Adam's flag, which it asserts in a capture and warns about outside; the fused kernel does not need it."""
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = capturable
