"""Means and paired differences, against numbers made by hand and by SciPy."""

from __future__ import annotations

from math import sqrt

import pytest
from scipy import stats

from pipeline.sweeps.statistics import Difference, Mean, mean_of, paired_difference

VALUES = {0: 0.71, 1: 0.74, 2: 0.70, 3: 0.76, 4: 0.73}
BASELINE = {0: 0.68, 1: 0.70, 2: 0.71, 3: 0.69, 4: 0.70}


def test_the_standard_error_is_the_sample_deviation_over_the_root_of_the_count() -> None:
    assert mean_of([1.0, 2.0, 3.0]) == Mean(2.0, pytest.approx(1 / sqrt(3)), 3)
    assert mean_of(list(VALUES.values())).error == pytest.approx(stats.sem(list(VALUES.values())))  # type: ignore[union-attr]


def test_one_value_has_no_error_and_nothing_has_no_mean() -> None:
    assert mean_of([0.5]) == Mean(0.5, None, 1)
    assert mean_of([]) is None


def test_a_difference_is_that_of_a_paired_t_test() -> None:
    difference = paired_difference(VALUES, BASELINE)
    test = stats.ttest_rel(list(VALUES.values()), list(BASELINE.values()))
    interval = test.confidence_interval(0.95)
    assert difference is not None
    assert difference.value == pytest.approx(0.032)
    assert (difference.low, difference.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert difference.p == pytest.approx(test.pvalue)
    assert (difference.count, difference.missing) == (5, 0)


def test_three_differences_by_hand() -> None:
    """Student's t of two degrees of freedom is 4.30265 at 97.5 %."""
    difference = paired_difference({0: 1.0, 1: 2.0, 2: 3.0}, dict.fromkeys(range(3), 0.0))
    reach = 4.30265 / sqrt(3)
    assert difference == Difference(
        2.0,
        pytest.approx(2 - reach, abs=1e-4),
        pytest.approx(2 + reach, abs=1e-4),
        pytest.approx(0.0742, abs=1e-4),
        count=3,
        missing=0,
    )


def test_seeds_that_only_one_has_are_left_out_and_counted() -> None:
    difference = paired_difference({0: 0.7, 1: 0.8, 5: 0.1}, {0: 0.6, 1: 0.6, 7: 0.9})
    assert difference is not None
    assert difference.value == pytest.approx(0.15)
    assert (difference.count, difference.missing) == (2, 2)


def test_without_pairs_there_is_no_difference() -> None:
    assert paired_difference({0: 0.7}, {1: 0.6}) is None
    assert paired_difference({}, BASELINE) is None


def test_one_pair_has_a_difference_and_no_interval() -> None:
    assert paired_difference({3: 0.75}, {3: 0.5}) == Difference(0.25, None, None, None, count=1, missing=0)


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.25, 0.0)])
def test_differences_without_spread_are_certain(shift: float, p: float) -> None:
    difference = paired_difference(dict.fromkeys(range(3), 0.5 + shift), dict.fromkeys(range(3), 0.5))
    assert difference == Difference(shift, shift, shift, p, count=3, missing=0)
