"""Packing: every sample once, within the budget, with little padding."""

from __future__ import annotations

from itertools import chain, pairwise

import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from stages.data.packing import pack

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60)


def padded(groups: list[list[int]], lengths: list[int]) -> int:
    return sum(len(group) * max(lengths[i] for i in group) for group in groups)


@hypothesis_settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 1000), st.one_of(st.none(), st.integers(1, 7)))
def test_micro_batches_hold_every_sample_once_within_their_budgets(
    lengths: list[int], max_tokens: int, max_samples: int | None
) -> None:
    """What counts is the padded cost. Only a sample that is too long by itself may pass it, alone."""
    groups = pack(lengths, max_tokens=max_tokens, max_samples=max_samples)
    assert sorted(chain.from_iterable(groups)) == list(range(len(lengths)))
    for group in groups:
        cost = len(group) * max(lengths[i] for i in group)
        assert cost <= max_tokens or len(group) == 1, (cost, max_tokens, group)
        assert len(group) <= (max_samples or len(group))
    assert groups == pack(lengths, max_tokens=max_tokens, max_samples=max_samples)


@hypothesis_settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 1000))
def test_a_micro_batch_is_closed_only_where_the_next_sample_does_not_fit(lengths: list[int], max_tokens: int) -> None:
    """Red if the budget is left half empty."""
    groups = pack(lengths, max_tokens=max_tokens)
    for group, following in pairwise(groups):
        assert (len(group) + 1) * lengths[following[0]] > max_tokens


def test_grouping_by_length_saves_most_of_the_padding() -> None:
    """As many samples a micro-batch in file order are padded by two thirds of what they hold, grouped by a tenth."""
    generator = torch.Generator().manual_seed(0)
    lengths = (20 + 400 * torch.rand(256, generator=generator) ** 2).long().tolist()
    grouped = pack(lengths, max_tokens=4096)
    size = len(lengths) // len(grouped)
    unsorted = [list(range(start, min(start + size, 256))) for start in range(0, 256, size)]
    grouped_cost, unsorted_cost = (padded(groups, lengths) / sum(lengths) for groups in (grouped, unsorted))
    assert grouped_cost < 1.15, grouped_cost
    assert unsorted_cost > 1.6, unsorted_cost
