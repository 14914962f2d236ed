from math import comb, sqrt

import pytest

from pipeline.statistics import interval, paired


def test_an_interval_is_about_as_wide_as_the_normal_one() -> None:
    low, high = interval([1.0] * 140 + [0.0] * 60, seed=0)
    reach = 1.96 * sqrt(0.7 * 0.3 / 200)
    assert low == pytest.approx(0.7 - reach, abs=0.008)
    assert high == pytest.approx(0.7 + reach, abs=0.008)


def test_equal_scores_leave_no_doubt() -> None:
    assert interval([1.0, 1.0, 1.0]) == (1.0, 1.0)


def test_the_same_seed_gives_the_same_interval() -> None:
    scores = [0.1 * (i % 7) for i in range(50)]
    assert interval(scores, seed=3) == interval(scores, seed=3)


def test_more_questions_make_the_interval_narrower() -> None:
    few, many = interval([1.0, 0.0] * 10), interval([1.0, 0.0] * 1000)
    assert many.high - many.low < (few.high - few.low) / 5


def test_the_p_of_a_difference_is_that_of_the_sign_test() -> None:
    first, second = [1.0] * 9 + [0.0] * 1 + [1.0] * 10, [0.0] * 9 + [1.0] * 1 + [1.0] * 10
    result = paired(first, second, seed=1)
    exact = 2 * sum(comb(10, wins) for wins in (0, 1)) / 2**10
    assert result.difference == pytest.approx(0.4)
    assert result.p == pytest.approx(exact, abs=0.006)
    assert 0 < result.low < 0.4 < result.high < 0.7


def test_a_model_does_not_differ_from_itself() -> None:
    scores = [1.0, 0.0, 1.0, 0.5]
    assert paired(scores, scores) == (0.0, 0.0, 0.0, 1.0)


def test_nothing_and_pairs_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="no scores"):
        interval([])
    with pytest.raises(ValueError, match="2 and 1 scores make no pairs"):
        paired([1.0, 0.0], [1.0])
