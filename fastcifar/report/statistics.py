"""Statistics over runs that differ in their seed alone."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
POINTS = 4097  # of the integral; its error is far below that of any accuracy


@dataclass(frozen=True)
class Interval:
    """Mean of independent measurements, and how well it is known.

    Attributes:
        mean: their mean.
        std: their standard deviation, with n - 1; None of one.
        half_width: of the 95 % confidence interval around the mean, by Student's t; None of one.
        values: the measurements.
    """

    mean: float
    std: float | None
    half_width: float | None
    values: tuple[float, ...]


def interval(values: Sequence[float]) -> Interval:
    """Mean, standard deviation and 95 % confidence interval of at least one value."""
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Interval(mean, None, None, tuple(values))
    std = statistics.stdev(values)
    return Interval(mean, std, student_quantile(count - 1) * std / math.sqrt(count), tuple(values))


def student_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t that Student's distribution of `degrees` degrees of freedom exceeds in magnitude with 1 - `confidence`.

    With t = sqrt(degrees) * tan(angle), the density is proportional to cos(angle)**(degrees - 1); its integral is inverted.
    """
    angles = np.linspace(0, min(math.pi / 2, 40 / math.sqrt(degrees)), POINTS)  # behind 40 there is nothing for many degrees
    density = np.cos(angles) ** (degrees - 1)
    share = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(degrees) * math.tan(np.interp(confidence, share / share[-1], angles))
