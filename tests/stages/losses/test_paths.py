"""Whole paths against an enumeration of all of them: probabilities, marginals, draws, the best one, limits."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from stages.contract.settings import Annealing, Matching
from stages.losses import paths
from stages.losses.matching import expected_matches, match_entropy, match_layers

SIZES = [(student, teacher) for student in range(1, 6) for teacher in range(student, 10)]
DRAWS = 20_000
SMALLEST_P_VALUE = 1e-3
"""Chi-square on a fixed seed: a right sampler falls below in one of a thousand seeds."""
SMALLEST_EXPECTED_COUNT = 5
NEAR = 1e-6

Path = tuple[int, ...]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_kl(student: int, teacher: int, seed: int = 0) -> Tensor:
    return 4 * torch.rand(student, teacher, generator=generator(seed))


def all_paths(student: int, teacher: int) -> list[Path]:
    """Every strictly increasing path, in the order of its first, then its second layer, and so on."""
    return list(combinations(range(teacher), student))


def cost_of(kl: np.ndarray, path: Path, stride_prior: float = 0.0) -> float:
    student, teacher = kl.shape
    candidates = [kl[i, i + more] for i in range(student) for more in range(teacher - student + 1)]
    skipped = sum(later - earlier - 1 for earlier, later in pairwise(path))
    reward = stride_prior * (max(candidates) - min(candidates)) * skipped / max(1, teacher - student)
    return math.fsum(kl[i, j] for i, j in enumerate(path)) - reward


def beta_of(kl: np.ndarray, scale: float = 2.0, eps: float = 1e-6) -> float:
    """1 / temperature, from the spread of all pairs that some path holds."""
    student, teacher = kl.shape
    candidates = [kl[i, j] for path in all_paths(student, teacher) for i, j in enumerate(path)]
    return (max(candidates) - min(candidates) + eps) / scale


def probabilities(
    kl: Tensor, *, sharpness: float = 1.0, stride_prior: float = 0.0, **scale: float
) -> dict[Path, float]:
    """Of every path, from the formula alone."""
    matrix = kl.double().numpy()
    beta = sharpness * beta_of(matrix, **scale)
    logs = {path: -beta * cost_of(matrix, path, stride_prior) for path in all_paths(*matrix.shape)}
    highest = max(logs.values())
    weights = {path: math.exp(log - highest) for path, log in logs.items()}
    total = math.fsum(weights.values())
    return {path: weight / total for path, weight in weights.items()}


def shallowest_of_cheapest(kl: Tensor, stride_prior: float = 0.0) -> Path:
    matrix = kl.double().numpy()
    return min(all_paths(*matrix.shape), key=lambda path: (cost_of(matrix, path, stride_prior), path))


def match(kl: Tensor, *, groups: int = 1, seed: int = 0, sharpness: float = 1.0, **settings: object) -> list[Path]:
    """The path that each of `groups` groups with the same costs gets."""
    matches = match_layers(kl.expand(groups, *kl.shape), Matching(**settings), generator(seed), sharpness)
    return [tuple(path) for path in matches[:, :, 0].tolist()]


def expected(kl: Tensor, matches: Path, **settings: object) -> list[float]:
    drawn = torch.tensor(matches)[None, :, None]
    return expected_matches(kl[None], drawn, Matching(**settings))[0].tolist()


def open_to_chance(kl: Tensor, *, sharpness: float = 1.0, **settings: object) -> float:
    return match_entropy(kl[None], Matching(**settings), sharpness).item()


def chances_of_each_pick(score: Tensor, monkeypatch: pytest.MonkeyPatch) -> dict[Path, float]:
    """Every path's probability under `draw_path`, from what it draws with: each path is forced in its turn."""
    every = all_paths(*score.shape)
    forced = iter(torch.tensor(every).T)
    chance = torch.ones(len(every), dtype=torch.float64)

    def multinomial(p: Tensor, *_: object, **__: object) -> Tensor:
        picks = next(forced)[:, None]
        chance.mul_(p.gather(1, picks)[:, 0])
        return picks

    with monkeypatch.context() as patch:
        patch.setattr(torch, "multinomial", multinomial)
        paths.draw_path(score.expand(len(every), *score.shape), generator())
    return dict(zip(every, chance.tolist(), strict=True))


def assert_drawn_with(drawn: list[Path], chances: dict[Path, float]) -> None:
    counts = Counter(drawn)
    assert set(counts) <= set(chances)
    likely = [path for path, p in chances.items() if p * len(drawn) >= SMALLEST_EXPECTED_COUNT]
    wanted = np.array([chances[path] for path in likely])
    observed = np.array([counts[path] for path in likely])
    p_value = stats.chisquare(observed, wanted / wanted.sum() * observed.sum()).pvalue if len(likely) > 1 else 1.0
    assert p_value > SMALLEST_P_VALUE, f"p = {p_value:.1e} over {len(likely)} paths"


class TestJoint:
    """P(path) in proportion to exp(-β · cost), for every size up to 5 × 9."""

    @pytest.mark.parametrize(("student", "teacher"), SIZES)
    def test_every_path_is_drawn_with_its_probability(
        self, student: int, teacher: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kl = random_kl(student, teacher)
        score = -beta_of(kl.double().numpy()) * kl.double()
        exact = probabilities(kl)
        ours = chances_of_each_pick(score, monkeypatch)
        assert ours == pytest.approx(exact, abs=NEAR)
        assert sum(ours.values()) == pytest.approx(1.0)

    @pytest.mark.parametrize(("student", "teacher"), SIZES)
    def test_marginals_are_sums_over_paths(self, student: int, teacher: int) -> None:
        kl = random_kl(student, teacher, seed=1)
        exact = np.zeros((student, teacher))
        for path, probability in probabilities(kl).items():
            exact[range(student), path] += probability
        score = -beta_of(kl.double().numpy()) * kl.double()
        assert paths.marginals(score[None])[0].numpy() == pytest.approx(exact, abs=NEAR)
        places = exact @ np.arange(teacher)
        assert expected(kl, tuple(range(student)), strategy="joint") == pytest.approx(places, abs=NEAR)

    @pytest.mark.parametrize(("student", "teacher"), SIZES)
    def test_the_entropy_is_that_of_all_paths(self, student: int, teacher: int) -> None:
        """As a fraction of the logarithm of how many there are; of a single path it is 0."""
        kl = random_kl(student, teacher, seed=2)
        chances = probabilities(kl).values()
        nats = -math.fsum(p * math.log(p) for p in chances)
        score = -beta_of(kl.double().numpy()) * kl.double()
        assert paths.entropy(score[None]).item() == pytest.approx(nats, abs=NEAR)
        exact = nats / math.log(len(chances)) if len(chances) > 1 else 0.0
        assert open_to_chance(kl, strategy="joint") == pytest.approx(exact, abs=NEAR)

    @pytest.mark.parametrize(("student", "teacher"), [(1, 9), (2, 5), (3, 6), (4, 9), (5, 9)])
    def test_draws_pass_the_chi_square(self, student: int, teacher: int) -> None:
        kl = random_kl(student, teacher) / 2
        assert_drawn_with(match(kl, groups=DRAWS, strategy="joint"), probabilities(kl))

    @pytest.mark.parametrize(
        "wrong", [{"scale": 4.0}, {"sharpness": 2.0}, {"stride_prior": 0.5}], ids=["scale", "sharpness", "prior"]
    )
    def test_the_chi_square_tells_wrong_formulas_apart(self, wrong: dict[str, float]) -> None:
        kl = random_kl(3, 6) / 2
        with pytest.raises(AssertionError, match="p = "):
            assert_drawn_with(match(kl, groups=DRAWS, strategy="joint"), probabilities(kl, **wrong))

    def test_scale_sharpness_and_prior_have_their_place_in_the_formula(self) -> None:
        kl = random_kl(3, 6) / 2
        drawn = match(kl, groups=DRAWS, sharpness=0.7, strategy="joint", scale=0.5, eps=0.3, stride_prior=0.4)
        assert_drawn_with(drawn, probabilities(kl, sharpness=0.7, scale=0.5, eps=0.3, stride_prior=0.4))

    def test_without_sharpness_all_paths_are_equally_likely(self) -> None:
        every = all_paths(3, 6)
        drawn = match(random_kl(3, 6), groups=DRAWS, strategy="joint", scale=1e12)
        assert_drawn_with(drawn, dict.fromkeys(every, 1 / len(every)))

    def test_the_sharpest_draw_is_the_cheapest_path(self) -> None:
        kl = random_kl(5, 9)
        assert match(kl, groups=100, strategy="joint", scale=1e-9) == match(kl, groups=100, strategy="viterbi")
        assert match(kl, groups=100, strategy="joint", sharpness=1e9) == match(kl, groups=100, strategy="viterbi")

    def test_each_group_follows_its_own_costs(self) -> None:
        kl = torch.stack([random_kl(3, 6, seed) for seed in range(2)])
        together = match_layers(kl.repeat(DRAWS, 1, 1), Matching(strategy="joint"), generator())[:, :, 0]
        for group in range(2):
            assert_drawn_with([tuple(path) for path in together[group::2].tolist()], probabilities(kl[group]))

    def test_draws_follow_from_the_generators_state_and_move_it_on(self) -> None:
        kl, settings, source = random_kl(3, 8).expand(50, 3, 8), Matching(strategy="joint"), generator(3)
        state = source.get_state()
        one, other = (match_layers(kl, settings, source) for _ in range(2))
        assert not torch.equal(one, other)
        source.set_state(state)
        torch.manual_seed(1)
        assert torch.equal(match_layers(kl, settings, source), one)
        assert torch.equal(match_layers(kl, settings, source), other)


class TestViterbi:
    """The cheapest path, of equally cheap ones the shallowest."""

    @pytest.mark.parametrize(("student", "teacher"), SIZES)
    def test_it_is_the_minimum_over_all_paths(self, student: int, teacher: int) -> None:
        for seed in range(5):
            kl = random_kl(student, teacher, seed)
            assert match(kl, strategy="viterbi") == [shallowest_of_cheapest(kl)]
            prior = {"stride_prior": 0.75}
            assert match(kl, strategy="viterbi", **prior) == [shallowest_of_cheapest(kl, **prior)]

    @pytest.mark.parametrize(("student", "teacher"), SIZES)
    def test_ties_go_to_the_shallower_path(self, student: int, teacher: int) -> None:
        """Costs of 0, 1 and 2 have many; the shallowest is nowhere deeper than another cheapest path."""
        for seed in range(20):
            kl = torch.randint(3, (student, teacher), generator=generator(seed)).float()
            [path] = match(kl, strategy="viterbi")
            assert path == shallowest_of_cheapest(kl)
            cheapest = [other for other in all_paths(student, teacher) if cost(kl, other) == cost(kl, path)]
            assert all(ours <= theirs for other in cheapest for ours, theirs in zip(path, other, strict=True))

    def test_equal_costs_give_the_shallowest_path(self) -> None:
        assert match(torch.full((3, 7), 2.5), strategy="viterbi") == [(0, 1, 2)]

    def test_its_expected_match_is_its_match(self) -> None:
        kl = random_kl(3, 7)
        [path] = match(kl, strategy="viterbi")
        assert expected(kl, path, strategy="viterbi") == list(path)


def cost(kl: Tensor, path: Path) -> float:
    return float(kl[range(len(path)), path].sum())


class TestStridePrior:
    """A reward for the teacher layers between the matches."""

    def test_equal_costs_have_no_spread_to_weigh_with(self) -> None:
        assert match(torch.ones(2, 5), strategy="viterbi", stride_prior=9.0) == [(0, 1)]

    def test_a_strong_prior_spans_the_teacher(self) -> None:
        drawn = match(random_kl(4, 9), groups=100, strategy="joint", stride_prior=1e4)
        assert {(path[0], path[-1]) for path in drawn} == {(0, 8)}

    def test_what_lies_between_follows_from_the_costs(self) -> None:
        kl = random_kl(3, 9)
        kl[1, 5] = -1.0
        assert match(kl, strategy="viterbi", stride_prior=1e4) == [(0, 5, 8)]

    def test_it_has_no_say_where_a_path_has_no_step(self) -> None:
        assert match(random_kl(1, 9), strategy="viterbi", stride_prior=1e4) == match(
            random_kl(1, 9), strategy="viterbi"
        )


class TestBothStrategies:
    """What holds for `joint` and `viterbi` alike."""

    @hypothesis_settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(
        st.sampled_from(["joint", "viterbi"]),
        st.integers(1, 7),
        st.integers(0, 13),
        st.integers(0, 2**20),
        st.sampled_from([1e-6, 1e-3, 1.0, 1e4]),
        st.sampled_from([torch.float32, torch.bfloat16]),
        st.sampled_from([0.0, 1.0]),
    )
    def test_paths_increase_strictly_for_costs_of_any_size(
        self, strategy: str, student: int, more: int, seed: int, largest: float, dtype: torch.dtype, prior: float
    ) -> None:
        kl = (largest * torch.rand(2, student, student + more, generator=generator(seed))).to(dtype)
        settings = Matching(strategy=strategy, stride_prior=prior)
        matches = match_layers(kl, settings, generator(seed))
        means = expected_matches(kl, matches, settings)
        assert matches.shape == (2, student, 1)
        assert matches.dtype == torch.int64
        for path in matches[:, :, 0].tolist():
            assert all(later > earlier for earlier, later in pairwise(path)), path
            assert all(i <= teacher <= more + i for i, teacher in enumerate(path)), path
        assert torch.isfinite(means).all()
        assert (means.diff(dim=1) > 1 - NEAR).all(), "expected matches of an increasing path increase by one at least"
        entropy = match_entropy(kl, settings)
        assert ((entropy >= 0) & (entropy <= 1 + NEAR)).all()

    @pytest.mark.parametrize("strategy", ["joint", "viterbi"])
    @pytest.mark.parametrize("layers", [1, 2, 7])
    def test_equal_layer_counts_force_the_identity(self, strategy: str, layers: int) -> None:
        kl = 1e4 * torch.eye(layers)
        assert match(kl, groups=20, strategy=strategy) == [tuple(range(layers))] * 20
        assert expected(kl, tuple(range(layers)), strategy=strategy) == pytest.approx(list(range(layers)))

    @pytest.mark.parametrize("strategy", ["joint", "viterbi"])
    def test_costs_from_tiny_to_huge_side_by_side_are_no_trouble(self, strategy: str) -> None:
        kl = torch.logspace(-6, 4, 5 * 9).reshape(5, 9)
        assert match(kl, strategy=strategy) == [shallowest_of_cheapest(kl)]
        assert expected(kl, (0, 1, 2, 3, 4), strategy=strategy) == pytest.approx([0, 1, 2, 3, 4])

    @pytest.mark.parametrize("strategy", ["joint", "viterbi"])
    def test_no_gradient_flows_and_the_costs_stay_as_they_are(self, strategy: str) -> None:
        kl = random_kl(3, 6).double().requires_grad_()
        before = kl.detach().clone()
        matches = match_layers(kl[None], Matching(strategy=strategy, stride_prior=1.0), generator())
        assert not matches.requires_grad
        assert torch.equal(kl, before)

    @pytest.mark.parametrize(("student", "teacher"), [(3, 6), (7, 20)])
    def test_the_work_grows_with_student_layers_times_teacher_layers(
        self, student: int, teacher: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One running sum over the teacher's layers for each student layer but the deepest."""
        merged: list[tuple[int, ...]] = []
        once = paths._log_sum
        monkeypatch.setattr(paths, "_log_sum", lambda row: merged.append(tuple(row.shape)) or once(row))
        match(random_kl(student, teacher), strategy="joint")
        assert merged == [(1, teacher)] * (student - 1)


class TestAnnealing:
    """The temperature over a training."""

    def test_it_goes_from_first_to_last_in_equal_ratios(self) -> None:
        annealing = Annealing(first=0.5, last=8.0)
        assert [annealing.sharpness(done) for done in (0, 0.25, 0.5, 1)] == pytest.approx([0.5, 1.0, 2.0, 8.0])
        assert Matching(annealing=annealing).sharpness(1) == 8.0
        assert Matching().sharpness(0.3) == 1.0

    @pytest.mark.parametrize("strategy", ["adaptive", "joint", "multinomial", "multinomial+range+order"])
    def test_it_applies_to_every_draw(self, strategy: str) -> None:
        """From an even draw, which finds every path, to a single one."""
        kl = random_kl(2, 4)
        even, single = (set(match(kl, groups=2000, strategy=strategy, sharpness=s)) for s in (1e-9, 1e9))
        assert len(even) == (16 if strategy == "multinomial" else 6)
        assert len(single) == 1

    @pytest.mark.parametrize("strategy", ["viterbi", "uniform", "bottom-1", "bottom-3", "random"])
    def test_it_is_refused_where_nothing_is_sharpened(self, strategy: str) -> None:
        with pytest.raises(ValidationError, match=f"`{strategy}` has none to sharpen; set it to null or"):
            Matching(strategy=strategy, annealing={})

    def test_a_prior_on_paths_is_refused_where_layers_choose_one_by_one(self) -> None:
        with pytest.raises(ValidationError, match="`adaptive` chooses layer by layer; set it to 0 or"):
            Matching(stride_prior=1.0)
