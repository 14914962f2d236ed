"""Means over seeds, and differences of two points paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: the mean.
        error: its standard error (sample standard deviation / sqrt(count)); None for a single value.
        count: how many values.
    """

    value: float
    error: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """The mean difference of two points over the seeds that both have.

    Attributes:
        value: the mean difference.
        low, high: its interval of `CONFIDENCE`, by Student's t; None for a single pair.
        p: probability of a difference at least as large if there were none, two-sided; None for a single pair.
        count: how many pairs.
        missing: seeds that only one of the two has.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    count: int
    missing: int


def mean_of(values: Sequence[float]) -> Mean | None:
    """Mean and standard error; None of nothing."""
    if not values:
        return None
    error = stdev(values) / sqrt(len(values)) if len(values) > 1 else None
    return Mean(fmean(values), error, len(values))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """`values` minus `baseline`, both by seed; None if they have no seed in common."""
    common = sorted(values.keys() & baseline.keys())
    mean = mean_of([values[seed] - baseline[seed] for seed in common])
    if mean is None:
        return None
    missing = len(values.keys() ^ baseline.keys())
    if mean.error is None:
        return Difference(mean.value, None, None, None, mean.count, missing)
    reach, p = _t_test(mean.value, mean.error, mean.count - 1)
    return Difference(mean.value, mean.value - reach, mean.value + reach, p, mean.count, missing)


def _t_test(value: float, error: float, freedom: int) -> tuple[float, float]:
    """Half the width of the interval, and p; without any spread the value is certain."""
    from scipy.stats import t

    if error == 0.0:
        return 0.0, 0.0 if value else 1.0
    return float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * error, float(2 * t.sf(abs(value) / error, freedom))
