"""Training: the epochs, what is kept of them, and how a run is taken up again."""

import dataclasses
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console

from fastcifar.config import Recipe, dump_recipe
from fastcifar.data.dataset import Dataset
from fastcifar.engine.captured import STEPS_A_GRAPH
from fastcifar.engine.checkpoint import (
    checkpoint_tensors,
    load_checkpoint,
    restore_model,
    restore_optimizer,
    save_checkpoint,
)
from fastcifar.engine.distributed import gather_random_state, joined, own_random_state, seed_rank
from fastcifar.engine.engine import Engine
from fastcifar.engine.evaluate import Evaluation, read_sums
from fastcifar.engine.memory import advised
from fastcifar.engine.precision import arithmetic, emulation_warning
from fastcifar.engine.rundir import RunDirectory, new_run, read_environment
from fastcifar.engine.transfer import Clock, Snapshot, Transfer
from fastcifar.errors import UserError
from fastcifar.files import write_json, write_text
from fastcifar.models.padding import real_parameters
from fastcifar.report.console import Reporter
from fastcifar.report.metrics import MetricsLog
from fastcifar.report.plots import plot_curves

SAVE_EVERY_S = 10.0
"""Seconds between two writings of checkpoint and log; the last epoch and a stop always write, and draw the curves."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a call of `train` came to.

    Attributes:
        run: the run directory.
        finished: False where `should_stop` ended it early.
        summary: the contents of summary.json; None where not finished.
        model: the trained model.
    """

    run: RunDirectory
    finished: bool
    summary: dict[str, Any] | None
    model: torch.nn.Module


def train(
    recipe: Recipe,
    dataset: Dataset,
    out: Path | None = None,
    *,
    resume: RunDirectory | None = None,
    device: str = "auto",
    backend: str = "auto",
    loader: str = "auto",
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Train a model as `recipe` says and keep everything in a run directory.

    Args:
        recipe: see `load_recipe`. Its number of classes and channels is taken from the data set.
        dataset: see `load_dataset`.
        out: the run directory to make; runs/<recipe>-<date>-<time> by default.
        resume: a run to go on with, instead of `out`, from its last checkpoint.
        device: "auto", "cpu", "cuda" or "cuda:N".
        backend: "auto", "captured", "compiled" or "eager"; see `fastcifar.engine.step`.
        loader: "auto", "resident" or "streaming"; see `fastcifar.data.streaming.choose_loader`.
        reporter: prints the run; a plain `Reporter()` by default.
        should_stop: asked between two steps; once true, the run ends with a checkpoint from which it can be resumed.

    Raises:
        UserError: the recipe does not fit the data or the device's memory, the checkpoint does not fit the recipe, or the
            loss is not finite.
    """
    started = time.perf_counter()
    with joined(device) as world, arithmetic_of(recipe), advised(recipe, dataset.manifest, world):
        run = resume or world.first(lambda: new_run(recipe, out))
        with closing(Engine(recipe, dataset, world, backend=backend, loader=loader)) as engine:
            trainer = Trainer(engine, run, reporter or Reporter(), started=started)
            trainer.warm_up()
            if resume:
                trainer.resume()
            trainer.introduce()
            return trainer.fit(should_stop)


@dataclasses.dataclass(frozen=True)
class Epoch:
    """An epoch given to the device, which may not have finished it yet.

    Attributes:
        end: the global step behind it.
        images: trained on since the epoch began or was taken up.
        begun, trained, evaluated: moments of a `Clock`.
        random_state: of the generators that dropout draws from, at its end.
    """

    end: int
    images: int
    begun: Any
    trained: Any
    evaluated: Any
    random_state: dict[str, torch.Tensor]


class Trainer:
    """One run in progress. `train` is the way in; this class is for those who want to stand between its stages.

    On a GPU the host is an epoch ahead: it reads what an epoch came to while the device is at work on the next.

    Args:
        started: when the run began, by `time.perf_counter`.
        keep_weights: write checkpoints and curves; without, only what is read as numbers.
    """

    def __init__(
        self, engine: Engine, run: RunDirectory, reporter: Reporter, *, started: float, keep_weights: bool = True
    ) -> None:
        self.engine, self.run, self.started, self.keep_weights = engine, run, started, keep_weights
        self.recipe, self.world, self.device = engine.recipe, engine.world, engine.device
        self.reporter = reporter if self.world.leads else Reporter(console=Console(quiet=True, force_terminal=False))
        self.step, self.length = engine.step, len(engine.loader)
        self.log = MetricsLog(run.metrics)
        self.clock, self.transfer = Clock(self.device), Transfer(self.device)
        stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        self.newest, self.best = Snapshot(stream), Snapshot(stream)
        self.losses = torch.full_like(self.step.losses, float("nan"), device="cpu")
        """Of every step, as far as the host knows them."""
        self.lr_table = self.step.lr_table.cpu()
        self.position = 0
        """Steps given to the device so far."""
        self.logged = 0
        """Steps whose losses are in the log."""
        self.merged = 0
        """Steps whose losses are those of all ranks."""
        self.unread: Epoch | None = None
        """The epoch whose metrics are on their way."""
        self.best_accuracy = -1.0
        self.best_is_saved = True
        self.saved_at = time.perf_counter()
        self.writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fastcifar-checkpoint")
        """Writes checkpoints while the host goes on giving the device work."""
        self.written: Future | None = None
        """The last writing of checkpoints, which may be under way."""
        self.seconds = {"warm_up": 0.0, "train": 0.0, "evaluate": 0.0}
        self.earlier_seconds = 0.0

    @property
    def runs_ahead(self) -> bool:
        """Whether the host is an epoch ahead of the device."""
        return self.device.type == "cuda"

    @property
    def total_steps(self) -> int:
        return self.recipe.train.epochs * self.length

    def warm_up(self) -> None:
        """Compile and capture what the run needs; its time counts in the total, and is shown apart."""
        self._begin_as_one()
        self.seconds["warm_up"] += self.engine.warm_up()

    def resume(self) -> None:
        """Take up the run's last checkpoint: weights, optimizer, random state, position and log."""
        if read_environment(self.run).get("dataset_sha256") != self.engine.dataset.manifest.sha256:
            where = self.engine.dataset.root
            raise UserError(f"{self.run.root}: began with other data than {where} holds; give its own with --data")
        checkpoint = load_checkpoint(self.run.last)
        restore_model(checkpoint, self.engine.model, self.recipe.model)
        restore_optimizer(checkpoint, self.engine.model, self.engine.optimizer)
        state, info = checkpoint.section("state"), checkpoint.info
        if state["losses"].shape != self.step.losses.shape:
            raise UserError(
                f"{checkpoint.path}: of a run of {len(state['losses'])} steps, the recipe and data make "
                f"{self.total_steps}; resume with the data, batch size and epochs it began with"
            )
        self.position = info["step"]
        if self.position >= self.total_steps:
            raise UserError(f"{self.run.root}: already finished; score it with: fastcifar eval {self.run.root}")
        self.best_accuracy, self.earlier_seconds = info["best_accuracy"], info["total_seconds"]
        self.seconds = {name: spent + info["seconds"].get(name, 0.0) for name, spent in self.seconds.items()}
        self.step.seek(self.position)
        self.step.losses.copy_(state["losses"])
        self.losses.copy_(state["losses"])
        if self.world.leads:  # the sum over the ranks is one rank's to bring along
            self.step.correct.copy_(state["correct"])
        for name, tensor in self.engine.scaler_state().items():
            tensor.copy_(state[name])
        self.merged = self.position
        seed_rank(self.recipe.train.seed, self.world, self.position)
        _set_random_state(own_random_state(state, self.world), self.device)
        self.log.load(self.position)
        if len(self.log.epochs()) != self.position // self.length:
            raise UserError(f"{self.log.path}: does not hold the epochs before step {self.position}; it is damaged")
        self.logged = max((row["global_step"] for row in self.log.rows), default=0)
        self._begin_as_one()

    def _begin_as_one(self) -> None:
        """See that all ranks train the same, and give them rank 0's weights and optimizer state."""
        sha256 = str(self.engine.dataset.manifest.sha256)
        begun = self.world.gather((dump_recipe(self.recipe), sha256, self.position, self.engine.backend))
        for what, values in zip(("recipe", "data", "checkpoint", "step"), zip(*begun, strict=True), strict=True):
            if len(set(values)) > 1:
                raise UserError(f"{self.run.root}: the processes of the run have different {what}s; give all of them the same")
        states = [tensor for state in self.engine.optimizer.state.values() for tensor in state.values()]
        self.world.copy_first([*self.engine.model.parameters(), *self.engine.model.buffers(), *states])

    def fit(self, should_stop: Callable[[], bool]) -> Result:
        """Train to the end of the recipe, or until `should_stop`; then test once, on the last weights."""
        if self.world.leads:
            write_text(self.run.recipe, dump_recipe(self.recipe))
            write_json(self.run.environment, self.engine.describe())
        self.reporter.start(epochs=self.recipe.train.epochs, steps_per_epoch=self.length, step=self.position)
        try:
            self.engine.model.train()
            finished = self._train(should_stop)
            self._wait_for_writing()
        finally:
            self.writer.shutdown()
            self.reporter.stop()
        summary = self._finish() if finished else None
        self._draw_curves()
        return Result(self.run, finished=finished, summary=summary, model=self.engine.model)

    def introduce(self) -> None:
        """Say what runs, where and how."""
        engine, world = self.engine, self.world
        where = str(self.device) if world.size == 1 else f"{world.size} x {self.device.type}"
        self.reporter.line(
            f"{self.run.root}: {self.recipe.name} on {engine.dataset.manifest.name}, {where}, "
            f"{self.recipe.train.precision} ({engine.precision_reason}), {engine.backend} step ({engine.why}), "
            f"{engine.loader.augment} augmentation ({engine.loader.augment_reason})"
        )
        if engine.loader_kind == "streaming":
            self.reporter.line(f"streaming from {engine.dataset.root}: {engine.loader_reason}")
        if warning := emulation_warning(self.recipe.train.precision, self.device):
            self.reporter.line(warning)

    def _train(self, should_stop: Callable[[], bool]) -> bool:
        """Train to the end of the recipe; False where `should_stop` cut it short."""
        while self.position < self.total_steps:
            begun, first = self.clock.now(), self.position
            finished = self._take_epoch(should_stop)
            trained = self.clock.now()
            self._merge()
            if not finished:
                self._read_epoch()
                self.seconds["train"] += self.clock.seconds(begun, trained)
                self._stop_here()
                return False
            validation = self.engine.evaluator("val")
            if validation:
                validation.run()
            evaluated = self.clock.now()
            self._read_epoch()  # the one before, while the device is at this one
            self._send_metrics()
            self._take_snapshot()
            images = (self.position - first) * self.recipe.train.batch_size
            self.unread = Epoch(self.position, images, begun, trained, evaluated, _random_state(self.device))
            if not self.runs_ahead:
                self._read_epoch()
        self._read_epoch()
        return True

    def _take_epoch(self, should_stop: Callable[[], bool]) -> bool:
        """Give the device the rest of the current epoch; False where `should_stop` cut it short."""
        begun, first = time.perf_counter(), self.position
        end = (self.position // self.length + 1) * self.length
        # On a CPU a step is over when it returns: report each. A GPU is given many at once and is not waited for.
        portion = -(-self.recipe.train.log_every // STEPS_A_GRAPH) * STEPS_A_GRAPH if self.runs_ahead else 1
        while self.position < end:
            if self.world.any(should_stop()):
                return False
            count = min(portion, end - self.position)
            self.step.run(count)
            self.position += count
            self._report_progress((self.position - first) * self.recipe.train.batch_size, begun)
        return True

    def _report_progress(self, images: int, begun: float) -> None:
        """On a CPU, all of it; of a GPU the host knows nothing newer than the last epoch read."""
        if not self.runs_ahead and self.world.size == 1:
            self.losses[: self.position] = self.step.losses[: self.position]
            self._log_steps(self.position)
            since = self.losses[self.logged : self.position]
            loss = since.mean().item() if len(since) else self._logged_loss()
            self.reporter.advance(self.position, loss, images / (time.perf_counter() - begun))
        else:
            epochs = self.log.epochs()
            self.reporter.advance(self.position, self._logged_loss(), epochs[-1]["images_per_s"] if epochs else math.nan)

    def _logged_loss(self) -> float:
        rows = [row for row in self.log.rows[-2:] if row["kind"] == "steps"]
        return rows[-1]["loss"] if rows else math.nan

    def _merge(self) -> None:
        """Make one of what the ranks counted since the last time; BatchNorm's running statistics become those of rank 0."""
        if self.merged < self.position:
            self.world.mean(self.step.losses[self.merged : self.position])
            self.world.sum(self.step.correct)
            self.world.copy_first(self.engine.model.buffers())
            self.merged = self.position

    def _send_metrics(self) -> None:
        """The epoch's losses and correct predictions, whether the weights are finite, and the validation's sums."""
        validation = self.engine.evaluator("val")
        sums = [validation.sums] if validation else []
        losses = self.step.losses[self.position - self.length : self.position]
        self.transfer.send([losses, self.step.correct, _largest(self.engine.model), *sums])

    def _read_epoch(self) -> None:
        """Wait for the epoch whose metrics are on their way; check, log and report it, and save what is due."""
        if not self.unread:
            return
        epoch, self.unread = self.unread, None
        losses, correct, largest, *sums = self.transfer.receive()
        self.losses[epoch.end - self.length : epoch.end] = losses
        seconds = self.clock.seconds(epoch.begun, epoch.trained)
        self.seconds["train"] += seconds
        self.seconds["evaluate"] += self.clock.seconds(epoch.trained, epoch.evaluated)
        self._check_finite(epoch.end, largest.item())
        self._log_steps(epoch.end)
        validation = read_sums(sums[0]) if sums else None
        if validation and not math.isfinite(validation.loss):
            self._diverged(f"the validation loss became {validation.loss}", epoch.end - 1)
        row = self.log.add(
            "epoch",
            epoch=epoch.end // self.length,
            global_step=epoch.end,
            train_loss=losses.mean().item(),
            train_accuracy=correct.item() / (self.length * self.recipe.train.batch_size),
            val_loss=validation.loss if validation else None,
            val_accuracy=validation.accuracy if validation else None,
            lr=self.lr_table[epoch.end - 1].item(),
            images_per_s=epoch.images / seconds,
            train_seconds=seconds,
        )
        self._keep_best(validation)
        self._save_if_due(epoch)
        self.reporter.epoch(row)

    def _log_steps(self, end: int) -> None:
        """Log the mean loss of each window of steps before `end` that is complete; an epoch's last may be shorter."""
        every = self.recipe.train.log_every
        while self.logged < end:
            epoch, done = divmod(self.logged, self.length)
            last = epoch * self.length + min((done // every + 1) * every, self.length)
            if last > end:
                return
            self._check_finite(last)
            loss = self.losses[self.logged : last].mean().item()
            row = self.log.add("steps", epoch=epoch + 1, step=last - epoch * self.length, global_step=last, loss=loss)
            self.logged = last
            self.reporter.steps(row)

    def _check_finite(self, end: int, largest: float = 0.0) -> None:
        """Stop at a loss that is not a number, before a checkpoint is written over the last good one.

        The same for the weights, which the last update may have spoilt though the loss before it was finite.
        """
        bad = torch.nonzero(~torch.isfinite(self.losses[self.logged : end]))
        if len(bad):
            step = self.logged + int(bad[0])
            self._diverged(f"the loss became {self.losses[step].item()}", step)
        if not math.isfinite(largest):
            self._diverged("the weights became infinite or NaN", end - 1)

    def _diverged(self, what: str, step: int) -> NoReturn:
        epoch, step_of_epoch = divmod(step, self.length)
        self._wait_for_writing()
        kept = f"the last good checkpoint is {self.run.last}" if self.run.last.exists() else "no checkpoint was written yet"
        raise UserError(
            f"{what} at step {step + 1} (epoch {epoch + 1}, step {step_of_epoch + 1}); {kept}; "
            f"try an optimizer.lr below {self.recipe.optimizer.lr:g}"
        )

    def _keep_best(self, validation: Evaluation | None) -> None:
        if validation and validation.accuracy > self.best_accuracy:
            self.best_accuracy, self.best_is_saved = validation.accuracy, False
            if self.keep_weights:
                self.best.copy(self.newest, "model.")

    def _take_snapshot(self) -> None:
        """Of all it takes to go on, but the random state."""
        if self.keep_weights:
            state = {"losses": self.step.losses, "correct": self.step.correct, **self.engine.scaler_state()}
            self.newest.take(checkpoint_tensors(self.engine.model, self.engine.optimizer, state))

    def _save_if_due(self, epoch: Epoch) -> None:
        late = time.perf_counter() - self.saved_at > SAVE_EVERY_S
        if self.world.any(self.world.leads and (late or epoch.end == self.total_steps)):
            self._save(epoch.end, epoch.random_state)

    def _stop_here(self) -> None:
        """Save the run in the middle of an epoch."""
        self.losses.copy_(self.step.losses)
        self._check_finite(self.position, _largest(self.engine.model).item())
        self._log_steps(self.position)
        self._take_snapshot()
        self._save(self.position, _random_state(self.device))

    def _save(self, position: int, random_state: dict[str, torch.Tensor]) -> None:
        """Write the log, and in a thread the checkpoints: the newest snapshot, taken at step `position`, and the best one."""
        states = gather_random_state(random_state, self.world)
        if not self.world.leads:
            return
        self._wait_for_writing()
        self.log.save()
        self.saved_at = time.perf_counter()
        if not self.keep_weights:
            return
        info = {
            "step": position,
            "best_accuracy": self.best_accuracy,
            "seconds": dict(self.seconds),
            "total_seconds": self._total_seconds(),
        }
        checkpoints = {} if self.best_is_saved else {self.run.best: self.best.read()}
        self.best_is_saved = True
        checkpoints[self.run.last] = self.newest.read() | {f"state.{name}": state for name, state in states.items()}
        self.written = self.writer.submit(self._write, checkpoints, info)

    def _write(self, checkpoints: dict[Path, dict[str, torch.Tensor]], info: dict[str, Any]) -> None:
        for path, tensors in checkpoints.items():
            save_checkpoint(path, tensors, self.recipe.model, info=info)

    def _wait_for_writing(self) -> None:
        """Wait for the checkpoints that are being written; raises what their writing raised."""
        if self.written:
            self.written.result()

    def _draw_curves(self) -> None:
        epochs = self.log.epochs()
        if epochs and self.keep_weights and self.world.leads:
            plot_curves(epochs, self.run.curves, f"{self.recipe.name} on {self.engine.dataset.manifest.name}")

    def _total_seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started

    def _finish(self) -> dict[str, Any]:
        test = self._test()
        last = self.log.epochs()[-1]
        summary = {
            "recipe": self.recipe.name,
            "dataset": self.engine.dataset.manifest.name,
            "seed": self.recipe.train.seed,
            "parameters": real_parameters(self.engine.model),
            "epochs": self.recipe.train.epochs,
            "steps": self.total_steps,
            "train_loss": last["train_loss"],
            "val_loss": last["val_loss"],
            "val_accuracy": last["val_accuracy"],
            "best_val_accuracy": self.best_accuracy if self.best_accuracy >= 0 else None,
            "test_loss": test.loss if test else None,
            "test_accuracy": test.accuracy if test else None,
            "images_per_s": self.total_steps * self.recipe.train.batch_size / self.seconds["train"],
            "warm_up_seconds": self.seconds["warm_up"],
            "train_seconds": self.seconds["train"],
            "evaluate_seconds": self.seconds["evaluate"],
            "total_seconds": self._total_seconds(),
        }
        if self.world.leads:
            write_json(self.run.summary, summary)
        self.reporter.finish(self.run.root, summary)
        return summary

    def _test(self) -> Evaluation | None:
        evaluator = self.engine.evaluator("test")
        if evaluator is None:
            return None
        begun = time.perf_counter()
        evaluator.run()
        score = evaluator.score()
        self.seconds["evaluate"] += time.perf_counter() - begun
        return score


def arithmetic_of(recipe: Recipe) -> AbstractContextManager:
    """PyTorch's switches for a run of `recipe`."""
    return arithmetic(recipe.train.precision, deterministic=recipe.train.deterministic)


@torch.no_grad()
def _largest(model: torch.nn.Module) -> torch.Tensor:
    """The largest magnitude of a weight or statistic, NaN where one is NaN; waits for nothing."""
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    return torch.stack([norm.float() for norm in torch._foreach_norm(tensors, float("inf"))]).amax()


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The generators that dropout draws from."""
    state = {"rng_cpu": torch.get_rng_state()}
    return state | ({"rng_cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    if "rng_cpu" in state:
        torch.set_rng_state(state["rng_cpu"])
    if device.type == "cuda" and "rng_cuda" in state:
        torch.cuda.set_rng_state(state["rng_cuda"], device)
