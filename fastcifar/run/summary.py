"""Results of finished runs: of one run (summary.json), and of several that differ in their seed."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastcifar.run.statistics import Interval, interval


@dataclass(frozen=True)
class RunSummary:
    """Result of one finished run.

    Attributes:
        parameters: of the model, without padding.
        steps: of the whole run.
        train_loss: mean cross entropy of the last epoch's augmented images, nats.
        val_loss, val_accuracy, best_val_accuracy: of the last epoch, and of the best one; None without a validation split.
        test_loss, test_accuracy: of the last weights; None without a test split. Accuracies are shares, 0 to 1.
        seconds: wall time of the run, from the data on the device and everything compiled to the last prediction: initialising
            the model (from training images too, where it does), training, validation, test, and all that the host does
            between them, such as reading metrics and waiting for checkpoints. Not in it: building the process and
            `warm_up_seconds`. Of a resumed run, the sum over its processes.
        images_per_s: images trained on per second of `train_seconds`.
        warm_up_seconds: compiling, tuning and capturing.
        train_seconds, evaluate_seconds: training steps; validation and test.
        total_seconds: from the call to the last prediction, all of the above included.
        pflop: floating-point operations in units of 1e15, counted and not measured: 2 for each multiply-accumulate of
            convolutions and linear layers, in training (forward and backward), validation and test. Not counted: BatchNorm,
            activations, the optimizer, augmentation; see `fastcifar.engine.work.run_pflop`.
    """

    recipe: str
    dataset: str
    seed: int
    parameters: int
    epochs: int
    steps: int
    train_loss: float
    val_loss: float | None
    val_accuracy: float | None
    best_val_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    seconds: float
    images_per_s: float
    warm_up_seconds: float
    train_seconds: float
    evaluate_seconds: float
    total_seconds: float
    pflop: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields, as in summary.json."""
        return asdict(self)


MEASURES = "test_accuracy", "test_loss", "val_accuracy", "train_loss", "seconds", "images_per_s", "train_seconds"
"""Fields of a `RunSummary` whose mean over several runs is reported."""


@dataclass(frozen=True)
class RunsSummary:
    """Result of several finished runs of one recipe.

    Attributes:
        pflop: of one run; see `RunSummary`.
        warm_up_seconds: of the first run; the others reuse what it compiled.
        seeds: of the runs, in order.
        measures: name from MEASURES -> mean, spread and values; without measures of absent splits.
    """

    recipe: str
    dataset: str
    parameters: int
    epochs: int
    pflop: float
    warm_up_seconds: float
    seeds: tuple[int, ...]
    measures: dict[str, Interval]

    @classmethod
    def of(cls, summaries: Sequence[RunSummary]) -> "RunsSummary":
        """Summarise at least one run."""
        first = summaries[0]
        known = [name for name in MEASURES if getattr(first, name) is not None]
        return cls(
            recipe=first.recipe,
            dataset=first.dataset,
            parameters=first.parameters,
            epochs=first.epochs,
            pflop=first.pflop,
            warm_up_seconds=first.warm_up_seconds,
            seeds=tuple(summary.seed for summary in summaries),
            measures={name: interval([getattr(summary, name) for summary in summaries]) for name in known},
        )

    @property
    def median_seconds(self) -> float:
        """The median of the runs' `seconds`: unlike their mean, a disturbed run hardly moves it."""
        return statistics.median(self.measures["seconds"].values)

    @property
    def rows(self) -> list[dict[str, float]]:
        """One row for each run: its "seed", and its value of each measure."""
        return [
            {"seed": seed, **{name: measure.values[index] for name, measure in self.measures.items()}}
            for index, seed in enumerate(self.seeds)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return one flat table: the measures are beside the other fields, "runs" is their number, "rows" has one row each."""
        table = asdict(self) | {"runs": len(self.seeds), "seeds": list(self.seeds)}
        table |= {"median_seconds": self.median_seconds, "rows": self.rows}
        return table | table.pop("measures")
