"""One training step, by interchangeable back ends that the trainer cannot tell apart.

A `Step` keeps its position in the run, and everything it reads or writes (order, learning-rate table, loss of every step,
count of correct predictions) is on the device. The host only says how many steps to take, so a back end that replays a
captured graph fits the same interface.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.compiler import missing_compiler
from fastcifar.config import Recipe
from fastcifar.engine.precision import autocast, forget_gradients, gradient_scaler, scaler_state
from fastcifar.errors import UserError
from fastcifar.optim.schedules import lr_table

BACKENDS = "captured", "compiled", "eager"
PLAIN_INDUCTOR = {
    "max_autotune": False,
    "coordinate_descent_tuning": False,
    "combo_kernels": False,
    "force_disable_caches": True,
}
"""Options of torch.compile that ask the least of it; the environment or the user may have asked for more."""
WARM_UP_STEPS = 3  # autograd, the optimizer and the compiled code have allocated and tuned by then

Mark = Callable[[str], None]


class Loader(Protocol):
    """What a step needs of a loader; see `fastcifar.data.resident.ResidentLoader`."""

    state: torch.Tensor

    def __len__(self) -> int: ...
    def set_epoch(self, epoch: int) -> None: ...
    def reseed(self, seed: int) -> None: ...
    def batch(self, position: int) -> tuple[torch.Tensor, torch.Tensor]: ...
    def load(self) -> tuple[torch.Tensor, torch.Tensor]: ...  # for "captured"


class Step(Protocol):
    """A training step with a memory of where it is.

    Attributes:
        backend: its name in BACKENDS.
        losses: (total steps,) float32 on the device; NaN where no step was taken yet.
        correct: () int64 on the device, correct predictions since the epoch began.
        failure: why the back end is not the one that it was built as; "" where it is.
        note: what else there is to say of how it was compiled; "" where there is nothing.
    """

    backend: str
    failure: str
    note: str
    losses: torch.Tensor
    correct: torch.Tensor

    def warm_up(self) -> None:
        """Compile, tune and allocate; weights, counters, metrics and random state are afterwards as they were."""

    def seek(self, step: int) -> None:
        """Go to global step number `step`, 0 being the first of the run."""

    def run(self, count: int) -> None:
        """Take `count` steps, into the next epoch where this one ends. Returns before the device has finished."""


class EagerStep:
    """The step in plain PyTorch; with `compiled`, forward pass and loss go through torch.compile.

    Args:
        scaler: scales the loss; see `fastcifar.engine.precision.gradient_scaler`. It must be of the model's device.
        average_gradients: called between backward and update; see `fastcifar.engine.distributed`.
        mark: called with "begin" before every step, and at the end of its phases with their names: "augment", "forward",
            "loss", "backward", "optimizer". A compiled forward pass goes on into the loss without a "forward".
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: Loader,
        recipe: Recipe,
        *,
        compiled: bool,
        scaler: torch.amp.GradScaler | None = None,
        average_gradients: Callable[[], None] | None = None,
        mark: Mark | None = None,
    ) -> None:
        self.backend, self.failure, self.note = "compiled" if compiled else "eager", "", ""
        self.average_gradients, self.mark = average_gradients, mark or _unmarked
        self.model, self.optimizer, self.loader = model, optimizer, loader
        self.lr = optimizer.param_groups[0]["lr"]
        device = self.lr.device
        self.scaler = scaler or gradient_scaler(device, recipe.train.precision)
        table = lr_table(recipe.schedule, recipe.optimizer.lr, recipe.train.epochs, len(loader))
        self.lr_table = table.to(device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        """(1,) int64 on the device: the global step that is taken next."""
        self.losses = torch.full_like(self.lr_table, float("nan"))
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.uncompiled = forward_loss(model, device, recipe, _unmarked if compiled else self.mark)
        self.forward = compile_alone(self.uncompiled) if compiled else self.uncompiled
        self.seek(0)

    def warm_up(self) -> None:
        if self.backend == "eager":
            return
        failure = self._try_to_compile()
        if failure:
            self._forget_step()
            with plain_inductor():
                again = self._try_to_compile()
            if again:
                self._fall_back("eager", f"torch.compile failed: {again}")
                self.forward = self.uncompiled
            else:
                self.note = f"torch.compile failed ({failure}) and succeeded with plain options, without its cache"

    def _try_to_compile(self) -> str:
        """Why the compiled step cannot be taken; "" where it was."""
        try:
            self.practise()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways; where the model is at fault, the eager step says so again
            return first_line(error)
        return ""

    def _forget_step(self) -> None:
        """Be ready for a new step though the last one ended in the middle."""
        self.optimizer.zero_grad(set_to_none=True)
        forget_gradients(self.scaler)

    def _fall_back(self, backend: str, why: str) -> None:
        self.backend, self.failure = backend, why
        self._forget_step()

    def seek(self, step: int) -> None:
        self.position = step
        self.at.fill_(step)
        self.correct.zero_()
        self.loader.set_epoch(step // len(self.loader))

    def run(self, count: int) -> None:
        end = self.position + count
        while self.position < end:
            if self.position and self.position % len(self.loader) == 0:
                self.seek(self.position)
            self._advance(min(end - self.position, len(self.loader) - self.position % len(self.loader)))

    def _advance(self, count: int) -> None:
        """Take `count` steps of the epoch."""
        for _ in range(count):
            self._one()
            self.position += 1

    def _one(self) -> None:
        self.mark("begin")
        self._train(self.loader.batch(self.position % len(self.loader)))

    def _train(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        """One step on a batch; the learning rate is read, and the metrics are written, at step `self.at` of the run."""
        self.mark("augment")
        self.lr.copy_(self.lr_table.index_select(0, self.at)[0])
        loss, correct = self.forward(*batch)
        self.mark("loss")
        self.scaler.scale(loss).backward()
        if self.average_gradients:
            self.average_gradients()
        self.mark("backward")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.index_copy_(0, self.at, loss.detach()[None])
        self.correct += correct
        self.at += 1
        self.mark("optimizer")

    def practise(self) -> None:
        """Take the next step a few times and undo it."""
        with undone(self._changed, self.lr.device), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # torch 2.11 recommends them while it compiles
            for _ in range(WARM_UP_STEPS):
                self.at.fill_(self.position)
                self._one()
        self.optimizer.zero_grad(set_to_none=True)

    def _changed(self) -> list[torch.Tensor]:
        """Everything that a step changes."""
        states = [value for state in self.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        model = [*self.model.parameters(), *self.model.buffers()]
        return [*model, *states, *scaler_state(self.scaler).values(), self.lr, self.losses, self.correct, self.at]


@contextmanager
def undone(changed: Callable[[], list[torch.Tensor]], device: torch.device) -> Iterator[None]:
    """Put the tensors that `changed` lists back, in place, and the random state of `device` too; a new one becomes 0.

    New tensors are an optimizer's state, which begins as 0.
    """
    random_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    before = {id(tensor): tensor.clone() for tensor in changed()}
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor in changed():
                tensor.copy_(before[id(tensor)]) if id(tensor) in before else tensor.zero_()
        torch.cuda.set_rng_state(random_state, device) if device.type == "cuda" else torch.set_rng_state(random_state)


def compile_alone(function: Callable) -> Callable:
    """torch.compile for static shapes.

    It counts how often a code object is compiled and gives up, silently, after eight times. All functions that one `def`
    makes share their code, so each gets a copy, or the ninth model of a process would run eagerly.
    """
    function.__code__ = function.__code__.replace()
    return torch.compile(function, dynamic=False)


@contextmanager
def plain_inductor() -> Iterator[None]:
    """Compile anew, with `PLAIN_INDUCTOR`, what torch.compile makes within."""
    from torch._inductor import config  # here: importing torch.compile takes seconds

    torch.compiler.reset()
    with config.patch(PLAIN_INDUCTOR):
        yield


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _unmarked(phase: str) -> None:
    """The mark of a step that nobody looks at."""


def forward_loss(
    model: nn.Module, device: torch.device, recipe: Recipe, mark: Mark = _unmarked
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """A function of (images, labels) that gives the mean cross entropy (float32) and the number predicted correctly.

    Labels are (B,) int64, or probabilities (B, K), of which the likeliest class counts as the correct one.
    """
    smoothing, precision = recipe.train.label_smoothing, recipe.train.precision

    def forward(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(device, precision):
            logits = model(images)
        mark("forward")
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        classes = labels if labels.dim() == 1 else labels.argmax(1)
        return loss, (logits.argmax(1) == classes).sum()

    return forward


def build(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Loader,
    recipe: Recipe,
    backend: str = "eager",
    **options: Any,
) -> Step:
    """The training step of `recipe` by the back end named; `options` are those of `EagerStep`."""
    if backend == "captured":
        from fastcifar.engine.captured import CapturedStep  # here: it builds on this module

        return CapturedStep(model, optimizer, loader, recipe, **options)
    return EagerStep(model, optimizer, loader, recipe, compiled=backend == "compiled", **options)


def choose_backend(asked: str, device: torch.device, *, streaming: bool = False) -> tuple[str, str]:
    """(back end, reason) for "auto" or one of BACKENDS: the first that can be had, from the one asked for on.

    Raises:
        UserError: no such back end.
    """
    if asked not in ("auto", *BACKENDS):
        raise UserError(f"--step {asked}: must be auto or one of {', '.join(BACKENDS)}")
    if asked == "eager":
        return "eager", "as asked"
    if asked == "auto" and device.type != "cuda":
        return "eager", "torch.compile is no gain on a CPU"
    missing = missing_compiler()
    if missing:
        return "eager", f"torch.compile needs {missing}"
    if asked == "compiled":
        return "compiled", "as asked"
    if device.type != "cuda":
        return "compiled", f"a CUDA graph needs a CUDA device, this is {device}"
    if streaming:
        return "compiled", "streamed batches come from the host, which a CUDA graph cannot wait for"
    return "captured", "as asked" if asked == "captured" else "the fewest launches"
