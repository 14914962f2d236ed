"""Whole paths through the layers: all ways to match every student layer with a deeper teacher layer than the last.

Of a matrix S of scores, a path j_0 < j_1 < … < j_{t_s-1} has the weight exp(sum_i S[i, j_i]). One recursion
from the deepest student layer to the shallowest weighs everything that can follow a match:

    onward[i, j] = S[i, j] + logsumexp of onward[i + 1, j'] over j' > j

in O(t_s · t_l). With it a path is drawn exactly in proportion to its weight, shallow to deep, and with
the maximum in place of logsumexp the best path is read off. Scores are [G, t_s, t_l] float64 on the
CPU, one matrix for each group, with t_s <= t_l. No path may leave too few layers for those after it,
so t_s == t_l leaves the identity alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Merge = Callable[[Tensor], Tensor]
"""Running result over the last axis of [G, t_l]: what element j makes of elements 0..j."""


def draw_path(score: Tensor, generator: torch.Generator) -> Tensor:
    """A path for each group, with a probability in proportion to its weight.

    Args:
        score: [G, t_s, t_l] float64.
        generator: on the CPU.

    Returns:
        [G, t_s] int64, strictly increasing.
    """
    return _walk(_onward(score, _log_sum), lambda row: torch.multinomial(row.softmax(dim=1), 1, generator=generator))


def best_path(score: Tensor) -> Tensor:
    """The path of the largest weight; of several the one that is nowhere deeper than another.

    Args:
        score: [G, t_s, t_l] float64.

    Returns:
        [G, t_s] int64, strictly increasing.
    """
    return _walk(_onward(score, _maximum), lambda row: row.argmax(dim=1, keepdim=True))


def marginals(score: Tensor) -> Tensor:
    """How probable each match is in a path of `draw_path`.

    Args:
        score: [G, t_s, t_l] float64.

    Returns:
        [G, t_s, t_l] float64; rows sum to 1.
    """
    arriving = _onward(score.flip(1, 2), _log_sum).flip(1, 2)
    return (arriving + _onward(score, _log_sum) - score).softmax(dim=2)


def entropy(score: Tensor) -> Tensor:
    """How uncertain the path of `draw_path` is.

    Args:
        score: [G, t_s, t_l] float64.

    Returns:
        [G] float64, nats.
    """
    total = _onward(score, _log_sum)[:, 0].logsumexp(dim=1)
    return (total - (marginals(score) * score).sum(dim=(1, 2))).clamp(min=0)


def _onward(score: Tensor, merge: Merge) -> Tensor:
    """[G, t_s, t_l]: of every match, what all paths from there on weigh; -inf where none leads to the end."""
    *shallower, deepest = score.unbind(dim=1)
    rows = [deepest]
    for row in reversed(shallower):
        from_here = merge(rows[-1].flip(1)).flip(1)
        beyond = torch.nn.functional.pad(from_here[:, 1:], (0, 1), value=-torch.inf)
        rows.append(row + beyond)
    return torch.stack(rows[::-1], dim=1)


def _walk(onward: Tensor, pick: Merge) -> Tensor:
    """[G, t_s] matches, shallow to deep; `pick` chooses [G, 1] from a row whose closed layers are -inf."""
    layers = torch.arange(onward.shape[2])
    path = [torch.full((len(onward), 1), -1)]
    for row in onward.unbind(dim=1):
        path.append(pick(row.masked_fill(layers <= path[-1], -torch.inf)))
    return torch.cat(path[1:], dim=1)


def _log_sum(row: Tensor) -> Tensor:
    return row.logcumsumexp(dim=1)


def _maximum(row: Tensor) -> Tensor:
    return row.cummax(dim=1).values
