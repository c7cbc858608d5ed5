"""Loss and accuracy curves of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastcifar.runtime.files import replacing


def plot_curves(epochs: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw training and validation loss and accuracy against the epoch, from the "epoch" rows of `metrics.jsonl`."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    numbers = [row["epoch"] for row in epochs]
    for split, label, style in (("train", "training", "o-"), ("val", "validation", "s-")):
        for axes, metric, scale in ((loss_axes, "loss", 1), (accuracy_axes, "accuracy", 100)):
            points = [(n, row[f"{split}_{metric}"]) for n, row in zip(numbers, epochs, strict=True)]
            drawn = [(n, value * scale) for n, value in points if value is not None]
            if drawn:
                axes.plot(*zip(*drawn, strict=True), style, label=label, markersize=3)
    for axes, name in ((loss_axes, "cross entropy"), (accuracy_axes, "accuracy in %")):
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"{title} (training figures: augmented images, as trained on)")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
