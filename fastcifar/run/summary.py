"""Results of finished runs: of one run (summary.json), and of several that differ in their seed."""

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
        images_per_s: images trained on per second of `train_seconds`.
        warm_up_seconds: compiling, tuning and capturing.
        train_seconds, evaluate_seconds: training steps; validation and test.
        total_seconds: from the call to the last prediction, all of the above included.
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
    images_per_s: float
    warm_up_seconds: float
    train_seconds: float
    evaluate_seconds: float
    total_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields, as in summary.json."""
        return asdict(self)


MEASURES = "test_accuracy", "test_loss", "val_accuracy", "train_loss", "images_per_s", "train_seconds"
"""Fields of a `RunSummary` whose mean over several runs is reported."""


@dataclass(frozen=True)
class RunsSummary:
    """Result of several finished runs of one recipe.

    Attributes:
        warm_up_seconds: of the first run; the others reuse what it compiled.
        seeds: of the runs, in order.
        measures: name from MEASURES -> mean, spread and values; without measures of absent splits.
    """

    recipe: str
    dataset: str
    parameters: int
    epochs: int
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
            warm_up_seconds=first.warm_up_seconds,
            seeds=tuple(summary.seed for summary in summaries),
            measures={name: interval([getattr(summary, name) for summary in summaries]) for name in known},
        )

    def to_json(self) -> dict[str, Any]:
        """Return one flat table: the measures are beside the other fields."""
        table = asdict(self) | {"runs": len(self.seeds), "seeds": list(self.seeds)}
        return table | table.pop("measures")
