"""Training: one run from its first step to its summary."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastcifar.data.dataset import Dataset
from fastcifar.display.console import Reporter
from fastcifar.display.curves import plot_curves
from fastcifar.engine.captured import STEPS_PER_GRAPH
from fastcifar.engine.engine import Engine
from fastcifar.engine.evaluate import Evaluator
from fastcifar.engine.out_of_memory import out_of_memory_as_user_error
from fastcifar.engine.ranks import merge_metrics, start_together
from fastcifar.engine.recorder import Diverged, Recorder
from fastcifar.engine.resume import live_tensors, resume
from fastcifar.engine.work import run_pflop
from fastcifar.models.padding import real_parameters
from fastcifar.recipe import Recipe, dump_recipe
from fastcifar.run.checkpoint_writer import CheckpointWriter
from fastcifar.run.directory import RunDirectory, new_run
from fastcifar.run.metrics import MetricsLog
from fastcifar.run.score import Score
from fastcifar.run.summary import RunSummary
from fastcifar.runtime.distributed import process_group
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.files import write_json, write_text
from fastcifar.runtime.precision import emulation_warning
from fastcifar.runtime.random_state import gather_random_state, random_state
from fastcifar.runtime.timing import Clock
from fastcifar.runtime.transfer import Transfer


@dataclass(frozen=True)
class Result:
    """Result of `train`.

    Attributes:
        run: the run directory.
        finished: False if `should_stop` ended it early.
        summary: the contents of summary.json; None if not finished.
        model: the trained model.
    """

    run: RunDirectory
    finished: bool
    summary: RunSummary | None
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
    """Train a model by `recipe` and write all results to a run directory.

    Args:
        recipe: see `load_recipe`. Its number of classes and channels is taken from the data set.
        dataset: see `load_dataset`.
        out: the run directory to make; runs/<recipe>-<date>-<time> by default.
        resume: a run to continue from its last checkpoint, instead of `out`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        backend: "auto", "captured", "compiled" or "eager"; see `fastcifar.engine.backends`.
        loader: "auto", "resident" or "streaming"; see `fastcifar.data.choice.choose_loader`.
        reporter: prints the run; a plain `Reporter()` by default.
        should_stop: called between two steps; if it returns True, the run stops with a checkpoint to resume from.

    Raises:
        UserError: the recipe does not fit the data or the device's memory, the checkpoint does not fit the recipe, or the
            loss is not finite.
    """
    started = time.perf_counter()
    with process_group(device) as world, out_of_memory_as_user_error(recipe, dataset.manifest, world):
        run = resume or world.run_on_rank_0(lambda: new_run(recipe, out))
        with Engine(recipe, dataset, world, backend=backend, loader=loader) as engine:
            trainer = Trainer(engine, run, reporter or Reporter(), started=started)
            trainer.prepare(resuming=resume is not None)
            trainer.print_setup()
            return trainer.fit(should_stop)


@dataclass(frozen=True)
class Epoch:
    """An epoch that was given to the device, which may not have finished it yet.

    Attributes:
        end: the global step after it.
        images: trained on since the epoch began or was resumed.
        began, trained, evaluated: times of a `Clock`.
        random_state: at the epoch's end.
    """

    end: int
    images: int
    began: Any
    trained: Any
    evaluated: Any
    random_state: dict[str, torch.Tensor]


class Trainer:
    """One run in progress. Most callers want `train`; benchmarks and tests call the stages themselves.

    On a GPU the host is one epoch ahead: it reads an epoch's metrics while the device works on the next epoch.

    Args:
        started: time when the run began, by `time.perf_counter`.
        keep_weights: write checkpoints and curves; otherwise only the metrics and the summary.
    """

    def __init__(
        self, engine: Engine, run: RunDirectory, reporter: Reporter, *, started: float, keep_weights: bool = True
    ) -> None:
        self.engine, self.run, self.started = engine, run, started
        self.recipe, self.world, self.device = engine.recipe, engine.world, engine.device
        self.step, self.loader = engine.step, engine.loader
        self.reporter = reporter if self.world.is_rank_0 else Reporter.silent()
        self.total_steps = len(self.step.losses)
        self.recorder = Recorder(
            MetricsLog(run.metrics),
            self.reporter,
            self.step.lr_table[:, 0].cpu(),
            steps_per_epoch=len(self.loader),
            batch_size=self.recipe.train.batch_size,
            log_every=self.recipe.train.log_every,
        )
        self.checkpoints = CheckpointWriter(run, self.recipe.model, self.device) if keep_weights else None
        self.clock, self.transfer = Clock(self.device), Transfer(self.device)
        self.unread: Epoch | None = None
        """The epoch whose metrics are being copied to the host."""
        self.seconds = {"warm_up": 0.0, "train": 0.0, "evaluate": 0.0}
        self.earlier_seconds = 0.0
        self.fit_began, self.seconds_before_fit = started, engine.initialize_seconds

    @property
    def runs_ahead(self) -> bool:
        """True if the host is an epoch ahead of the device."""
        return self.device.type == "cuda"

    def prepare(self, *, resuming: bool = False) -> None:
        """Compile and capture; if `resuming`, restore the run's last checkpoint."""
        start_together(self.engine)
        self.seconds["warm_up"] += self.engine.warm_up()
        for split in ("val", "test"):
            self.engine.evaluator(split)  # loads it; an eager step has no warm-up that does
        if resuming:
            info = resume(self.engine, self.run).info
            self.recorder.resume(self.step.losses, self.loader.position)
            if len(self.recorder.log.epochs()) != self.loader.position // len(self.loader):
                raise UserError(f"{self.run.metrics}: damaged: it does not hold all epochs before step {self.loader.position}")
            self.earlier_seconds = info["total_seconds"]
            spent = sum(seconds for name, seconds in info["seconds"].items() if name != "warm_up")
            self.seconds_before_fit = info.get("run_seconds", spent)  # absent in older checkpoints
            self.seconds = {name: spent + info["seconds"].get(name, 0.0) for name, spent in self.seconds.items()}
            start_together(self.engine)

    def print_setup(self) -> None:
        """Print recipe, data, device, precision and back ends, with the reasons for them."""
        engine, world, precision = self.engine, self.world, self.recipe.train.precision
        where = str(self.device) if world.size == 1 else f"{world.size} x {self.device.type}"
        self.reporter.line(
            f"{self.run.root}: {self.recipe.name} on {engine.dataset.manifest.name}, {where}, "
            f"{precision} ({engine.precision_reason}), {engine.backend} step ({engine.backend_reason}), "
            f"{self.loader.augment} augmentation ({self.loader.augment_reason})"
        )
        if self.device.type == "cuda":
            self.reporter.line(f"BatchNorm: {engine.norm} ({engine.norm_reason})")
        if engine.muon_update:
            self.reporter.line("Muon's update: {} ({})".format(*engine.muon_update))
        if engine.loader_kind == "streaming":
            self.reporter.line(f"streaming from {engine.dataset.root}: {engine.loader_reason}")
        if warning := emulation_warning(precision, self.device):
            self.reporter.line(warning)

    def fit(self, should_stop: Callable[[], bool]) -> Result:
        """Train to the end of the recipe, then test the last weights once; or stop at `should_stop`."""
        if self.world.is_rank_0:
            write_text(self.run.recipe, dump_recipe(self.recipe))
            write_json(self.run.environment, self.engine.describe())
        self.reporter.start(epochs=self.recipe.train.epochs, steps_per_epoch=len(self.loader), step=self.loader.position)
        self.fit_began = time.perf_counter()
        try:
            self.engine.model.train()
            finished = self._train(should_stop)
            self._wait_for_checkpoints()
        except Diverged as error:
            explanation = self._explain_divergence(error)
            self._draw_curves()
            raise UserError(explanation) from None
        finally:
            if self.checkpoints:
                self.checkpoints.close()
            self.reporter.stop()
        summary = self._finish() if finished else None
        self._draw_curves()
        return Result(self.run, finished=finished, summary=summary, model=self.engine.scored_model)

    def _train(self, should_stop: Callable[[], bool]) -> bool:
        """Train to the end of the recipe; return False if `should_stop` ended it early."""
        while self.loader.position < self.total_steps:
            began, first = self.clock.now(), self.loader.position
            finished = self._take_steps(should_stop)
            trained = self.clock.now()
            merge_metrics(self.engine, first)
            if not finished:
                self._read_epoch()
                self.seconds["train"] += self.clock.seconds(began, trained)
                self._save_mid_epoch()
                return False
            if validation := self._due_validation():
                validation.run()
            evaluated = self.clock.now()
            self._read_epoch()  # the previous one, while the device works on this one
            self._send_metrics(validation)
            if self.checkpoints:
                self.checkpoints.snapshot(live_tensors(self.engine))
            images = (self.loader.position - first) * self.recipe.train.batch_size
            self.unread = Epoch(self.loader.position, images, began, trained, evaluated, random_state(self.device))
            if not self.runs_ahead:
                self._read_epoch()
        self._read_epoch()
        return True

    def _take_steps(self, should_stop: Callable[[], bool]) -> bool:
        """Give the device the rest of the epoch's steps; return False if `should_stop` ended it early."""
        began, first = time.perf_counter(), self.loader.position
        end = (first // len(self.loader) + 1) * len(self.loader)
        # A CPU step is finished when it returns: report each one. A GPU gets many steps at once, without waiting.
        portion = -(-self.recipe.train.log_every // STEPS_PER_GRAPH) * STEPS_PER_GRAPH if self.runs_ahead else 1
        while self.loader.position < end:
            if self.world.any(should_stop()):
                return False
            self.step.run(min(portion, end - self.loader.position))
            self._report_progress(first, time.perf_counter() - began)
        return True

    def _report_progress(self, first: int, seconds: float) -> None:
        """Report the newest loss and rate: on a CPU of this epoch, on a GPU of the last epoch that was read."""
        position, epochs = self.loader.position, self.recorder.log.epochs()
        rate = epochs[-1]["images_per_s"] if epochs else float("nan")
        if not self.runs_ahead and self.world.size == 1:
            self.recorder.losses[first:position] = self.step.losses[first:position]
            self.recorder.steps(position)
            rate = (position - first) * self.recipe.train.batch_size / seconds
        self.recorder.progress(position, rate)

    def _due_validation(self) -> Evaluator | None:
        """The validation's evaluator where this epoch is validated."""
        epoch = self.loader.position // len(self.loader)
        last = self.loader.position == self.total_steps
        return self.engine.evaluator("val") if last or epoch % self.recipe.evaluate.every == 0 else None

    def _send_metrics(self, validation: Evaluator | None) -> None:
        """Send the epoch's losses, correct predictions, largest weight and the validation's sums to the host."""
        sums = [validation.sums] if validation else []
        losses = self.step.losses[self.loader.position - len(self.loader) : self.loader.position]
        self.transfer.send([losses, self.step.correct, _largest_weight(self.engine.model), *sums])

    def _read_epoch(self) -> None:
        """Wait for the metrics of the epoch being copied; record them, and save if a save is due."""
        if not self.unread:
            return
        epoch, self.unread = self.unread, None
        losses, correct, largest, *sums = self.transfer.receive()
        seconds = self.clock.seconds(epoch.began, epoch.trained)
        self.seconds["train"] += seconds
        self.seconds["evaluate"] += self.clock.seconds(epoch.trained, epoch.evaluated)
        best_before = self.recorder.best_val_accuracy
        row = self.recorder.epoch(
            epoch.end,
            losses,
            correct=correct.item(),
            largest_weight=largest.item(),
            validation=Score.of_sums(sums[0]) if sums else None,
            images_per_s=epoch.images / seconds,
            train_seconds=seconds,
        )
        if self.checkpoints and sums and (best_before is None or row["val_accuracy"] > best_before):
            self.checkpoints.keep_best()
        due = epoch.end == self.total_steps or (self.checkpoints and self.checkpoints.due)
        if self.world.any(self.world.is_rank_0 and bool(due)):
            self._save(epoch.end, epoch.random_state)
        self.reporter.epoch(row)

    def _save_mid_epoch(self) -> None:
        """Save the run in the middle of an epoch."""
        self.recorder.losses.copy_(self.step.losses)
        self.recorder.check_finite(self.loader.position, _largest_weight(self.engine.model).item())
        self.recorder.steps(self.loader.position)
        if self.checkpoints:
            self.checkpoints.snapshot(live_tensors(self.engine))
        self._save(self.loader.position, random_state(self.device))

    def _save(self, position: int, state: dict[str, torch.Tensor]) -> None:
        """Write the log and, in a thread, the last snapshot, taken at step `position`."""
        states = gather_random_state(state, self.world)
        if not self.world.is_rank_0:
            return
        self._wait_for_checkpoints()
        self.recorder.log.save()
        if self.checkpoints:
            spent = {"total_seconds": self._total_seconds(), "run_seconds": self._run_seconds()}
            self.checkpoints.save({"step": position, "seconds": dict(self.seconds), **spent}, states)

    def _wait_for_checkpoints(self) -> None:
        if self.checkpoints:
            self.checkpoints.wait()

    def _explain_divergence(self, error: Diverged) -> str:
        self._wait_for_checkpoints()
        epoch, step = divmod(error.step, len(self.loader))
        kept = f"the last good checkpoint is {self.run.last}" if self.run.last.exists() else "no checkpoint was written yet"
        return (
            f"{error} at step {error.step + 1} (epoch {epoch + 1}, step {step + 1}); {kept}; "
            f"try an optimizer.lr below {self.recipe.optimizer.lr:g}"
        )

    def _draw_curves(self) -> None:
        epochs = self.recorder.log.epochs()
        if epochs and self.checkpoints and self.world.is_rank_0:
            plot_curves(epochs, self.run.curves, f"{self.recipe.name} on {self.engine.dataset.manifest.name}")

    def _total_seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started

    def _run_seconds(self) -> float:
        """Return `RunSummary.seconds` up to now."""
        return self.seconds_before_fit + time.perf_counter() - self.fit_began

    def _finish(self) -> RunSummary:
        """Test the last weights, and write the summary."""
        test, seconds = self._test(), self._run_seconds()
        last = self.recorder.log.epochs()[-1]
        summary = RunSummary(
            recipe=self.recipe.name,
            dataset=self.engine.dataset.manifest.name,
            seed=self.recipe.train.seed,
            parameters=real_parameters(self.engine.model),
            epochs=self.recipe.train.epochs,
            steps=self.total_steps,
            train_loss=last["train_loss"],
            val_loss=last["val_loss"],
            val_accuracy=last["val_accuracy"],
            best_val_accuracy=self.recorder.best_val_accuracy,
            test_loss=test.loss if test else None,
            test_accuracy=test.accuracy if test else None,
            seconds=seconds,
            images_per_s=self.total_steps * self.recipe.train.batch_size / self.seconds["train"],
            warm_up_seconds=self.seconds["warm_up"],
            train_seconds=self.seconds["train"],
            evaluate_seconds=self.seconds["evaluate"],
            total_seconds=self._total_seconds(),
            pflop=run_pflop(self.recipe, self.engine.dataset, len(self.loader)),
        )
        if self.world.is_rank_0:
            write_json(self.run.summary, summary.to_json())
        self.reporter.finish(self.run.root, summary)
        return summary

    def _test(self) -> Score | None:
        evaluator = self.engine.evaluator("test")
        if evaluator is None:
            return None
        began = time.perf_counter()
        evaluator.run()
        score = evaluator.score()
        self.seconds["evaluate"] += time.perf_counter() - began
        return score


@torch.no_grad()
def _largest_weight(model: torch.nn.Module) -> torch.Tensor:
    """Return the largest magnitude of all weights and statistics, NaN if any is NaN; does not wait for the device."""
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    return torch.stack([norm.float() for norm in torch._foreach_norm(tensors, float("inf"))]).amax()
