"""Statistics over runs that differ only in their seed."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Mean of independent measurements and its confidence interval.

    Attributes:
        mean: their mean.
        std: their sample standard deviation (n - 1); None for a single one.
        half_width: of the 95 % confidence interval around the mean, by Student's t; None for a single one.
        values: the measurements.
    """

    mean: float
    std: float | None
    half_width: float | None
    values: tuple[float, ...]


def interval(values: Sequence[float]) -> Interval:
    """Compute mean, standard deviation and 95 % confidence interval of at least one value."""
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Interval(mean, None, None, tuple(values))
    from scipy.stats import t  # here: importing it takes half a second

    std = statistics.stdev(values)
    return Interval(mean, std, float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * std / math.sqrt(count), tuple(values))
