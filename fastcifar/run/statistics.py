"""Statistics over runs that differ only in their seed, and comparisons of two such samples."""

import bisect
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
POWER = 0.8
MOST_RUNS = 1_000_000
"""Where `runs_needed` ends its search."""


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


@dataclass(frozen=True)
class Difference:
    """Difference between the means of two independent samples, other minus first.

    All fields but the first are None if the values of each sample are identical: without spread, Welch's test is undefined.

    Attributes:
        mean: the mean of the other sample minus that of the first.
        half_width: of the 95 % confidence interval around the difference, by Student's t and `degrees_of_freedom`.
        degrees_of_freedom: by Welch and Satterthwaite.
        p: of Welch's t test, two-sided: the probability of a difference at least as large if the true means are equal.
        effect_size: Cohen's d: the difference divided by the pooled standard deviation.
        runs_needed: see `runs_needed`, for this difference and these standard deviations.
    """

    mean: float
    half_width: float | None
    degrees_of_freedom: float | None
    p: float | None
    effect_size: float | None
    runs_needed: int | None


def interval(values: Sequence[float]) -> Interval:
    """Compute mean, standard deviation and 95 % confidence interval of at least one value."""
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Interval(mean, None, None, tuple(values))
    std = statistics.stdev(values)
    return Interval(mean, std, _two_sided_quantile(count - 1) * std / math.sqrt(count), tuple(values))


def difference(first: Interval, other: Interval) -> Difference:
    """Compare two samples of at least two values each, whose deviations need not be equal.

    Sources: B. L. Welch, The generalization of "Student's" problem when several different population variances are involved,
    Biometrika 34, 1947; J. Cohen, Statistical Power Analysis for the Behavioral Sciences, 2nd edition, 1988, chapter 2 (d).
    The p value is that of `scipy.stats.ttest_ind(equal_var=False)`, which warns where one sample has no spread.
    """
    means = other.mean - first.mean
    if first.std == other.std == 0:
        same = first.values[0] == other.values[0]
        return Difference(0.0 if same else means, None, None, None, None, None)
    from scipy.stats import t  # here: importing it takes half a second

    counts = len(first.values), len(other.values)
    error = math.hypot(first.std / math.sqrt(counts[0]), other.std / math.sqrt(counts[1]))
    freedom = _welch_satterthwaite((first.std, other.std), counts)
    return Difference(
        mean=means,
        half_width=_two_sided_quantile(freedom) * error,
        degrees_of_freedom=freedom,
        p=float(2 * t.sf(abs(means) / error, freedom)),
        effect_size=means / _pooled_std((first.std, other.std), counts),
        runs_needed=runs_needed(means, (first.std, other.std)),
    )


def runs_needed(means: float, stds: tuple[float, float]) -> int | None:
    """Return the fewest runs of each of two recipes with which Welch's test finds a difference in 80 % of all cases.

    The test is two-sided at 5 %, and finds it if it is significant in the right direction. By the noncentral t distribution,
    as in Cohen's tables (see `difference`), with the degrees of freedom of Welch and Satterthwaite.

    Args:
        means: the true difference of the means.
        stds: the true standard deviations, not both 0.

    Returns:
        None if there is no difference, or more than `MOST_RUNS` would be needed.
    """
    if means == 0:
        return None
    from scipy.stats import nct

    def power(count: int) -> float:
        freedom = _welch_satterthwaite(stds, (count, count))
        shift = abs(means) / math.hypot(*stds) * math.sqrt(count)
        # Beyond 30 the power is above 0.98 at any number of runs, and SciPy's distribution is less exact.
        return float(nct.sf(_two_sided_quantile(freedom), freedom, min(shift, 30.0)))

    counts = range(2, MOST_RUNS + 1)
    found = bisect.bisect_left(counts, POWER, key=power)
    return counts[found] if found < len(counts) else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p values of several tests so that any false "differs" among them has a probability of at most 5 %.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979. The
    result is in the order of `p_values`, to be compared with 0.05 as they would be.
    """
    count, corrected, least = len(p_values), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        least = max(least, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = least
    return corrected


def _two_sided_quantile(degrees_of_freedom: float) -> float:
    """Quantile of Student's t that 5 % of its absolute values exceed."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, degrees_of_freedom))


def _welch_satterthwaite(stds: tuple[float, float], counts: tuple[int, int]) -> float:
    """Degrees of freedom of the difference of two means whose standard deviations are not both 0."""
    errors = [std / math.sqrt(count) for std, count in zip(stds, counts, strict=True)]
    shares = [(error / math.hypot(*errors)) ** 2 for error in errors]  # of the variance; no square of a tiny number
    return 1 / sum(share**2 / (count - 1) for share, count in zip(shares, counts, strict=True))


def _pooled_std(stds: tuple[float, float], counts: tuple[int, int]) -> float:
    """Root of the mean variance of two samples, weighted by their degrees of freedom."""
    freedoms = [count - 1 for count in counts]
    weights = [math.sqrt(freedom / sum(freedoms)) for freedom in freedoms]
    return math.hypot(*(weight * std for weight, std in zip(weights, stds, strict=True)))
