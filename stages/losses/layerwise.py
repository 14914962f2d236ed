"""The intermediate loss of interaction: price all pairs of layers, match, learn from the matches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from stages.contract.settings import Matching
from stages.losses.divergence import CHUNK_BYTES, Head, Target, divergence, partition, prices
from stages.losses.matching import expected_matches, match_entropy, match_layers


class LayerCosts(Protocol):
    """How far each student layer is from each teacher layer."""

    def all_pairs(self) -> Tensor:
        """[t_s, t_l, N] float32 without gradient."""

    def matched(self, teacher_layer: Tensor) -> Tensor:
        """[t_s, N] with gradient for the student; token n of layer i against `teacher_layer[i, n]`."""


class KLCosts:
    """KL(teacher layer || student layer), every pair from one pass over the vocabulary."""

    def __init__(self, said: Sequence[Tensor], head: Head, teacher: Target, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        """`said`: one [N, d] head input per student layer; `teacher`: moments [t_l, N, d]."""
        self._said = torch.stack(list(said))
        self._teacher = teacher
        self._partition = partition(self._said, head, chunk_bytes=chunk_bytes)

    def all_pairs(self) -> Tensor:
        """[t_s, t_l, N], nats."""
        return prices(self._said, self._partition, self._teacher)

    def matched(self, teacher_layer: Tensor) -> Tensor:
        """[t_s, N], nats."""
        bias = self._teacher.bias_mean
        chosen = Target(
            _at(self._teacher.moment, teacher_layer),
            _at(self._teacher.entropy, teacher_layer),
            None if bias is None else _at(bias, teacher_layer),
        )
        return divergence(self._said, self._partition, chosen)


class FeatureCosts:
    """Mean squared distance of projected student states from the teacher's (the paper's Table 4d, last row)."""

    def __init__(self, projected: Sequence[Tensor], teacher: Tensor) -> None:
        """`projected`: one [N, d_t] tensor per student layer; `teacher`: [t_l, N, d_t]."""
        self._projected = torch.stack(list(projected))
        self._teacher = teacher

    @torch.no_grad()
    def all_pairs(self) -> Tensor:
        """[t_s, t_l, N]."""
        return torch.stack([(x - self._teacher).square().mean(dim=-1) for x in self._projected])

    def matched(self, teacher_layer: Tensor) -> Tensor:
        """[t_s, N]."""
        return (self._projected - _at(self._teacher, teacher_layer)).square().mean(dim=-1)


class Learned(NamedTuple):
    """What student layers learn on N tokens.

    Attributes:
        losses: [t_s, N] with gradient, of several matches of one layer the mean.
        shares: [t_s, t_l], how many of the N tokens learn from each pair.
        expected: [t_s], the sum over tokens of the place where a match was to be expected.
        entropy: [], the sum over tokens of how open their choice was, 0 to 1.
    """

    losses: Tensor
    shares: Tensor
    expected: Tensor
    entropy: Tensor


def match_and_learn(
    costs: LayerCosts,
    all_pairs: Tensor,
    rows: Tensor,
    settings: Matching,
    generator: torch.Generator,
    *,
    sharpness: float = 1.0,
    counts: bool = True,
) -> Learned:
    """Match layers on the costs of their tokens and learn from the matches (METHOD §3).

    Under data parallelism each worker draws for its own micro-batch from its own costs. With
    `matching.sync` costs are averaged over all workers' tokens, and the draw, made everywhere with
    the same random numbers, is one for all: k workers match as one worker with their k micro-batches
    in one would.

    Args:
        costs: of t_s student and t_l teacher layers on N tokens.
        all_pairs: [t_s, t_l, N], those of all pairs.
        rows: [N] int64, the sample of each token.
        settings: of the matching.
        generator: on the CPU.
        sharpness: divides the temperature of a draw.
        counts: False for a micro-batch that fills up a worker's step and has no say in a common draw.
    """
    groups = rows if settings.per_sample else torch.zeros_like(rows)
    sizes = torch.bincount(groups)
    reduced = _by_group(all_pairs, groups, sizes, settings, counts)
    drawn = match_layers(reduced, settings, generator, sharpness)
    expected = expected_matches(reduced, drawn, settings, sharpness).to(rows.device, torch.float32)
    entropy = match_entropy(reduced, settings, sharpness).to(rows.device, torch.float32)
    matches = drawn.to(rows.device)
    of_token = matches[groups].permute(2, 1, 0)
    losses = torch.stack([costs.matched(layer) for layer in of_token]).mean(dim=0)
    chosen = torch.nn.functional.one_hot(matches, all_pairs.shape[1]).float().mean(dim=2)
    return Learned(
        losses,
        shares=(sizes[:, None, None] * chosen).sum(dim=0),
        expected=(sizes[:, None] * expected).sum(dim=0),
        entropy=(sizes * entropy).sum(),
    )


def _by_group(costs: Tensor, groups: Tensor, sizes: Tensor, settings: Matching, counts: bool) -> Tensor:
    """[t_s, t_l, N] costs, summed or averaged over each group's tokens, to [G, t_s, t_l]."""
    sums = costs.new_zeros(len(sizes), *costs.shape[:2]).index_add_(0, groups, costs.permute(2, 0, 1))
    tokens = sizes.float()
    if settings.sync and dist.is_initialized():
        sums, tokens = _sum_over_workers(sums * counts, tokens * counts)
    return sums if settings.reduction == "sum" else sums / tokens[:, None, None]


def _sum_over_workers(sums: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    together = torch.cat([sums.flatten(), tokens])
    dist.all_reduce(together)
    return together[: -len(tokens)].view_as(sums), together[-len(tokens) :]


def _at(stacked: Tensor, layer: Tensor) -> Tensor:
    """[t_l, N, ...] at one teacher layer for each student layer and token, [t_s, N]: [t_s, N, ...]."""
    return stacked[layer, torch.arange(layer.shape[1], device=stacked.device)]
