"""The output of a run: a progress bar on a terminal, one plain line per epoch elsewhere."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fastcifar.run.summary import RunSummary


def plain_console() -> Console:
    """Return a console for stdout that does not colour numbers; 160 columns wide for files, so that tables do not wrap."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160
    return console


class Reporter:
    """Prints a run. On a terminal a progress bar shows epoch, loss, accuracy, images/s and the time left.

    Args:
        verbose: print the mean loss of every `train.log_every` steps too.
        epochs: print a line per epoch.
        console: where to print; standard output by default.
    """

    def __init__(self, *, verbose: bool = False, epochs: bool = True, console: Console | None = None) -> None:
        self.verbose, self.prints_epochs = verbose, epochs
        self.console = console or plain_console()
        self.progress: Progress | None = None

    @classmethod
    def silent(cls) -> "Reporter":
        """Return a reporter that prints nothing."""
        return cls(console=Console(quiet=True, force_terminal=False))

    def line(self, text: str) -> None:
        self.console.print(text, markup=False)

    def start(self, *, epochs: int, steps_per_epoch: int, step: int) -> None:
        """Start, or resume, at global step `step`."""
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.accuracy = math.nan
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.progress = Progress(*columns, console=self.console, transient=True)
            self.task = self.progress.add_task("", total=epochs * steps_per_epoch, completed=step)
            self.progress.start()

    def advance(self, step: int, loss: float, images_per_s: float) -> None:
        """Show that `step` global steps are done; `loss` is the newest known mean, NaN if none is known yet."""
        if self.progress:
            epoch = min((step - 1) // self.steps_per_epoch + 1, self.epochs)
            known = "".join(
                f" {name} {value:{form}}"
                for name, value, form in (("loss", loss, ".3f"), ("accuracy", self.accuracy, ".2%"))
                if not math.isnan(value)
            )
            text = f"epoch {epoch}/{self.epochs}{known} {images_per_s:,.0f} images/s"
            self.progress.update(self.task, completed=step, description=text)

    def steps(self, row: dict[str, Any]) -> None:
        """Print a "steps" row of the metrics."""
        if self.verbose:
            epoch, step = f"{row['epoch']}/{self.epochs}", f"{row['step']}/{self.steps_per_epoch}"
            self.line(f"Epoch [{epoch}], Step [{step}], Loss: {row['loss']:.3f}")

    def epoch(self, row: dict[str, Any]) -> None:
        """Print an "epoch" row of the metrics."""
        self.accuracy = row["train_accuracy"] if row["val_accuracy"] is None else row["val_accuracy"]
        if not self.prints_epochs:
            return
        text = f"epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}"
        text += f"  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.2%}"
        if row["val_accuracy"] is not None:
            text += f"  val loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.2%}"
        self.line(f"{text}  lr {row['lr']:.2g}  {row['images_per_s']:,.0f} images/s  {row['train_seconds']:.1f} s")

    def finish(self, run: Path, summary: RunSummary) -> None:
        """Print the run directory and its summary."""
        test = "no test split" if summary.test_accuracy is None else f"test accuracy {summary.test_accuracy:.2%}"
        seconds = {"total": summary.total_seconds, "warm-up": summary.warm_up_seconds, "run": summary.seconds}
        seconds |= {"train": summary.train_seconds, "evaluate": summary.evaluate_seconds}
        times = ", ".join(f"{name} {spent:.1f} s" for name, spent in seconds.items() if spent > 0 or name != "warm-up")
        self.line(f"{run}: {test}; {times}; {summary.images_per_s:,.0f} images/s")

    def stop(self) -> None:
        """Remove the progress bar; called when training ends, also after an error."""
        if self.progress:
            self.progress.stop()
            self.progress = None


@contextmanager
def preparing() -> Iterator[Callable[[str, float], None]]:
    """Yield a function of (stage, share done from 0 to 1) that draws a progress bar on a terminal, and nothing elsewhere."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, share: float) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=1.0)
            progress.update(tasks[stage], completed=share)

        yield report
