"""How sure a score is: intervals over questions, and differences of two models on the same questions.

Seeds are another source of doubt: `pipeline.sweeps.statistics` has the means over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
_TIE = 1e-9
"""Sums of floats that differ by less are the same."""


class Interval(NamedTuple):
    """Where a mean lies with a probability of `CONFIDENCE`."""

    low: float
    high: float


class Difference(NamedTuple):
    """The mean difference of two models over the same questions.

    Attributes:
        difference: the mean of the first minus the mean of the second.
        low, high: its interval of `CONFIDENCE`.
        p: probability of a difference at least as large if the models were equally good, two-sided.
    """

    difference: float
    low: float
    high: float
    p: float


def interval(correct: Sequence[float], seed: int = 0) -> Interval:
    """The interval of a mean by bootstrap: percentiles of the means of samples drawn with replacement.

    Args:
        correct: a score for each question; at least one.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        ValueError: no scores.
    """
    import numpy as np

    if not len(correct):
        raise ValueError("there is no interval of no scores")
    return _percentiles(np.asarray(correct, float), np.random.default_rng(seed))


def paired(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Difference:
    """The difference of two models, question by question: interval by bootstrap, p by flipping signs.

    Args:
        first, second: a score for each question, in the same order; at least one.
        seed: of the draws.

    Raises:
        ValueError: no scores, or not equally many.
    """
    import numpy as np

    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} scores make no pairs")
    differences = np.asarray(first, float) - np.asarray(second, float)
    draws = np.random.default_rng(seed)
    return Difference(float(differences.mean()), *_percentiles(differences, draws), _flipped(differences, draws))


def _percentiles(values: np.ndarray, draws: np.random.Generator) -> Interval:
    """Drawing how often each distinct value comes up is drawing the values, and much cheaper for few of them."""
    import numpy as np

    distinct, counts = np.unique(values, return_counts=True)
    means = draws.multinomial(len(values), counts / len(values), size=RESAMPLES) @ distinct / len(values)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _flipped(differences: np.ndarray, draws: np.random.Generator) -> float:
    """Share of random sign assignments whose sum is at least as far from zero; the observed one is among them."""
    import numpy as np

    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    sums: Any = (2 * draws.binomial(counts, 0.5, size=(RESAMPLES, len(sizes))) - counts) @ sizes
    as_far = np.abs(sums) >= abs(differences.sum()) - _TIE
    return float((1 + as_far.sum()) / (1 + RESAMPLES))
