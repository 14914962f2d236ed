"""Layer matching: Algorithm 1 in windows, temperatures and frequencies, and each row of the paper's ablation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from stages.contract.settings import Matching
from stages.losses.matching import (
    STRATEGIES,
    adaptive_temperature,
    check_layer_counts,
    draw_match,
    match_entropy,
    match_layers,
)
from tests import reference

DRAWS = 10_000
SMALLEST_P_VALUE = 1e-3
"""Chi-square on a fixed seed: a right sampler falls below in one of a thousand seeds."""
WRONG_P_VALUE = 1e-9
"""What 10,000 draws from a wrong formula must fall below, or the test could not tell it apart."""
SMALLEST_EXPECTED_COUNT = 5
"""Cells with less are left to others: chi-square does not hold there."""

KL = [
    [2.0, 0.5, 1.0, 3.0, 1.5, 0.2],
    [1.8, 1.2, 0.4, 0.9, 2.6, 0.1],
    [2.2, 1.6, 1.4, 0.8, 0.5, 0.7],
]
"""Three student and six teacher layers; the very best teacher layers lie outside the first windows."""
ORDERED = ("adaptive", "multinomial+range+order")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def match(kl: object, *, groups: int = 1, seed: int = 0, **settings: object) -> Tensor:
    """[G, t_s, count] matches of one [t_s, t_l] matrix, drawn for `groups` groups at once."""
    one = torch.as_tensor(kl, dtype=torch.float32)
    return match_layers(one.expand(groups, *one.shape), Matching(**settings), generator(seed))


def p_value(draws: Sequence[int], probabilities: dict[int, float]) -> float:
    """Chi-square of draws against probabilities; a draw outside of them is impossible and fails."""
    counts = Counter(draws)
    assert set(counts) <= set(probabilities), f"drawn outside {sorted(probabilities)}: {sorted(counts)}"
    likely = [layer for layer, p in probabilities.items() if p * len(draws) >= SMALLEST_EXPECTED_COUNT]
    if len(likely) < 2:
        return 1.0
    expected = np.array([probabilities[layer] for layer in likely])
    observed = np.array([counts[layer] for layer in likely])
    return float(stats.chisquare(observed, expected / expected.sum() * observed.sum()).pvalue)


def window_probabilities(layer: int, window: range, temperature: Callable[[list[float]], float]) -> dict[int, float]:
    k = KL[layer][window.start : window.stop]
    return dict(zip(window, reference.draw_probabilities(k, temperature(k)).tolist(), strict=True))


def by_start(matches: Tensor, layer: int) -> dict[int, list[int]]:
    """The draws of a student layer, separately for each place its window starts at."""
    found: dict[int, list[int]] = {}
    for path in matches[:, :, 0].tolist():
        found.setdefault(path[layer - 1] + 1 if layer else 0, []).append(path[layer])
    return found


def without_temperature(_: list[float]) -> float:
    return 1.0


class TestAlgorithm1:
    """`adaptive`, the paper's final form."""

    @pytest.mark.parametrize("layer", range(3))
    def test_frequencies_are_the_softmax_of_the_window(self, layer: int) -> None:
        """For every start that earlier draws led to. Red if the window, the sign or the temperature is wrong."""
        matches = match(KL, groups=DRAWS)
        for start, draws in by_start(matches, layer).items():
            window = reference.window(layer, start, 3, 6)
            p = p_value(draws, window_probabilities(layer, window, reference.temperature))
            assert p > SMALLEST_P_VALUE, f"layer {layer}, window {window}: p = {p:.1e} of {len(draws)} draws"

    def test_whole_paths_have_the_reference_probabilities(self) -> None:
        """Red if draws of different layers are not independent given the window."""
        paths = dict(reference.paths(KL))
        order = {path: index for index, path in enumerate(paths)}
        drawn = [order[tuple(path)] for path in match(KL, groups=DRAWS)[:, :, 0].tolist()]
        p = p_value(drawn, {order[path]: probability for path, probability in paths.items()})
        assert sum(paths.values()) == pytest.approx(1.0)
        assert p > SMALLEST_P_VALUE, f"p = {p:.1e} over {len(paths)} paths"

    @pytest.mark.parametrize(
        ("wrong", "temperature"),
        [
            ("no temperature", without_temperature),
            ("spread instead of its inverse", lambda k: 1 / reference.temperature(k)),
            ("scale left out", lambda k: reference.temperature(k, scale=1.0)),
        ],
    )
    def test_the_chi_square_tells_wrong_formulas_apart(
        self, wrong: str, temperature: Callable[[list[float]], float]
    ) -> None:
        matches = match(KL, groups=DRAWS)
        p = p_value(by_start(matches, 0)[0], window_probabilities(0, reference.window(0, 0, 3, 6), temperature))
        assert p < WRONG_P_VALUE, f"{wrong}: p = {p:.1e}"

    @hypothesis_settings(max_examples=60, deadline=None)
    @given(st.integers(1, 6), st.integers(0, 5), st.integers(1, 5), st.integers(0, 2**20), st.sampled_from(ORDERED))
    def test_matches_increase_and_stay_in_their_windows(
        self, student_layers: int, more: int, groups: int, seed: int, strategy: str
    ) -> None:
        teacher_layers = student_layers + more
        kl = torch.rand(groups, student_layers, teacher_layers, generator=generator(seed)) * 10
        matches = match_layers(kl, Matching(strategy=strategy), generator(seed))
        assert matches.shape == (groups, student_layers, 1)
        assert matches.dtype == torch.int64
        for path in matches[:, :, 0].tolist():
            assert all(later > earlier for earlier, later in pairwise(path)), path
            assert path[0] >= 0
            assert all(teacher <= more + i for i, teacher in enumerate(path)), f"{path} with t_l - t_s = {more}"

    @pytest.mark.parametrize("layers", [1, 2, 7])
    @pytest.mark.parametrize("strategy", ORDERED)
    def test_equal_layer_counts_force_the_identity(self, layers: int, strategy: str) -> None:
        """A single candidate each: whatever the KLs say. Here they say the opposite."""
        kl = -torch.eye(layers).flip(0) * 1e3
        assert match(kl, groups=20, strategy=strategy)[:, :, 0].tolist() == [list(range(layers))] * 20

    def test_windows_are_used_up_to_both_ends(self) -> None:
        """Red if a bound is one off: with equal KLs every path of the staircase occurs."""
        drawn = {tuple(path) for path in match(torch.zeros(2, 4), groups=500)[:, :, 0].tolist()}
        assert drawn == {path for path, _ in reference.paths(np.zeros((2, 4)))}

    def test_equal_costs_are_drawn_evenly(self) -> None:
        """A spread of 0: eps keeps the temperature finite. Red if it were dropped (0 / 0)."""
        draws = match(torch.full((1, 5), 3.0), groups=DRAWS)[:, 0, 0].tolist()
        p = p_value(draws, dict.fromkeys(range(5), 0.2))
        assert p > SMALLEST_P_VALUE, f"p = {p:.1e}"

    @pytest.mark.parametrize("change", ["large spread", "small scale"])
    def test_in_the_limit_the_draw_is_the_argmin_of_the_window(self, change: str) -> None:
        kl = np.asarray(KL) * (1e6 if change == "large spread" else 1.0)
        scale = 2.0 if change == "large spread" else 1e-6
        matches = match(kl, groups=200, scale=scale)[:, :, 0].tolist()
        assert matches == [reference.greedy_matches(KL)] * 200
        assert reference.greedy_matches(KL) != np.argmin(KL, axis=1).tolist(), "the windows do not matter here"

    @pytest.mark.parametrize("constant", [64.0, -8.0])
    def test_adding_a_constant_changes_nothing(self, constant: float) -> None:
        """The numbers are multiples of 1/8, so that the sum is exact and the draws can be compared one by one."""
        kl = (torch.tensor(KL) * 8).round() / 8
        assert torch.equal(match(kl, groups=500), match(kl + constant, groups=500))

    def test_draws_follow_from_the_generators_state_and_move_it_on(self) -> None:
        """A checkpoint holds that state. Red if the global generator, or a new one for each call, is used."""
        kl = torch.tensor(KL).expand(50, 3, 6)
        first, settings = generator(3), Matching()
        state = first.get_state()
        torch.manual_seed(1)
        one, other = (match_layers(kl, settings, first) for _ in range(2))
        assert not torch.equal(one, other)
        first.set_state(state)
        torch.manual_seed(2)
        assert torch.equal(match_layers(kl, settings, first), one)
        assert torch.equal(match_layers(kl, settings, first), other)

    def test_no_gradient_flows_through_a_choice(self) -> None:
        kl = torch.tensor(KL, requires_grad=True)
        assert not match(kl).requires_grad


class TestGroups:
    """`matching.per_sample`: every group draws for itself."""

    def test_each_group_follows_its_own_costs(self) -> None:
        """Red if a group uses another's costs, window or temperature: one is cold, one even, one in between."""
        groups = torch.tensor(KL)[None] * torch.tensor([1e6, 0.0, 1.0])[:, None, None]
        groups = groups.repeat(DRAWS // 10, 1, 1)
        matches = match_layers(groups, Matching(), generator())
        cold, even, warm = (matches[index::3, :, 0].tolist() for index in range(3))
        assert cold == [reference.greedy_matches(KL)] * (DRAWS // 10)
        for drawn, kl in ((even, np.zeros((3, 6))), (warm, np.asarray(KL))):
            paths = dict(reference.paths(kl))
            order = {path: index for index, path in enumerate(paths)}
            p = p_value([order[tuple(path)] for path in drawn], {order[path]: q for path, q in paths.items()})
            assert p > SMALLEST_P_VALUE, f"p = {p:.1e}"

    def test_groups_draw_independently(self) -> None:
        """Pairs of groups with equal costs. Red if one draw served both."""
        first = match(KL, groups=DRAWS)[:, 0, 0].reshape(-1, 2).tolist()
        alone = window_probabilities(0, reference.window(0, 0, 3, 6), reference.temperature)
        pairs = {10 * a + b: alone[a] * alone[b] for a in alone for b in alone}
        p = p_value([10 * a + b for a, b in first], pairs)
        assert p > SMALLEST_P_VALUE, f"p = {p:.1e}"


class TestStrategies:
    """Each row of METHOD §3's table."""

    def test_there_are_exactly_the_papers_eight_and_two_of_whole_paths(self) -> None:
        table = {"adaptive", "multinomial", "multinomial+range", "multinomial+range+order"}
        assert set(STRATEGIES) == table | {"bottom-1", "bottom-3", "uniform", "random"} | {"joint", "viterbi"}
        assert set(STRATEGIES) == set(get_args(Matching.model_fields["strategy"].annotation))

    @pytest.mark.parametrize(("student", "teacher"), [(1, 1), (3, 6), (3, 8), (7, 20), (3, 4)])
    def test_uniform_is_i_times_the_floor_of_the_ratio(self, student: int, teacher: int) -> None:
        kl = torch.rand(student, teacher, generator=generator())
        expected = [[[i * (teacher // student)] for i in range(student)]] * 4
        assert match(kl, groups=4, strategy="uniform").tolist() == expected

    def test_bottom_1_takes_the_lowest_of_all_teacher_layers(self) -> None:
        """No range, no order: two student layers may share a teacher layer, here the last."""
        assert match(KL, groups=3, strategy="bottom-1").tolist() == [[[5], [5], [4]]] * 3

    def test_bottom_3_takes_the_three_lowest(self) -> None:
        matches = match(KL, groups=3, strategy="bottom-3")
        assert matches.sort(dim=2).values.tolist() == [[[1, 2, 5], [2, 3, 5], [3, 4, 5]]] * 3

    @pytest.mark.parametrize("teacher", [1, 2])
    def test_bottom_3_takes_all_of_a_teacher_with_fewer(self, teacher: int) -> None:
        matches = match(torch.rand(1, teacher, generator=generator()), strategy="bottom-3")
        assert sorted(matches[0, 0].tolist()) == list(range(teacher))

    @pytest.mark.parametrize("layer", range(3))
    def test_random_is_even_over_all_teacher_layers(self, layer: int) -> None:
        draws = match(KL, groups=DRAWS, strategy="random")[:, layer, 0].tolist()
        p = p_value(draws, dict.fromkeys(range(6), 1 / 6))
        assert p > SMALLEST_P_VALUE, f"p = {p:.1e}"

    @pytest.mark.parametrize("layer", range(3))
    def test_multinomial_draws_from_all_teacher_layers_at_temperature_1(self, layer: int) -> None:
        draws = match(KL, groups=DRAWS, strategy="multinomial")[:, layer, 0].tolist()
        p = p_value(draws, window_probabilities(layer, range(6), without_temperature))
        assert p > SMALLEST_P_VALUE, f"p = {p:.1e}"
        assert layer == 2 or max(draws) > 3 + layer, "never past t_l - t_s + i: a range was applied"

    @pytest.mark.parametrize("layer", range(3))
    def test_the_range_leaves_a_deeper_layer_for_each_deeper_student_layer(self, layer: int) -> None:
        matches = match(KL, groups=DRAWS, strategy="multinomial+range")
        p = p_value(
            matches[:, layer, 0].tolist(),
            window_probabilities(layer, reference.window(layer, 0, 3, 6), without_temperature),
        )
        assert p > SMALLEST_P_VALUE, f"p = {p:.1e}"
        repeats = (matches[:, 1:, 0] <= matches[:, :-1, 0]).any(dim=1).sum().item()
        assert repeats, "matches always increase: an order was applied"

    @pytest.mark.parametrize("layer", range(3))
    def test_the_order_starts_one_past_the_choice_before(self, layer: int) -> None:
        matches = match(KL, groups=DRAWS, strategy="multinomial+range+order")
        for start, draws in by_start(matches, layer).items():
            window = reference.window(layer, start, 3, 6)
            p = p_value(draws, window_probabilities(layer, window, without_temperature))
            assert p > SMALLEST_P_VALUE, f"layer {layer}, window {window}: p = {p:.1e} of {len(draws)} draws"

    @hypothesis_settings(max_examples=60, deadline=None)
    @given(st.sampled_from(sorted(STRATEGIES)), st.integers(1, 5), st.integers(0, 4), st.integers(1, 3))
    def test_every_choice_is_a_teacher_layer(self, strategy: str, student: int, more: int, groups: int) -> None:
        kl = torch.rand(groups, student, student + more, generator=generator())
        matches = match_layers(kl, Matching(strategy=strategy), generator())
        count = min(3, student + more) if strategy == "bottom-3" else 1
        assert matches.shape == (groups, student, count)
        assert 0 <= matches.min() <= matches.max() < student + more
        assert all(len(set(picks)) == count for picks in matches.flatten(0, 1).tolist())

    @pytest.mark.parametrize("strategy", sorted(STRATEGIES))
    def test_more_student_than_teacher_layers_are_refused(self, strategy: str) -> None:
        with pytest.raises(ValueError, match="4 student target layers cannot be matched with 3 of the teacher; choose"):
            match(torch.zeros(4, 3), strategy=strategy)


def test_layer_counts_are_checked_before_anything_is_drawn() -> None:
    check_layer_counts(3, 3)
    with pytest.raises(ValueError, match=r"fewer in student\.target_layers or more in teacher\.target_layers"):
        check_layer_counts(4, 3)


def entropy(kl: object, *, sharpness: float = 1.0, **settings: object) -> list[float]:
    """How open the choice of each group was."""
    matrices = torch.as_tensor(kl, dtype=torch.float32)
    return match_entropy(matrices.reshape(-1, *matrices.shape[-2:]), Matching(**settings), sharpness).tolist()


class TestEntropy:
    """How open a choice was, between certain and even."""

    @pytest.mark.parametrize(
        ("strategy", "window", "temperature"),
        [
            ("adaptive", 4, lambda k: reference.temperature(k, 2.0, 1e-6)),
            ("multinomial+range+order", 4, without_temperature),
            ("multinomial+range", 4, without_temperature),
            ("multinomial", 6, without_temperature),
        ],
    )
    @pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
    def test_it_is_that_of_the_shallowest_layers_window(
        self, strategy: str, window: int, temperature: Callable[[list[float]], float], sharpness: float
    ) -> None:
        p = np.array(list(window_probabilities(0, range(window), lambda k: temperature(k) / sharpness).values()))
        exact = -(p * np.log(p)).sum() / np.log(window)
        assert entropy(KL, sharpness=sharpness, strategy=strategy) == pytest.approx([exact], rel=1e-5)

    @pytest.mark.parametrize("strategy", ["adaptive", "multinomial", "joint"])
    def test_it_goes_from_certain_to_even(self, strategy: str) -> None:
        assert entropy(KL, sharpness=1e6, strategy=strategy) == pytest.approx([0.0], abs=1e-6)
        assert entropy(KL, sharpness=1e-6, strategy=strategy) == pytest.approx([1.0], abs=1e-6)

    @pytest.mark.parametrize(("strategy", "certain"), [("uniform", 0), ("bottom-3", 0), ("viterbi", 0), ("random", 1)])
    def test_without_a_say_of_the_costs_it_is_all_or_nothing(self, strategy: str, certain: float) -> None:
        assert entropy(KL, strategy=strategy) == [certain]

    @pytest.mark.parametrize("strategy", ["adaptive", "joint"])
    def test_a_single_path_leaves_nothing_open(self, strategy: str) -> None:
        assert entropy([row[:3] for row in KL], strategy=strategy) == [0.0]

    @pytest.mark.parametrize("strategy", ["adaptive", "joint"])
    def test_each_group_has_its_own(self, strategy: str) -> None:
        other = (5 * torch.tensor(KL)).tolist()
        both = entropy([KL, other], strategy=strategy)
        assert both == pytest.approx([*entropy(KL, strategy=strategy), *entropy(other, strategy=strategy)])
        assert both[1] < both[0] < 1


def test_the_temperature_is_of_the_window_alone() -> None:
    """Red if layers outside the window widen the spread, or eps is left out."""
    cost = torch.tensor([[100.0, 1.0, 2.5, -50.0], [4.0, 4.0, 4.0, 0.0]])
    window = torch.tensor([[False, True, True, False], [True, True, True, False]])
    ours = adaptive_temperature(cost, window, scale=3.0, eps=0.5).tolist()
    expected = [reference.temperature(k, 3.0, 0.5) for k in ([1.0, 2.5], [4.0] * 3)]
    assert ours == pytest.approx(expected)
    assert expected == [1.5, 6.0]


def test_nothing_outside_the_window_is_drawn() -> None:
    """The forbidden layer costs nothing, and is never taken."""
    cost, window = torch.tensor([0.0, 5.0, 6.0]).expand(300, 3), torch.tensor([False, True, True]).expand(300, 3)
    drawn = draw_match(cost, window, torch.ones(300), generator())
    assert drawn.shape == (300, 1)
    assert set(drawn.flatten().tolist()) == {1, 2}
