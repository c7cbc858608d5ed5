"""Training: the epochs, what is kept of them, and how a run is taken up again."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from fastcifar.config import Recipe, dump_recipe
from fastcifar.data.dataset import Dataset
from fastcifar.data.resident import ResidentLoader
from fastcifar.engine import step as steps
from fastcifar.engine.checkpoint import load_checkpoint, restore_model, restore_optimizer, save_checkpoint
from fastcifar.engine.environment import choose_device, environment
from fastcifar.engine.evaluate import Evaluation, evaluation_loader, score_model
from fastcifar.engine.precision import has_bf16
from fastcifar.engine.rundir import RunDirectory, new_run, read_environment
from fastcifar.errors import UserError
from fastcifar.files import write_json, write_text
from fastcifar.models import build_model
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
        backend: "auto", "eager" or "compiled"; see `fastcifar.engine.step`.
        reporter: prints the run; a plain `Reporter()` by default.
        should_stop: asked between two steps; once true, the run ends with a checkpoint from which it can be resumed.

    Raises:
        UserError: the recipe does not fit the data, the checkpoint does not fit the recipe, or the loss is not finite.
    """
    recipe = recipe.with_classes(len(dataset.manifest.classes), dataset.manifest.image_shape[2])
    run = resume or new_run(recipe, out)
    trainer = Trainer(recipe, dataset, run, choose_device(device), backend, reporter or Reporter())
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
        device: torch.device,
        backend: str,
        reporter: Reporter,
    ) -> None:
        self.started = time.perf_counter()
        self.recipe, self.dataset, self.run, self.device, self.reporter = recipe, dataset, run, device, reporter
        torch.manual_seed(recipe.train.seed)
        self.model = build_model(recipe.model).to(device, memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        self.loader = ResidentLoader(
            dataset.train,
            recipe.augment,
            batch_size=recipe.train.batch_size,
            seed=recipe.train.seed,
            device=device,
            num_classes=recipe.model.num_classes,
        )
        self.val_loader = evaluation_loader(dataset.val, recipe, device)
        self.backend, self.why = steps.choose_backend(backend, device)
        self.step = steps.build(self.model, self.optimizer, self.loader, recipe, self.backend)
        self.log = MetricsLog(run.metrics)
        self.position = 0
        """Steps taken so far."""
        self.logged = 0
        """Steps whose losses are in the log."""
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
        self.step.correct.copy_(state["correct"])
        _set_random_state(state, self.device)
        self.log.load(self.position)
        if len(self.log.epochs()) != self.position // len(self.loader):
            raise UserError(f"{self.log.path}: does not hold the epochs before step {self.position}; it is damaged")
        self.logged = max((row["global_step"] for row in self.log.rows), default=0)

    def _check_same_data(self) -> None:
        began_with = read_environment(self.run).get("dataset_sha256")
        if began_with != self.dataset.manifest.sha256:
            raise UserError(f"{self.run.root}: began with other data than {self.dataset.root} holds; give its own with --data")

    def fit(self, should_stop: Callable[[], bool]) -> Result:
        """Train to the end of the recipe, or until `should_stop`; then test once, on the last weights."""
        self._describe()
        self.reporter.line(
            f"{self.run.root}: {self.recipe.name} on {self.dataset.manifest.name}, {self.device}, "
            f"{self.backend} step ({self.why}), {self.loader.augment} augmentation ({self.loader.augment_reason})"
        )
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

    def _describe(self) -> None:
        """Write what the run is: recipe.toml and environment.json."""
        described = environment(self.device) | {
            "dataset": self.dataset.manifest.name,
            "dataset_sha256": self.dataset.manifest.sha256,
            "step": self.backend,
            "step_reason": self.why,
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
            if should_stop():
                self._account(begun)
                self._save_last()
                return False
            count = min(portion, end - self.position)
            self.step.run(count)
            self.position += count
            if self.device.type == "cpu":
                self._log_steps(self.step.losses)
            speed = (self.position - first) * self.recipe.train.batch_size / (time.perf_counter() - begun)
            self.reporter.advance(self.position, self._newest_loss(), speed)
        self._finish_epoch(begun, (end - first) * self.recipe.train.batch_size)
        return True

    def _finish_epoch(self, begun: float, images: int) -> None:
        """Read the epoch's metrics, validate, log, checkpoint and draw."""
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

    def _evaluate(self, loader: ResidentLoader | None) -> Evaluation | None:
        if loader is None:
            return None
        begun = time.perf_counter()
        score = score_model(self.model, loader, self.recipe)
        self.seconds["evaluate"] += time.perf_counter() - begun
        return score

    def _save_last(self) -> None:
        """Save all it takes to go on; never over a good checkpoint with weights that a NaN has reached."""
        self._check_finite(self.step.losses.cpu())
        self._check_weights()
        self.log.save()
        state = {"losses": self.step.losses, "correct": self.step.correct, **_random_state(self.device)}
        self._save(self.run.last, optimizer=self.optimizer, state=state)

    def _save(self, path: Path, **parts: Any) -> None:
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
        test = self._evaluate(evaluation_loader(self.dataset.test, self.recipe, self.device))
        last = self.log.epochs()[-1]
        summary = {
            "recipe": self.recipe.name,
            "dataset": self.dataset.manifest.name,
            "parameters": sum(p.numel() for p in self.model.parameters()),
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
        write_json(self.run.summary, summary)
        self.reporter.finish(summary)
        return summary


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The generators that dropout draws from."""
    state = {"rng_cpu": torch.get_rng_state()}
    return state | ({"rng_cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["rng_cpu"])
    if device.type == "cuda" and "rng_cuda" in state:
        torch.cuda.set_rng_state(state["rng_cuda"], device)
