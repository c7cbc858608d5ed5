"""Training: the epochs, what is kept of them, and how a run is taken up again."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console

from fastcifar.config import Recipe, dump_recipe
from fastcifar.data.dataset import Dataset
from fastcifar.data.streaming import choose_loader, open_loader
from fastcifar.engine import step as steps
from fastcifar.engine.checkpoint import load_checkpoint, restore_model, restore_optimizer, save_checkpoint
from fastcifar.engine.distributed import (
    World,
    gather_random_state,
    joined,
    own_random_state,
    seed_rank,
    synchronise_batchnorm,
)
from fastcifar.engine.environment import environment
from fastcifar.engine.evaluate import Evaluation, Loader, evaluation_loader, score_model
from fastcifar.engine.precision import arithmetic, has_bf16
from fastcifar.engine.rundir import RunDirectory, new_run, read_environment
from fastcifar.errors import UserError
from fastcifar.files import write_json, write_text
from fastcifar.models import build_model
from fastcifar.models.padding import pad_widths, real_parameters
from fastcifar.optim.optimizers import build_optimizer
from fastcifar.report.console import Reporter
from fastcifar.report.metrics import MetricsLog
from fastcifar.report.plots import plot_curves


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
        UserError: the recipe does not fit the data, the checkpoint does not fit the recipe, or the loss is not finite.
    """
    recipe = recipe.with_classes(len(dataset.manifest.classes), dataset.manifest.image_shape[2])
    with joined(device) as world, arithmetic(recipe.train.precision, deterministic=recipe.train.deterministic):
        run = resume or world.first(lambda: new_run(recipe, out))
        reporter = (reporter or Reporter()) if world.leads else Reporter(console=Console(quiet=True, force_terminal=False))
        trainer = Trainer(recipe, dataset, run, world, backend, loader, reporter)
        if resume:
            trainer.resume()
        return trainer.fit(should_stop)


class Trainer:
    """One run in progress. `train` is the way in; this class is for those who want to stand between its stages."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        run: RunDirectory,
        world: World,
        backend: str,
        loader: str,
        reporter: Reporter,
    ) -> None:
        self.started = time.perf_counter()
        self.recipe, self.dataset, self.run, self.reporter = recipe, dataset, run, reporter
        self.world, self.device = world, world.device
        device = world.device
        torch.manual_seed(recipe.train.seed)
        model = build_model(recipe.model)
        if recipe.train.pad_widths:
            pad_widths(model, recipe.train.pad_widths)
        self.model = model.to(device, memory_format=torch.channels_last)
        if recipe.train.sync_batchnorm:
            self.model = synchronise_batchnorm(self.model, world)
        seed_rank(recipe.train.seed, world)
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        pixels = dataset.manifest.counts["train"] * math.prod(dataset.manifest.image_shape)
        self.loader_kind, self.loader_reason = world.first(lambda: choose_loader(loader, pixels, device))
        self.loader = open_loader(
            self.loader_kind,
            dataset,
            "train",
            recipe.augment,
            batch_size=recipe.train.batch_size,
            seed=recipe.train.seed,
            device=device,
            num_classes=recipe.model.num_classes,
            shard=world.shard,
        )
        self.val_loader = self._evaluation_loader("val")
        self.backend, self.why = steps.choose_backend(backend, device)
        if self.backend == "captured" and self.loader_kind == "streaming":
            raise UserError("--step captured: a streamed batch comes from the host; use --step compiled or --loader resident")
        average = world.gradients(self.model)
        self.step = steps.build(self.model, self.optimizer, self.loader, recipe, self.backend, average_gradients=average)
        self.log = MetricsLog(run.metrics)
        self.position = 0
        """Steps taken so far."""
        self.logged = 0
        """Steps whose losses are in the log."""
        self.merged = 0
        """Steps whose losses are those of all ranks."""
        self.best_accuracy = -1.0
        self.seconds = {"train": 0.0, "evaluate": 0.0}
        self.earlier_seconds = 0.0

    @property
    def total_steps(self) -> int:
        return self.recipe.train.epochs * len(self.loader)

    def resume(self) -> None:
        """Take up the run's last checkpoint: weights, optimizer, random state, position and log."""
        self._check_same_data()
        checkpoint = load_checkpoint(self.run.last)
        restore_model(checkpoint, self.model, self.recipe.model)
        restore_optimizer(checkpoint, self.model, self.optimizer)
        state, info = checkpoint.section("state"), checkpoint.info
        if state["losses"].shape != self.step.losses.shape:
            raise UserError(
                f"{checkpoint.path}: of a run of {len(state['losses'])} steps, the recipe and data make "
                f"{self.total_steps}; resume with the data, batch size and epochs it began with"
            )
        self.position = info["step"]
        if self.position >= self.total_steps:
            raise UserError(f"{self.run.root}: already finished; score it with: fastcifar eval {self.run.root}")
        self.best_accuracy, self.seconds = info["best_accuracy"], info["seconds"]
        self.earlier_seconds = info["total_seconds"]
        self.step.seek(self.position)
        self.step.losses.copy_(state["losses"])
        if self.world.leads:  # the sum over the ranks is one rank's to bring along
            self.step.correct.copy_(state["correct"])
        self.merged = self.position
        seed_rank(self.recipe.train.seed, self.world, self.position)
        _set_random_state(own_random_state(state, self.world), self.device)
        self.log.load(self.position)
        if len(self.log.epochs()) != self.position // len(self.loader):
            raise UserError(f"{self.log.path}: does not hold the epochs before step {self.position}; it is damaged")
        self.logged = max((row["global_step"] for row in self.log.rows), default=0)

    def _check_same_data(self) -> None:
        began_with = read_environment(self.run).get("dataset_sha256")
        if began_with != self.dataset.manifest.sha256:
            raise UserError(f"{self.run.root}: began with other data than {self.dataset.root} holds; give its own with --data")

    def _begin_as_one(self) -> None:
        """See that all ranks train the same, and give them rank 0's weights and optimizer state."""
        begun = self.world.gather((dump_recipe(self.recipe), str(self.dataset.manifest.sha256), self.position))
        for what, values in zip(("recipe", "data", "checkpoint"), zip(*begun, strict=True), strict=True):
            if len(set(values)) > 1:
                raise UserError(f"{self.run.root}: the processes of the run have different {what}s; give all of them the same")
        states = [tensor for state in self.optimizer.state.values() for tensor in state.values()]
        self.world.copy_first([*self.model.parameters(), *self.model.buffers(), *states])

    def fit(self, should_stop: Callable[[], bool]) -> Result:
        """Train to the end of the recipe, or until `should_stop`; then test once, on the last weights."""
        self._begin_as_one()
        if self.world.leads:
            self._describe()
        self.reporter.line(
            f"{self.run.root}: {self.recipe.name} on {self.dataset.manifest.name}, {self._where()}, "
            f"{self.backend} step ({self.why}), {self.loader.augment} augmentation ({self.loader.augment_reason})"
        )
        if self.loader_kind == "streaming":
            self.reporter.line(f"streaming from {self.dataset.root}: {self.loader_reason}")
        if self.recipe.train.precision == "bf16" and not has_bf16(self.device):
            self.reporter.line(f"{self.device} has no bf16 arithmetic: --set train.precision=fp32 will be faster")
        self.reporter.start(epochs=self.recipe.train.epochs, steps_per_epoch=len(self.loader), step=self.position)
        try:
            self.model.train()
            while self.position < self.total_steps:
                if not self._epoch(should_stop):
                    return Result(self.run, finished=False, summary=None, model=self.model)
        finally:
            self.reporter.stop()
        return Result(self.run, finished=True, summary=self._finish(), model=self.model)

    def _where(self) -> str:
        return str(self.device) if self.world.size == 1 else f"{self.world.size} x {self.device.type}"

    def _describe(self) -> None:
        """Write what the run is: recipe.toml and environment.json."""
        described = environment(self.device) | {
            "dataset": self.dataset.manifest.name,
            "dataset_sha256": self.dataset.manifest.sha256,
            "processes": self.world.size,
            "step": self.backend,
            "step_reason": self.why,
            "loader": self.loader_kind,
            "loader_reason": self.loader_reason,
            "augment": self.loader.augment,
            "augment_reason": self.loader.augment_reason,
        }
        write_text(self.run.recipe, dump_recipe(self.recipe))
        write_json(self.run.environment, described)

    def _epoch(self, should_stop: Callable[[], bool]) -> bool:
        """Train to the end of the current epoch, then validate; False where `should_stop` cut it short."""
        begun, first = time.perf_counter(), self.position
        end = (self.position // len(self.loader) + 1) * len(self.loader)
        # On a CPU a step is over when it returns: report each. A GPU is given many at once and is not waited for.
        portion = 1 if self.device.type == "cpu" else self.recipe.train.log_every
        while self.position < end:
            if self.world.any(should_stop()):
                self._merge()
                self._account(begun)
                self._save_last()
                return False
            count = min(portion, end - self.position)
            self.step.run(count)
            self.position += count
            if self.device.type == "cpu" and self.world.size == 1:
                self._log_steps(self.step.losses)
            speed = (self.position - first) * self.recipe.train.batch_size / (time.perf_counter() - begun)
            self.reporter.advance(self.position, self._newest_loss(), speed)
        self._finish_epoch(begun, (end - first) * self.recipe.train.batch_size)
        return True

    def _merge(self) -> None:
        """Make one of what the ranks counted since the last time; BatchNorm's running statistics become those of rank 0."""
        if self.merged < self.position:
            self.world.mean(self.step.losses[self.merged : self.position])
            self.world.sum(self.step.correct)
            self.world.copy_first(self.model.buffers())
            self.merged = self.position

    def _finish_epoch(self, begun: float, images: int) -> None:
        """Read the epoch's metrics, validate, log, checkpoint and draw."""
        self._merge()
        losses, correct = self.step.losses.cpu(), int(self.step.correct)
        elapsed = self._account(begun)
        self._check_finite(losses)
        self._check_weights()
        self._log_steps(losses)
        length = len(self.loader)
        validation = self._evaluate(self.val_loader)
        if validation and not math.isfinite(validation.loss):
            self._diverged(f"the validation loss became {validation.loss}", self.position - 1)
        row = self.log.add(
            "epoch",
            epoch=self.position // length,
            global_step=self.position,
            train_loss=losses[self.position - length : self.position].mean().item(),
            train_accuracy=correct / (length * self.recipe.train.batch_size),
            val_loss=validation.loss if validation else None,
            val_accuracy=validation.accuracy if validation else None,
            lr=self.step.lr_table[self.position - 1].item(),
            images_per_s=images / elapsed,
            train_seconds=elapsed,
        )
        if validation and validation.accuracy > self.best_accuracy:
            self.best_accuracy = validation.accuracy
            self._save(self.run.best)
        self._save_last()
        if self.world.leads:
            plot_curves(self.log.epochs(), self.run.curves, f"{self.recipe.name} on {self.dataset.manifest.name}")
        self.reporter.epoch(row)

    def _log_steps(self, losses: torch.Tensor) -> None:
        """Log the mean loss of each window of steps that is complete; an epoch's last window may be shorter."""
        length, every = len(self.loader), self.recipe.train.log_every
        while self.logged < self.position:
            epoch, done = divmod(self.logged, length)
            end = epoch * length + min((done // every + 1) * every, length)
            if end > self.position:
                return
            self._check_finite(losses)
            row = self.log.add(
                "steps",
                epoch=epoch + 1,
                step=end - epoch * length,
                global_step=end,
                loss=losses[self.logged : end].mean().item(),
            )
            self.logged = end
            self.reporter.steps(row)

    def _newest_loss(self) -> float:
        """Mean loss since the last logged window, or of it; from a GPU nothing is read before the epoch ends."""
        if self.device.type == "cpu" and self.position > self.logged:
            return self.step.losses[self.logged : self.position].mean().item()
        rows = [row for row in self.log.rows[-2:] if row["kind"] == "steps"]
        return rows[-1]["loss"] if rows else math.nan

    def _check_finite(self, losses: torch.Tensor) -> None:
        """Stop at a loss that is not a number, before a checkpoint is written over the last good one."""
        bad = torch.nonzero(~torch.isfinite(losses[: self.position]))
        if len(bad):
            self._diverged(f"the loss became {losses[bad[0]].item()}", int(bad[0]))

    def _check_weights(self) -> None:
        """The same for the weights, which the last update may have spoilt though the loss before it was finite."""
        tensors = [tensor for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
            self._diverged("the weights became infinite or NaN", self.position - 1)

    def _diverged(self, what: str, step: int) -> NoReturn:
        epoch, step_of_epoch = divmod(step, len(self.loader))
        kept = f"the last good checkpoint is {self.run.last}" if self.run.last.exists() else "no checkpoint was written yet"
        raise UserError(
            f"{what} at step {step + 1} (epoch {epoch + 1}, step {step_of_epoch + 1}); {kept}; "
            f"try an optimizer.lr below {self.recipe.optimizer.lr:g}"
        )

    def _account(self, begun: float) -> float:
        """Seconds of training since `begun`, added to the run's; waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elapsed = time.perf_counter() - begun
        self.seconds["train"] += elapsed
        return elapsed

    def _evaluation_loader(self, split: str) -> Loader | None:
        return evaluation_loader(self.dataset, split, self.recipe, self.device, kind=self.loader_kind, shard=self.world.shard)

    def _evaluate(self, loader: Loader | None) -> Evaluation | None:
        if loader is None:
            return None
        begun = time.perf_counter()
        score = score_model(self.model, loader, self.recipe, self.world)
        self.seconds["evaluate"] += time.perf_counter() - begun
        return score

    def _save_last(self) -> None:
        """Save all it takes to go on; never over a good checkpoint with weights that a NaN has reached."""
        self._check_finite(self.step.losses.cpu())
        self._check_weights()
        if self.world.leads:
            self.log.save()
        random_state = gather_random_state(_random_state(self.device), self.world)
        state = {"losses": self.step.losses, "correct": self.step.correct, **random_state}
        self._save(self.run.last, optimizer=self.optimizer, state=state)

    def _save(self, path: Path, **parts: Any) -> None:
        if not self.world.leads:
            return
        info = {
            "step": self.position,
            "best_accuracy": self.best_accuracy,
            "seconds": self.seconds,
            "total_seconds": self._total_seconds(),
        }
        save_checkpoint(path, self.model, self.recipe.model, info=info, **parts)

    def _total_seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started

    def _finish(self) -> dict[str, Any]:
        test = self._evaluate(self._evaluation_loader("test"))
        last = self.log.epochs()[-1]
        summary = {
            "recipe": self.recipe.name,
            "dataset": self.dataset.manifest.name,
            "parameters": real_parameters(self.model),
            "epochs": self.recipe.train.epochs,
            "steps": self.total_steps,
            "train_loss": last["train_loss"],
            "val_loss": last["val_loss"],
            "val_accuracy": last["val_accuracy"],
            "best_val_accuracy": self.best_accuracy if self.best_accuracy >= 0 else None,
            "test_loss": test.loss if test else None,
            "test_accuracy": test.accuracy if test else None,
            "images_per_s": self.total_steps * self.recipe.train.batch_size / self.seconds["train"],
            "train_seconds": self.seconds["train"],
            "evaluate_seconds": self.seconds["evaluate"],
            "total_seconds": self._total_seconds(),
        }
        if self.world.leads:
            write_json(self.run.summary, summary)
        self.reporter.finish(summary)
        return summary


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The generators that dropout draws from."""
    state = {"rng_cpu": torch.get_rng_state()}
    return state | ({"rng_cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    if "rng_cpu" in state:
        torch.set_rng_state(state["rng_cpu"])
    if device.type == "cuda" and "rng_cuda" in state:
        torch.cuda.set_rng_state(state["rng_cuda"], device)
