"""The training step as one CUDA graph, which the host only replays.

Gather, augmentation, forward, backward, update, learning rate and metrics read their step number, epoch and order from device
memory and move the step number on themselves. A replay therefore needs nothing from the host, and replays follow each other
without a gap. torch.compile makes the kernels, without CUDA graphs of its own: the capture has one owner.

Stages: `_warm_up` (compile, tune, allocate; what it trained is undone), `_capture`, `run` (replay).
"""

from collections.abc import Callable

import torch
from torch import nn

from fastcifar.config import Recipe
from fastcifar.engine.step import EagerStep, Loader

WARM_UP_STEPS = 3  # autograd, the optimizer and the compiled code have allocated and tuned by then


class CapturedStep(EagerStep):
    """A `Step` that replays a CUDA graph; see `fastcifar.engine.step`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: Loader,
        recipe: Recipe,
        *,
        average_gradients: Callable[[], None] | None = None,
    ) -> None:
        self.at = torch.zeros(1, dtype=torch.int64, device=optimizer.param_groups[0]["lr"].device)
        """(1,) int64 on the device: the global step that is taken next."""
        self.replay: Callable[[], None] | None = None
        super().__init__(model, optimizer, loader, recipe, compiled=True, average_gradients=average_gradients)
        self.backend = "captured"

    def seek(self, step: int) -> None:
        super().seek(step)
        self.at.fill_(step)
        self.loader.state[2].fill_(step % len(self.loader))

    def _step(self) -> None:
        if self.replay is None:
            self.replay = self._capture()
        self.replay()

    def _body(self) -> None:
        """One step, with nothing from the host."""
        images, labels = self.loader.load()
        self.lr.copy_(self.lr_table.index_select(0, self.at)[0])
        loss, correct = self.forward(images, labels)
        loss.backward()
        if self.average_gradients:
            self.average_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # the graph's own memory holds the next gradients
        self.losses.index_copy_(0, self.at, loss.detach()[None])
        self.correct += correct
        self.at += 1
        self.loader.state[2] += 1

    def _capture(self) -> Callable[[], None]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._warm_up()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL's watchdog is a thread of its own
            self._body()
        return graph.replay

    def _warm_up(self) -> None:
        """Take a few steps and undo them: weights, optimizer, counters, metrics and random state are as before."""
        random_state = torch.cuda.get_rng_state() if self.at.is_cuda else torch.get_rng_state()
        before = {id(tensor): tensor.clone() for tensor in self._tensors()}
        for _ in range(WARM_UP_STEPS):
            self._body()
            self._rewind(before, counters=True)
        self._rewind(before)
        torch.cuda.set_rng_state(random_state) if self.at.is_cuda else torch.set_rng_state(random_state)

    def _rewind(self, before: dict[int, torch.Tensor], *, counters: bool = False) -> None:
        """Set all tensors, or the counters alone, back; what the optimizer has made since is set to 0, as it begins."""
        with torch.no_grad():
            for tensor in (self.at, self.loader.state) if counters else self._tensors():
                tensor.copy_(before[id(tensor)]) if id(tensor) in before else tensor.zero_()

    def _tensors(self) -> list[torch.Tensor]:
        """Everything that a step changes."""
        states = [value for state in self.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        model = [*self.model.parameters(), *self.model.buffers()]
        return [*model, *states, self.lr, self.losses, self.correct, self.at, self.loader.state]
