"""Intervals: against SciPy's Student distribution, and how often they hold the truth."""

import math

import numpy as np
import pytest

from fastcifar.report.statistics import interval, student_quantile

stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30, 199, 5000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_quantiles_are_those_of_students_distribution(degrees, confidence):
    assert student_quantile(degrees, confidence) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees), rel=1e-4)


def test_95_of_100_intervals_hold_the_mean():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        known = interval(rng.normal(3.0, 2.0, 4).tolist())
        held += abs(known.mean - 3.0) <= known.half_width
    assert abs(held / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_of_one_value_only_the_mean_is_known():
    known = interval([0.5])
    assert (known.mean, known.std, known.half_width) == (0.5, None, None)
