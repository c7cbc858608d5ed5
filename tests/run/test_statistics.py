"""Confidence intervals: against a published table, and how often they contain the true mean."""

import math

import numpy as np
import pytest

from fastcifar.run.statistics import interval


def test_the_half_width_is_students_quantile_times_the_standard_error():
    """The quantile for 2 degrees of freedom is 4.303 in any table."""
    known = interval([1.0, 2.0, 3.0])
    assert (known.mean, known.std) == (2.0, 1.0)
    assert known.half_width == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)


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
