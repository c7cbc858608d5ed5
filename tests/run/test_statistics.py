"""Intervals and comparisons: against published tables, SciPy, and how often they are right."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_ind

from fastcifar.run.statistics import Difference, difference, holm, interval, runs_needed


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


EQUAL_DEVIATIONS = (
    [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4],
    [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4],
)
OTHER_DEVIATIONS = (
    [17.2, 20.9, 22.6, 18.1, 21.7, 21.4, 23.5, 24.2, 14.7, 21.8],
    [21.5, 22.8, 21.0, 23.0, 21.6, 23.6, 22.5, 20.7, 23.4, 21.8, 20.7, 21.7, 21.5, 22.5, 23.6, 21.5, 22.5, 23.5, 21.5, 21.8],
)
"""Examples of Wikipedia's article on Welch's t test, which gives their degrees of freedom and p values."""


@pytest.mark.parametrize(("samples", "freedom", "p"), [(EQUAL_DEVIATIONS, 25.0, 0.021), (OTHER_DEVIATIONS, 9.9, 0.149)])
def test_welchs_test_gives_the_published_figures(samples, freedom, p):
    found = difference(*map(interval, samples))
    assert round(found.degrees_of_freedom, 1) == freedom
    assert round(found.p, 3) == p
    assert found.mean == pytest.approx(np.mean(samples[1]) - np.mean(samples[0]))


@pytest.mark.parametrize("samples", [EQUAL_DEVIATIONS, OTHER_DEVIATIONS, ([0.91, 0.93], [0.95, 0.96, 0.951])])
def test_p_value_and_interval_are_scipys(samples):
    found = difference(*map(interval, samples))
    theirs = ttest_ind(samples[1], samples[0], equal_var=False)
    ends = theirs.confidence_interval(0.95)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert found.degrees_of_freedom == pytest.approx(theirs.df, rel=1e-9)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((ends.low, ends.high), rel=1e-9)


def test_the_effect_size_is_the_difference_in_pooled_standard_deviations():
    """Deviations 1 (of 3 values) and 2 (of 5): the pooled variance is (2 * 1 + 4 * 4) / 6 = 3."""
    first, other = interval([1.0, 2.0, 3.0]), interval([5 - 2 * 2**0.5, 5.0, 5.0, 5.0, 5 + 2 * 2**0.5])
    assert (first.std, other.std) == (pytest.approx(1), pytest.approx(2))
    assert difference(first, other).effect_size == pytest.approx(3 / 3**0.5)
    assert difference(other, first).effect_size == pytest.approx(-3 / 3**0.5)


@pytest.mark.parametrize(("effect_size", "runs"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17), (1.2, 12)])
@pytest.mark.parametrize("unit", [1.0, 1e-3])
def test_the_runs_needed_are_those_of_the_power_tables(effect_size, runs, unit):
    """G*Power's for two groups of equal deviation, 5 % two-sided, power 80 %; Cohen's table 2.4.1 has 393 for 394."""
    assert runs_needed(effect_size * unit, (unit, unit)) == runs
    assert runs_needed(-effect_size * unit, (unit, unit)) == runs


@pytest.mark.parametrize(("means", "stds"), [(0.8, (1.0, 1.0)), (1.0, (0.4, 1.5)), (3.0, (1.0, 1.0))])
def test_with_the_runs_needed_and_not_with_fewer_80_of_100_tests_find_the_difference(means, stds):
    rng, tries = np.random.default_rng(0), 20_000
    runs = runs_needed(means, stds)

    def power(count):
        samples = (rng.normal(mean, std, (tries, count)) for mean, std in zip((0.0, means), stds, strict=True))
        return (ttest_ind(*samples, axis=1, equal_var=False).pvalue < 0.05).mean()

    assert power(runs) > 0.8 - 0.012  # four standard errors of the share
    assert power(runs - 1) < 0.8 + 0.012


def test_no_number_of_runs_tells_what_is_equal_or_nearly_so():
    assert runs_needed(0.0, (1.0, 1.0)) is None
    assert runs_needed(1e-3, (1.0, 1.0)) is None
    assert runs_needed(1e6, (1.0, 1.0)) == 2


def test_without_any_spread_there_is_a_difference_but_no_test():
    same, also, other = interval([0.1] * 3), interval([0.1] * 10), interval([0.3] * 2)
    assert difference(same, also) == Difference(0.0, None, None, None, None, None)
    found = difference(same, other)
    assert (found.mean, found.p, found.half_width) == (pytest.approx(0.2), None, None)


def test_one_sample_without_spread_and_tiny_spreads_are_no_special_case():
    steady, spread = interval([0.9, 0.9, 0.9]), interval([0.91, 0.92, 0.93])
    assert difference(steady, spread).degrees_of_freedom == 2
    assert difference(steady, spread).p == pytest.approx(0.0742, abs=1e-4)  # t = 0.02 / (0.01 / sqrt(3)), 2 degrees
    tiny = [interval([1e-170 * value for value in sample]) for sample in EQUAL_DEVIATIONS]
    assert difference(*tiny).p == pytest.approx(difference(*map(interval, EQUAL_DEVIATIONS)).p)


def test_holms_correction_of_a_textbook_example():
    """0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which may not be below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([0.3]) == [0.3]
    assert holm([]) == []
