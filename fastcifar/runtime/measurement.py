"""A measured throughput or time with its rounds, its roofline or floor, and its ratio to fastcifar."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

SECONDS = "s"
"""The unit of times, where less is better; all others are units of throughput."""


@dataclass(frozen=True)
class Measurement:
    """Result of one implementation in one case: a table row, and an entry of `measurements` in a JSON file.

    The bound of a throughput is its roofline, that of a time its floor. The fields are called `floor`, `floor_of` and
    `share_of_floor` for both, because the committed results in benchmarks/results have these keys.

    Attributes:
        subject: "prep", "loader", "augment", "erasing", "step", "epoch" or "train".
        case: the work within the subject, as in "seed policy".
        batch_size: images per batch; None where there are no batches.
        variant: the implementation. The first of a case is the reference of the others and has no `ratio`.
        unit: of `rounds` and `floor`: "images/s", "steps/s" or "s".
        rounds: every counted round, in order; empty if nothing was measured, and `note` says why.
        warm_up_s: seconds before the first counted round: imports, compilation, capture, starting processes and warm-up
            rounds.
        floor: the best possible value by this device's measured peak rates, in the unit; None if nothing was measured.
        floor_of: the work and the peak rate behind `floor`, measured in the same process.
        ratio: speed of fastcifar over the speed of this variant: the median over pairs of interleaved rounds.
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
        """Minimum and maximum of the rounds."""
        return (min(self.rounds), max(self.rounds)) if self.rounds else None

    @property
    def share_of_floor(self) -> float | None:
        """1 at the roofline or floor, 0.5 where it takes twice as long."""
        if self.median is None or self.floor is None:
            return None
        return self.floor / self.median if self.unit == SECONDS else self.median / self.floor

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON: the fields, and the computed median, min, max and share_of_floor."""
        low, high = self.spread or (None, None)
        computed = {"median": self.median, "min": low, "max": high, "share_of_floor": self.share_of_floor}
        return asdict(self) | {"rounds": list(self.rounds)} | computed

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Measurement":
        """Read a row of `to_json`."""
        values = {field.name: row[field.name] for field in fields(cls)}
        return cls(**values | {"rounds": tuple(row["rounds"])})


def figure(amount: int, seconds: float, unit: str) -> float:
    """Convert a round to its unit: seconds, or amount per second."""
    return seconds if unit == SECONDS else amount / seconds


def speed_ratio(ours: Sequence[float], theirs: Sequence[float], unit: str) -> float:
    """Speed of ours over the speed of theirs: the median over pairs of rounds, given in `unit`."""
    pairs = zip(theirs, ours, strict=True) if unit == SECONDS else zip(ours, theirs, strict=True)
    return statistics.median(one / other for one, other in pairs)
