"""What a run says while it runs: a live display on a terminal, one plain line an epoch elsewhere."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


def plain_console() -> Console:
    """Standard output without colours for numbers; wide where it is no terminal, so that tables stay whole in files."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160
    return console


class Reporter:
    """Prints a run. On a terminal a bar shows epoch, loss, accuracy, images/s and the time left.

    Args:
        verbose: print the mean loss of every `train.log_every` steps too.
        epochs: print a line an epoch.
        console: where to print; standard output by default.
    """

    def __init__(self, *, verbose: bool = False, epochs: bool = True, console: Console | None = None) -> None:
        self.verbose, self.prints_epochs = verbose, epochs
        self.console = console or plain_console()
        self.progress: Progress | None = None

    def line(self, text: str) -> None:
        self.console.print(text, markup=False)

    def start(self, *, epochs: int, steps_per_epoch: int, step: int) -> None:
        """Training begins, or goes on, at global step `step`."""
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.accuracy = math.nan
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.progress = Progress(*columns, console=self.console, transient=True)
            self.task = self.progress.add_task("", total=epochs * steps_per_epoch, completed=step)
            self.progress.start()

    def advance(self, step: int, loss: float, images_per_s: float) -> None:
        """Global step `step` is done; `loss` is the newest known mean, NaN where none is known yet."""
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
        """A "steps" row of the metrics."""
        if self.verbose:
            epoch, step = f"{row['epoch']}/{self.epochs}", f"{row['step']}/{self.steps_per_epoch}"
            self.line(f"Epoch [{epoch}], Step [{step}], Loss: {row['loss']:.3f}")

    def epoch(self, row: dict[str, Any]) -> None:
        """An "epoch" row of the metrics."""
        self.accuracy = row["train_accuracy"] if row["val_accuracy"] is None else row["val_accuracy"]
        if not self.prints_epochs:
            return
        text = f"epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}"
        text += f"  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.2%}"
        if row["val_accuracy"] is not None:
            text += f"  val loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.2%}"
        self.line(f"{text}  lr {row['lr']:.2g}  {row['images_per_s']:,.0f} images/s  {row['train_seconds']:.1f} s")

    def finish(self, run: Path, summary: dict[str, Any]) -> None:
        """The run directory and the contents of its summary.json."""
        test = "no test split" if summary["test_accuracy"] is None else f"test accuracy {summary['test_accuracy']:.2%}"
        parts = ("total", "warm_up", "train", "evaluate") if summary["warm_up_seconds"] > 0 else ("total", "train", "evaluate")
        times = ", ".join(f"{name.replace('_', '-')} {summary[f'{name}_seconds']:.1f} s" for name in parts)
        self.line(f"{run}: {test}; {times}; {summary['images_per_s']:,.0f} images/s")

    def stop(self) -> None:
        """Training is over, for whatever reason."""
        if self.progress:
            self.progress.stop()
            self.progress = None


@contextmanager
def preparing() -> Iterator[Callable[[str, float], None]]:
    """Yield a function of (stage, share done from 0 to 1) that draws a progress bar; off a terminal it draws nothing."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, share: float) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=1.0)
            progress.update(tasks[stage], completed=share)

        yield report
