"""Layer matching: which teacher layer each student layer learns from (paper §3, Algorithm 1; METHOD §3).

Student layers choose from shallow to deep. In `adaptive`, the paper's final form, layer i draws from
the window [start .. t_l - t_s + i], where start lies one past the choice of layer i - 1, with
probability softmax(-KL / T) and T = scale / (max KL - min KL + eps). The other strategies are the
rows of the paper's ablation. No gradient flows through a choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stages.contract.settings import Matching


@dataclass(frozen=True)
class Strategy:
    """One row of the paper's matching ablation.

    Attributes:
        choose: how one teacher layer (or several) is picked from the candidates.
        search_range: leave a deeper teacher layer for every deeper student layer.
        order: look only past the layer chosen before.
        adaptive: temperature from the spread of the candidates, else 1.
        count: how many candidates are picked; their losses are averaged.
    """

    choose: Literal["draw", "lowest", "uniform", "random"]
    search_range: bool = False
    order: bool = False
    adaptive: bool = False
    count: int = 1


STRATEGIES: dict[str, Strategy] = {
    "random": Strategy("random"),
    "uniform": Strategy("uniform"),
    "bottom-1": Strategy("lowest"),
    "bottom-3": Strategy("lowest", count=3),
    "multinomial": Strategy("draw"),
    "multinomial+range": Strategy("draw", search_range=True),
    "multinomial+range+order": Strategy("draw", search_range=True, order=True),
    "adaptive": Strategy("draw", search_range=True, order=True, adaptive=True),
}


@torch.no_grad()
def match_layers(kl: Tensor, settings: Matching, generator: torch.Generator) -> Tensor:
    """Choose teacher layers for every student layer of every group.

    Args:
        kl: [G, t_s, t_l], nats, reduced over response tokens as `matching.reduction` says; a group
            is a micro-batch, or a sample with `matching.per_sample`.
        settings: strategy, scale and eps.
        generator: on the CPU; its state belongs to the checkpoint.

    Returns:
        [G, t_s, count] int64 on the CPU, indices into the teacher's target layers.

    Raises:
        ValueError: the student has more target layers than the teacher.
    """
    strategy = STRATEGIES[settings.strategy]
    groups, student_layers, teacher_layers = kl.shape
    check_layer_counts(student_layers, teacher_layers)
    cost = kl.detach().float().cpu()
    start = torch.zeros(groups, dtype=torch.long)
    chosen = []
    for i in range(student_layers):
        end = teacher_layers - student_layers + i if strategy.search_range else teacher_layers - 1
        window = _window(start, end, teacher_layers)
        picks = _choose(cost[:, i], window, i * (teacher_layers // student_layers), strategy, settings, generator)
        if strategy.order:
            start = picks.amax(dim=1) + 1
        chosen.append(picks)
    return torch.stack(chosen, dim=1)


def draw_match(cost: Tensor, window: Tensor, temperature: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one candidate; a lower cost is likelier, never certain.

    Adding a constant to every cost changes nothing; a window of one is always chosen.

    Args:
        cost: [G, t_l] float32.
        window: [G, t_l] bool, the candidates.
        temperature: [G] float32.
        generator: on the CPU.

    Returns:
        [G, 1] int64.
    """
    logits = torch.where(window, -cost / temperature[:, None], -torch.inf)
    return torch.multinomial(logits.softmax(dim=1), 1, generator=generator)


def adaptive_temperature(cost: Tensor, window: Tensor, *, scale: float, eps: float) -> Tensor:
    """scale / (max - min + eps) over each window: [G, t_l] costs to [G] temperatures."""
    highest = torch.where(window, cost, -torch.inf).amax(dim=1)
    lowest = torch.where(window, cost, torch.inf).amin(dim=1)
    return scale / (highest - lowest + eps)


def check_layer_counts(student_layers: int, teacher_layers: int) -> None:
    """Matches increase strictly, so the teacher needs at least as many target layers as the student.

    Raises:
        ValueError: it has fewer.
    """
    if student_layers > teacher_layers:
        raise ValueError(
            f"{student_layers} student target layers cannot be matched with {teacher_layers} of the teacher; "
            "choose fewer in student.target_layers or more in teacher.target_layers"
        )


def _window(start: Tensor, end: int, teacher_layers: int) -> Tensor:
    layers = torch.arange(teacher_layers)
    return (layers >= start[:, None]) & (layers <= end)


def _choose(
    cost: Tensor,
    window: Tensor,
    uniform: int,
    strategy: Strategy,
    settings: Matching,
    generator: torch.Generator,
) -> Tensor:
    groups = len(cost)
    if strategy.choose == "uniform":
        return torch.full((groups, 1), uniform)
    if strategy.choose == "lowest":
        count = min(strategy.count, cost.shape[1])
        return torch.where(window, cost, torch.inf).topk(count, dim=1, largest=False).indices
    if strategy.choose == "random":
        return torch.multinomial(window.float(), 1, generator=generator)
    temperature = (
        adaptive_temperature(cost, window, scale=settings.scale, eps=settings.eps)
        if strategy.adaptive
        else torch.ones(groups)
    )
    return draw_match(cost, window, temperature, generator)
