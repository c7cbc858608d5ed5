"""The training step: one batch from the loader through forward, backward and update.

Everything that a step reads or writes (batch, learning rate, losses, counts) is on the device, indexed by the loader's
position. The host only says how many steps to take, so a CUDA graph of the step can replace it.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.data.loader import Loader
from fastcifar.optim.averaging import WeightAverage
from fastcifar.optim.sam import SharpnessAware
from fastcifar.optim.schedules import group_lr_table
from fastcifar.recipe import Recipe
from fastcifar.runtime.errors import first_line
from fastcifar.runtime.precision import arithmetic, autocast, drop_gradients, gradient_scaler, scaler_state

PLAIN_INDUCTOR = {
    "max_autotune": False,
    "coordinate_descent_tuning": False,
    "combo_kernels": False,
    "pattern_matcher": False,
    "epilogue_fusion": False,
    "force_disable_caches": True,
}
"""The plainest options of torch.compile, for a second attempt; the user or the environment may have set others."""
WARM_UP_STEPS = 3  # by then, autograd, the optimizer and the compiled code have allocated and tuned

Mark = Callable[[str], None]


class EagerStep:
    """The step in plain PyTorch; with `compiled`, forward pass and loss go through torch.compile.

    Args:
        loader: its position is that of the run.
        scaler: scales the loss, on the model's device; see `fastcifar.runtime.precision.gradient_scaler`.
        average: updated after every step, if given.
        average_gradients: called between backward and update; see `fastcifar.runtime.distributed`.
        mark: called with "begin" before every step, and at the end of each phase with its name: "augment", "forward",
            "loss", "backward", "optimizer". A compiled forward pass has no "forward" mark; "loss" includes it.

    Attributes:
        backend: "eager", "compiled" or "captured".
        lr_table: (total steps, parameter groups) float32 on the device.
        losses: (total steps,) float32 on the device; NaN for steps not taken yet.
        correct: () int64 on the device, correct predictions since the epoch began.
        side: height and width to which the epoch's images are resized; None: they stay as they are.
        failure: why the back end is not the requested one; "" if it is.
        note: a remark on how it was compiled; "" for none.
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
        average: WeightAverage | None = None,
        average_gradients: Callable[[], None] | None = None,
        mark: Mark | None = None,
    ) -> None:
        self.backend, self.failure, self.note = "compiled" if compiled else "eager", "", ""
        self.average_gradients, self.mark = average_gradients, mark or _no_mark
        self.model, self.optimizer, self.loader, self.average = model, optimizer, loader, average
        self.sam = SharpnessAware(model, recipe.optimizer.sam_rho) if recipe.optimizer.sam_rho else None
        self.sides = recipe.train.image_sides()
        self.side = self.sides[0]
        self.lr = optimizer.lrs
        self.arithmetic = partial(arithmetic, recipe.train.precision, deterministic=recipe.train.deterministic)
        device = self.lr.device
        self.scaler = scaler or gradient_scaler(device, recipe.train.precision)
        table = group_lr_table(recipe.schedule, optimizer.param_groups, recipe.train.epochs, len(loader))
        self.lr_table = table.to(device)
        self.losses = torch.full(table.shape[:1], float("nan"), device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.uncompiled = forward_loss(model, device, recipe, _no_mark if compiled else self.mark)
        self.forward = compile_static(self.uncompiled) if compiled else self.uncompiled
        self.seek(0)

    def seek(self, step: int) -> None:
        """Go to step number `step` of the run, 0 being the first."""
        self.loader.seek(step)
        self.correct.zero_()

    def run(self, count: int) -> None:
        """Take `count` steps, across epochs if necessary. Returns before the device has finished."""
        with self.arithmetic():
            while count > 0:
                epoch, taken = divmod(self.loader.position, len(self.loader))
                if taken == 0:
                    self.seek(self.loader.position)
                self.side = self.sides[epoch]
                part = min(count, len(self.loader) - taken)
                self._take(part)
                count -= part

    def _take(self, count: int) -> None:
        """Take `count` steps of one epoch."""
        for _ in range(count):
            self._step()

    def _step(self) -> None:
        """Train on the batch at the loader's position with that step's learning rate; record the loss at that index."""
        self.mark("begin")
        images, labels = self.loader.load()
        images = resized(images, self.side)
        self.mark("augment")
        step = self.loader.step
        self.lr.copy_(self.lr_table.index_select(0, step)[0])
        loss, losses, correct = self._backward(images, labels)
        if self.average_gradients:
            self.average_gradients()
        self.mark("backward")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(step)
        self.losses.index_copy_(0, step, loss[None])
        self.loader.record(losses)
        self.correct += correct
        self.loader.advance()
        self.mark("optimizer")

    def _backward(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Leave the gradients in the weights; return the results of the forward pass, see `forward_loss`, detached."""
        loss, losses, correct = self.forward(images, labels)
        self.mark("loss")
        self.scaler.scale(loss).backward()
        if self.sam:
            with self.sam.ascended():
                self.scaler.scale(self.forward(images, labels)[0]).backward()
        return loss.detach(), losses.detach(), correct

    def warm_up(self) -> None:
        """Compile, tune and allocate, then restore weights, counters, metrics and random state.

        If torch.compile fails, try again with `PLAIN_INDUCTOR`; if that fails too, the step is eager.
        """
        side = self.side
        with self.arithmetic():
            self._warm_up()
        self.side = side

    def _warm_up(self) -> None:
        if self.backend == "eager":
            return
        failure = self._try_to_compile()
        if failure:
            self._drop_unfinished_step()
            self.forward = compile_static(self.uncompiled)
            with plain_inductor():
                again = self._try_to_compile()
            if again:
                self._fall_back("eager", f"torch.compile failed: {again}")
                self.forward = self.uncompiled
            else:
                self.note = f"torch.compile failed ({failure}) and succeeded with plain options, without its cache"

    def take_warm_up_steps(self) -> None:
        """Take the next step `WARM_UP_STEPS` times, then restore everything that it changed."""
        position = self.loader.position
        with restoring(self._changed, self.lr.device), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # torch 2.11 recommends them while it compiles
            for side in dict.fromkeys(self.sides):
                self.side = side
                for _ in range(WARM_UP_STEPS):
                    self.loader.seek(position)
                    self._step()
        self.loader.seek(position)
        self.optimizer.zero_grad(set_to_none=True)

    def _try_to_compile(self) -> str:
        """Take the warm-up steps with the compiled step; return the error that it raised, or ""."""
        try:
            self.take_warm_up_steps()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise many types; if the model is at fault, the eager step raises again
            return first_line(error)
        return ""

    def _drop_unfinished_step(self) -> None:
        """Discard the gradients of a step that failed before its end."""
        self.optimizer.zero_grad(set_to_none=True)
        drop_gradients(self.scaler)

    def _fall_back(self, backend: str, why: str) -> None:
        self.backend, self.failure = backend, why
        self._drop_unfinished_step()

    def _changed(self) -> list[torch.Tensor]:
        """List every tensor that a step changes, except the loader's position."""
        states = [value for state in self.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        model = [*self.model.parameters(), *self.model.buffers()]
        averages = self.average.averages if self.average else []
        own = [self.lr, self.losses, self.correct, *self.loader.recorded().values()]
        return [*model, *states, *scaler_state(self.scaler).values(), *averages, *own]


@contextmanager
def restoring(changed: Callable[[], list[torch.Tensor]], device: torch.device) -> Iterator[None]:
    """Restore, in place, the tensors that `changed` lists and the random state of `device`.

    Tensors that did not exist before are optimizer state, which starts at 0; they become 0.
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


def compile_static(function: Callable) -> Callable:
    """Compile `function` for static shapes with torch.compile.

    torch.compile compiles one code object at most eight times, then silently runs it eagerly. All closures of one `def` share
    a code object; each gets its own copy here, otherwise the ninth model of a process would run eagerly.
    """
    function.__code__ = function.__code__.replace()
    return torch.compile(function, dynamic=False)


@contextmanager
def plain_inductor() -> Iterator[None]:
    """Compile with the options `PLAIN_INDUCTOR`, for functions that `compile_static` returned and that never ran."""
    from torch._inductor import config  # here: importing torch.compile takes seconds

    with config.patch(PLAIN_INDUCTOR):
        yield


def resized(images: torch.Tensor, side: int | None) -> torch.Tensor:
    """Resize images (B, C, H, W) bilinearly to `side` x `side` pixels; None: return them as they are."""
    return images if side is None else F.interpolate(images, (side, side), mode="bilinear")


def _no_mark(phase: str) -> None:
    """Ignore a mark; the default."""


def forward_loss(
    model: nn.Module, device: torch.device, recipe: Recipe, mark: Mark = _no_mark
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return the function of the forward pass.

    It maps images (B, C, H, W) and labels to the mean cross entropy, that of each image (B,), both float32, and the number of
    correct predictions. Labels are (B,) int64, or probabilities (B, K); of these the most probable class counts as correct.
    """
    smoothing, precision = recipe.train.label_smoothing, recipe.train.precision

    def forward(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with autocast(device, precision):
            logits = model(images)
        mark("forward")
        losses = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="none")
        classes = labels if labels.dim() == 1 else labels.argmax(1)
        return losses.mean(), losses, (logits.argmax(1) == classes).sum()

    return forward
