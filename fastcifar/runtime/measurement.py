"""A figure with all it takes to believe it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

SECONDS = "s"
"""The one unit of which less is better; the others are rates."""


@dataclass(frozen=True)
class Measurement:
    """How fast one contestant did one piece of work: a row of every table, and a `measurements` entry of every JSON file.

    Attributes:
        subject: "prep", "loader", "augment", "erasing", "step", "epoch" or "train".
        case: what was asked within the subject, as in "seed policy".
        batch_size: images a batch; None where there are no batches.
        variant: who did it. Of a case's variants, that with `ratio` None is the one that the others are held against.
        unit: of `rounds` and `floor`: "images/s", "steps/s" or "s".
        rounds: of every counted round, in order; empty where nothing was measured, and `note` says why.
        warm_up_s: seconds from nothing to the first counted round: imports, compiling, capture, starting of processes, and
            the rounds that do not count.
        floor: the best that this device's ceilings allow for the work, in the unit; None where nothing was measured.
        floor_of: what that is: the work, and the ceiling measured in the same run.
        ratio: how many times as fast as this one fastcifar is: the median of the ratios of rounds taken in turns.
        note: how it ran, or why it did not.
    """

    subject: str
    case: str
    batch_size: int | None
    variant: str
    unit: str
    rounds: tuple[float, ...]
    warm_up_s: float
    floor: float | None
    floor_of: str
    ratio: float | None
    note: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.rounds) if self.rounds else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """Smallest and largest round."""
        return (min(self.rounds), max(self.rounds)) if self.rounds else None

    @property
    def share_of_floor(self) -> float | None:
        """1 where it is as fast as the ceilings allow, 0.5 where it takes twice as long."""
        if self.median is None or self.floor is None:
            return None
        return self.floor / self.median if self.unit == SECONDS else self.median / self.floor

    def to_json(self) -> dict[str, Any]:
        """The fields, and beside them what is computed from them: median, min, max and share_of_floor."""
        low, high = self.spread or (None, None)
        computed = {"median": self.median, "min": low, "max": high, "share_of_floor": self.share_of_floor}
        return asdict(self) | {"rounds": list(self.rounds)} | computed

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Measurement":
        """The measurement of which `to_json` made the row."""
        values = {field.name: row[field.name] for field in fields(cls)}
        return cls(**values | {"rounds": tuple(row["rounds"])})


def figure(amount: int, seconds: float, unit: str) -> float:
    """A round in its unit: seconds, or how much was done in one."""
    return seconds if unit == SECONDS else amount / seconds


def speed_ratio(ours: Sequence[float], theirs: Sequence[float], unit: str) -> float:
    """How many times as fast ours is: the median of the ratios of paired rounds, given in the unit."""
    pairs = zip(theirs, ours, strict=True) if unit == SECONDS else zip(ours, theirs, strict=True)
    return statistics.median(one / other for one, other in pairs)
