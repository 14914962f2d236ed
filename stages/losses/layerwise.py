"""The intermediate loss of interaction: price all pairs of layers, match, learn from the matches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from stages.contract.settings import Matching
from stages.losses.divergence import Head, Target, divergence, log_partition
from stages.losses.matching import match_layers


class LayerCosts(Protocol):
    """How far each student layer is from each teacher layer."""

    def all_pairs(self) -> Tensor:
        """[t_s, t_l, N] float32 without gradient."""

    def pair(self, student_layer: int, teacher_layer: Tensor) -> Tensor:
        """[N] with gradient for the student, token n against teacher layer `teacher_layer[n]`."""


class KLCosts:
    """KL(teacher layer || student layer), every pair from one pass over the vocabulary per student layer."""

    def __init__(self, said: Sequence[Tensor], head: Head, teacher: Target) -> None:
        """`said`: one [N, d] head input per student layer; `teacher`: moments [t_l, N, d]."""
        self._said = [x.float() for x in said]
        self._teacher = teacher
        self._log_z = [log_partition(x, head) for x in self._said]

    @torch.no_grad()
    def all_pairs(self) -> Tensor:
        """[t_s, t_l, N], nats."""
        return torch.stack([divergence(x, z, self._teacher) for x, z in zip(self._said, self._log_z, strict=True)])

    def pair(self, student_layer: int, teacher_layer: Tensor) -> Tensor:
        """[N], nats."""
        bias = self._teacher.bias_mean
        chosen = Target(
            _at(self._teacher.moment, teacher_layer),
            _at(self._teacher.entropy, teacher_layer),
            None if bias is None else _at(bias, teacher_layer),
        )
        return divergence(self._said[student_layer], self._log_z[student_layer], chosen)


class FeatureCosts:
    """Mean squared distance of projected student states from the teacher's (the paper's Table 4d, last row)."""

    def __init__(self, projected: Sequence[Tensor], teacher: Tensor) -> None:
        """`projected`: one [N, d_t] tensor per student layer; `teacher`: [t_l, N, d_t]."""
        self._projected = projected
        self._teacher = teacher

    @torch.no_grad()
    def all_pairs(self) -> Tensor:
        """[t_s, t_l, N]."""
        return torch.stack([(x - self._teacher).square().mean(dim=-1) for x in self._projected])

    def pair(self, student_layer: int, teacher_layer: Tensor) -> Tensor:
        """[N]."""
        return (self._projected[student_layer] - _at(self._teacher, teacher_layer)).square().mean(dim=-1)


def matched_loss(
    costs: LayerCosts, rows: Tensor, sample_ids: Sequence[str], settings: Matching, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Match layers and sum the matched costs over layers and tokens (METHOD §3).

    Args:
        costs: of t_s student and t_l teacher layers on N tokens.
        rows: [N] int64, the sample of each token.
        sample_ids: of the batch's samples.
        settings: of the matching.
        generator: on the CPU.

    Returns:
        The loss, a scalar with gradient, and the matches [G, t_s, count]; G is 1, or the number of
        samples with `per_sample`. Of several matches of one layer the mean is taken.

    Raises:
        ValueError: a cost is NaN or infinite; the samples are named.
    """
    prices = costs.all_pairs()
    _check_finite(prices, rows, sample_ids)
    groups = rows if settings.per_sample else torch.zeros_like(rows)
    matches = match_layers(_by_group(prices, groups, settings), settings, generator)
    of_token = matches.to(rows.device)[groups]
    _, student_layers, count = matches.shape
    losses = [costs.pair(i, of_token[:, i, k]).sum() / count for i in range(student_layers) for k in range(count)]
    return torch.stack(losses).sum(), matches


def _by_group(prices: Tensor, groups: Tensor, settings: Matching) -> Tensor:
    """[t_s, t_l, N] prices, summed or averaged over each group's tokens, to [G, t_s, t_l]."""
    count = int(groups.max()) + 1
    sums = prices.new_zeros(count, *prices.shape[:2]).index_add_(0, groups, prices.permute(2, 0, 1))
    if settings.reduction == "sum":
        return sums
    return sums / torch.bincount(groups, minlength=count)[:, None, None]


def _check_finite(prices: Tensor, rows: Tensor, sample_ids: Sequence[str]) -> None:
    bad = ~torch.isfinite(prices).all(dim=1).all(dim=0)
    if bad.any():
        layers = (~torch.isfinite(prices)).any(dim=2).nonzero().tolist()
        names = [sample_ids[row] for row in rows[bad].unique().tolist()]
        raise ValueError(
            f"the divergence is not finite at (student layer, teacher layer) {layers[:4]} "
            f"for samples {', '.join(names)}; lower the learning rate or look at these samples"
        )


def _at(stacked: Tensor, layer: Tensor) -> Tensor:
    """[t_l, N, ...] at one layer per token: [N, ...]."""
    return stacked[layer, torch.arange(len(layer), device=stacked.device)]
