"""AdamW's groups, and the learning rate of every step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from stages.contract.settings import Schedule
from stages.training.optimizer import learning_rate, make_optimizer

PAPER = Schedule(learning_rate=1e-4, final_learning_rate=1e-6)
LAST_STEP_TOLERANCE = 0.01
"""Of the last step above the floor, relative to the peak: the cosine is flat there."""


def rates(steps: int, schedule: Schedule) -> list[float]:
    return [learning_rate(step, steps, schedule) for step in range(steps)]


def test_without_warm_up_it_starts_at_the_peak_and_only_falls() -> None:
    found = rates(200, PAPER)
    assert found[0] == 1e-4
    assert all(later < earlier for earlier, later in pairwise(found))
    assert found[-1] - 1e-6 < LAST_STEP_TOLERANCE * 1e-4, f"last step {found[-1]:.2e}"


def test_it_is_half_a_cosine_between_the_two_rates() -> None:
    """Red if the floor is a factor, or the cosine starts before the warm-up ends."""
    schedule = PAPER.model_copy(update={"warmup_steps": 20})
    for step in range(20, 120):
        expected = 1e-6 + (1e-4 - 1e-6) * (1 + math.cos(math.pi * (step - 20) / 100)) / 2
        assert learning_rate(step, 120, schedule) == pytest.approx(expected)
    assert learning_rate(70, 120, schedule) == pytest.approx((1e-4 + 1e-6) / 2)


def test_it_ends_at_the_floor_and_stays_there() -> None:
    """Red if the cosine is not clamped: it would rise again."""
    assert learning_rate(200, 200, PAPER) == pytest.approx(1e-6, rel=1e-12)
    assert learning_rate(300, 200, PAPER) == pytest.approx(1e-6, rel=1e-12)


def test_warm_up_is_linear_and_the_first_step_already_learns() -> None:
    schedule = Schedule(learning_rate=1.0, final_learning_rate=0.0, warmup_steps=4)
    assert rates(10, schedule)[:6] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, (1 + math.cos(math.pi / 6)) / 2])


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (3, 3), (3, 10)])
def test_a_warm_up_may_be_as_long_as_the_stage_or_longer(steps: int, warmup: int) -> None:
    """Red if it is cut to the stage's length, or the cosine begins before its end."""
    schedule = PAPER.model_copy(update={"warmup_steps": warmup})
    assert rates(steps, schedule) == pytest.approx([1e-4 * (step + 1) / max(1, warmup) for step in range(steps)])


def test_a_floor_equal_to_the_peak_is_a_constant_rate() -> None:
    assert rates(5, Schedule(learning_rate=3e-4, final_learning_rate=3e-4)) == [3e-4] * 5


class Model(nn.Module):
    """Two matrices, three vectors; one matrix and one vector frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.frozen_matrix = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.frozen_vector = nn.Parameter(torch.ones(2), requires_grad=False)


def test_matrices_decay_and_vectors_do_not() -> None:
    """Red if norms and biases decay, or a frozen parameter is handed to AdamW (which would decay it)."""
    model = Model()
    optimizer = make_optimizer(model.parameters(), Schedule(weight_decay=0.1, learning_rate=0.5))
    assert type(optimizer) is torch.optim.AdamW
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay.get(id(parameter)) for name, parameter in model.named_parameters()}
    assert found == {
        "layer.weight": 0.1,
        "layer.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "frozen_matrix": None,
        "frozen_vector": None,
    }
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_a_step_without_gradient_decays_matrices_only() -> None:
    """The same seen from outside: lr · decay of every matrix entry, nothing of the others."""
    model = Model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model.parameters(), Schedule(weight_decay=0.1, learning_rate=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 0.5 * 0.1) if name == "layer.weight" else before[name]
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize("kept", ["matrices", "vectors"])
def test_a_model_of_one_kind_has_one_group(kept: str) -> None:
    parameter = nn.Parameter(torch.ones(2, 2) if kept == "matrices" else torch.ones(2))
    assert len(make_optimizer([parameter], Schedule()).param_groups) == 1
