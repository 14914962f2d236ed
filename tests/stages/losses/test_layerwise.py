"""The matched loss: prices of all pairs, the loss and gradient of the matches that were drawn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.contract.settings import Matching
from stages.losses import layerwise
from stages.losses.divergence import Head, Target, moment_target
from stages.losses.layerwise import FeatureCosts, KLCosts, matched_loss
from tests import reference

FLOAT32_TOLERANCE = 1e-5
"""Relative. Sums over 70 words and 9 tokens in float32. Measured: at most 9e-7."""

STUDENT, TEACHER, TOKENS = 3, 5, 9
ROWS = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2, 2])
SAMPLES = ("alpha", "beta", "gamma")


class World(NamedTuple):
    """Three student and five teacher layers on nine tokens of three samples."""

    said: list[Tensor]
    head: Head
    teacher: Target
    log_p: list[reference.Array]

    def costs(self) -> KLCosts:
        return KLCosts(self.said, self.head, self.teacher)

    def exact_price(self, student: int, teacher: int) -> reference.Array:
        """[N], nats."""
        return reference.kl_divergence(self.log_p[teacher], self.log_q(student))

    def exact_gradient(self, student: int, teacher: int) -> reference.Array:
        """[N, D]."""
        return reference.kl_gradient(self.log_p[teacher], self.log_q(student), self.head.weight)

    def log_q(self, student: int) -> reference.Array:
        return reference.log_probabilities(self.said[student].detach(), self.head.weight, self.head.bias)


def make_world(*, teacher_layers: int = TEACHER, bias: bool = False) -> World:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    vocabulary, width, teacher_width = 70, 12, 20
    head = Head(random(vocabulary, width) / 3, random(vocabulary) if bias else None)
    teacher_head = Head(random(vocabulary, teacher_width) / 4)
    states = [random(TOKENS, teacher_width) for _ in range(teacher_layers)]
    targets = [moment_target(state, teacher_head, head) for state in states]
    moments, entropies, biases = zip(*targets, strict=True)
    teacher = Target(torch.stack(moments), torch.stack(entropies), torch.stack(biases) if bias else None)
    said = [random(TOKENS, width).requires_grad_() for _ in range(STUDENT)]
    return World(said, head, teacher, [reference.log_probabilities(s, teacher_head.weight) for s in states])


def draw(world: World, *, seed: int = 0, **settings: object) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return matched_loss(world.costs(), ROWS, SAMPLES, Matching(**settings), generator)


def gradients(world: World, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, world.said))


def relative(ours: object, exact: object) -> float:
    ours, exact = (np.asarray(value, np.float64).reshape(1, -1) for value in (ours, exact))
    return reference.error_of_worst_token(ours, exact)


@pytest.mark.parametrize("bias", [False, True])
def test_every_pair_is_priced_as_the_reference_does(bias: bool) -> None:
    """Red if student and teacher axes are exchanged, or a layer's partition serves another."""
    world = make_world(bias=bias)
    costs = world.costs()
    prices = costs.all_pairs()
    assert prices.shape == (STUDENT, TEACHER, TOKENS)
    assert not prices.requires_grad
    for i in range(STUDENT):
        for j in range(TEACHER):
            error = relative(prices[i, j], world.exact_price(i, j))
            assert error < FLOAT32_TOLERANCE, f"pair {i}, {j}: relative error {error:.1e}"
            pair = costs.pair(i, torch.full((TOKENS,), j))
            assert relative(pair.detach(), world.exact_price(i, j)) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("bias", [False, True])
def test_a_pair_may_differ_from_token_to_token(bias: bool) -> None:
    """With `per_sample`, tokens of one batch learn from different layers; value and gradient follow."""
    world = make_world(bias=bias)
    layer = torch.tensor([4, 0, 2, 1, 3, 3, 0, 2, 4])
    pair = world.costs().pair(1, layer)
    (gradient,) = torch.autograd.grad(pair.sum(), world.said[1])
    for token, j in enumerate(layer.tolist()):
        assert relative(pair[token].detach(), world.exact_price(1, j)[token]) < FLOAT32_TOLERANCE
        assert relative(gradient[token], world.exact_gradient(1, j)[token]) < FLOAT32_TOLERANCE


def test_one_pass_over_the_vocabulary_per_student_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The physical floor of DESIGN §2. Red if a candidate or the chosen pair costs a pass of its own."""
    passes = []
    count = layerwise.log_partition
    monkeypatch.setattr(layerwise, "log_partition", lambda *args: passes.append(1) or count(*args))
    world = make_world()
    loss, _ = draw(world)
    gradients(world, loss)
    assert len(passes) == STUDENT


@pytest.mark.parametrize("strategy", ["adaptive", "multinomial", "uniform", "random", "bottom-1"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_loss_and_gradient_are_those_of_the_drawn_matches(strategy: str, per_sample: bool) -> None:
    """Red if the loss is of other pairs than the ones reported, or a non-chosen pair pulls too."""
    world = make_world()
    for seed in range(5):
        loss, matches = draw(world, seed=seed, strategy=strategy, per_sample=per_sample)
        assert matches.shape == (3 if per_sample else 1, STUDENT, 1)
        of_token = [matches[row if per_sample else 0, :, 0].tolist() for row in ROWS.tolist()]
        exact = sum(world.exact_price(i, of_token[n][i])[n] for i in range(STUDENT) for n in range(TOKENS))
        assert loss.item() == pytest.approx(exact, rel=FLOAT32_TOLERANCE), f"matches {matches.tolist()}"
        for i, gradient in enumerate(gradients(world, loss)):
            expected = [world.exact_gradient(i, of_token[n][i])[n] for n in range(TOKENS)]
            error = relative(gradient, expected)
            assert error < FLOAT32_TOLERANCE, f"student layer {i}: relative error {error:.1e}"


def test_bottom_3_learns_from_the_mean_of_three() -> None:
    world = make_world()
    loss, matches = draw(world, strategy="bottom-3")
    assert matches.shape == (1, STUDENT, 3)
    pairs = [(i, j) for i, chosen in enumerate(matches[0].tolist()) for j in chosen]
    exact = sum(world.exact_price(i, j).sum() / 3 for i, j in pairs)
    assert loss.item() == pytest.approx(exact, rel=FLOAT32_TOLERANCE)
    for i, gradient in enumerate(gradients(world, loss)):
        expected = sum(world.exact_gradient(i, j) / 3 for layer, j in pairs if layer == i)
        assert relative(gradient, expected) < FLOAT32_TOLERANCE


def test_per_sample_draws_one_match_for_each_sample() -> None:
    """Twelve seeds: some draw differs between samples. Red if all samples get the first one's match."""
    world = make_world()
    assert any(len({str(group) for group in draw(world, seed=s, per_sample=True)[1].tolist()}) > 1 for s in range(12))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_draw_sees_each_groups_reduced_prices(
    reduction: str, per_sample: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if tokens of one sample count for another, or `mean` divides by all tokens of the batch."""
    seen = []
    choose = layerwise.match_layers
    monkeypatch.setattr(layerwise, "match_layers", lambda kl, *rest: seen.append(kl) or choose(kl, *rest))
    world = make_world()
    draw(world, reduction=reduction, per_sample=per_sample)
    rows = ROWS.numpy() if per_sample else np.zeros(TOKENS, int)
    for group in range(rows.max() + 1):
        tokens = rows == group
        for i in range(STUDENT):
            for j in range(TEACHER):
                reduced = getattr(world.exact_price(i, j)[tokens], reduction)()
                assert seen[0][group, i, j].item() == pytest.approx(reduced, rel=FLOAT32_TOLERANCE)


def test_the_reduction_changes_the_draw_and_never_the_loss() -> None:
    """With equal layer counts the match is forced: the loss is the same. Otherwise `sum` draws colder."""
    forced = make_world(teacher_layers=STUDENT)
    losses = [draw(forced, reduction=reduction)[0].item() for reduction in ("mean", "sum")]
    assert losses[0] == losses[1]
    free = make_world()
    drawn = {
        reduction: {str(draw(free, seed=seed, reduction=reduction)[1].tolist()) for seed in range(40)}
        for reduction in ("mean", "sum")
    }
    assert len(drawn["sum"]) < len(drawn["mean"]), {reduction: len(paths) for reduction, paths in drawn.items()}


def test_the_search_itself_gives_no_gradient() -> None:
    """Prices hang on one parameter, the chosen pairs on another. Red if the draw is differentiated."""

    class Costs:
        searched = torch.ones((), requires_grad=True)
        learned = torch.ones((), requires_grad=True)

        def all_pairs(self) -> Tensor:
            return self.searched * torch.arange(TEACHER).float()[None, :, None].expand(STUDENT, TEACHER, TOKENS)

        def pair(self, student_layer: int, teacher_layer: Tensor) -> Tensor:
            return self.learned * teacher_layer.float()

    costs = Costs()
    loss, matches = matched_loss(costs, ROWS, SAMPLES, Matching(), torch.Generator().manual_seed(0))
    loss.backward()
    assert costs.searched.grad is None
    assert costs.learned.grad.item() == TOKENS * matches.sum().item()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_divergence_that_is_not_finite_names_samples_and_layers(value: float) -> None:
    """Tokens 1 and 7 belong to alpha and gamma; beta is well. Red if the draw goes on with such prices."""
    world = make_world()
    for token in (1, 7):
        world.teacher.entropy[3, token] = value
    with pytest.raises(ValueError, match=r"not finite") as error:
        draw(world)
    message = str(error.value)
    assert "[[0, 3], [1, 3], [2, 3]]" in message, message
    assert "samples alpha, gamma;" in message, message


def test_a_broken_student_layer_is_named() -> None:
    world = make_world()
    with torch.no_grad():
        world.said[1][4] = float("nan")
    with pytest.raises(ValueError, match=r"\[\[1, 0\], \[1, 1\], \[1, 2\], \[1, 3\]\] for samples beta;"):
        draw(world)


def test_feature_distances_are_mean_squares() -> None:
    """The ablation's L2 on features, values and gradient. Red if the width is summed instead of averaged."""
    generator = torch.Generator().manual_seed(0)
    projected = [torch.randn(TOKENS, 6, generator=generator, requires_grad=True) for _ in range(STUDENT)]
    teacher = torch.randn(TEACHER, TOKENS, 6, generator=generator)
    costs = FeatureCosts(projected, teacher)
    prices = costs.all_pairs()
    assert prices.shape == (STUDENT, TEACHER, TOKENS)
    assert not prices.requires_grad
    exact = [x.detach().double().numpy() for x in projected], teacher.double().numpy()
    for i in range(STUDENT):
        for j in range(TEACHER):
            expected = ((exact[0][i] - exact[1][j]) ** 2).mean(axis=-1)
            assert relative(prices[i, j], expected) < FLOAT32_TOLERANCE
    layer = torch.tensor([4, 0, 2, 1, 3, 3, 0, 2, 4])
    pair = costs.pair(2, layer)
    (gradient,) = torch.autograd.grad(pair.sum(), projected[2])
    chosen = exact[1][layer.numpy(), np.arange(TOKENS)]
    assert relative(pair.detach(), ((exact[0][2] - chosen) ** 2).mean(axis=-1)) < FLOAT32_TOLERANCE
    assert relative(gradient, 2 * (exact[0][2] - chosen) / 6) < FLOAT32_TOLERANCE
    loss, matches = matched_loss(costs, ROWS, SAMPLES, Matching(), torch.Generator().manual_seed(0))
    drawn = [((exact[0][i] - exact[1][j]) ** 2).mean(axis=-1).sum() for i, j in enumerate(matches[0, :, 0].tolist())]
    assert loss.item() == pytest.approx(sum(drawn), rel=FLOAT32_TOLERANCE)
