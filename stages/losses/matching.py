"""Layer matching: which teacher layer each student layer learns from (paper §3, Algorithm 1; METHOD §3).

Student layers choose from shallow to deep. In `adaptive`, the paper's final form, layer i draws from
the window [start .. t_l - t_s + i], where start lies one past the choice of layer i - 1, with
probability softmax(-KL / T) and T = scale / (max KL - min KL + eps). `joint` and `viterbi` choose the
whole path at once: `joint` draws it with probability proportional to exp(-sum KL / T), with T from the
spread of all pairs that a path can hold, `viterbi` takes the one with the lowest sum. The other
strategies are the rows of the paper's ablation. No gradient flows through a choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, log
from typing import Literal

import torch
from torch import Tensor

from stages.contract.settings import Matching
from stages.losses.paths import best_path, draw_path, entropy, marginals


@dataclass(frozen=True)
class Strategy:
    """One way to match layers.

    Attributes:
        choose: how one teacher layer (or several) is picked from the candidates.
        search_range: leave a deeper teacher layer for every deeper student layer.
        order: look only past the layer chosen before.
        adaptive: temperature from the spread of the candidates, else 1.
        count: how many candidates are picked; their losses are averaged.
        whole_path: choose for all student layers at once.
    """

    choose: Literal["draw", "lowest", "uniform", "random"]
    search_range: bool = False
    order: bool = False
    adaptive: bool = False
    count: int = 1
    whole_path: bool = False


STRATEGIES: dict[str, Strategy] = {
    "random": Strategy("random"),
    "uniform": Strategy("uniform"),
    "bottom-1": Strategy("lowest"),
    "bottom-3": Strategy("lowest", count=3),
    "multinomial": Strategy("draw"),
    "multinomial+range": Strategy("draw", search_range=True),
    "multinomial+range+order": Strategy("draw", search_range=True, order=True),
    "adaptive": Strategy("draw", search_range=True, order=True, adaptive=True),
    "joint": Strategy("draw", search_range=True, order=True, adaptive=True, whole_path=True),
    "viterbi": Strategy("lowest", search_range=True, order=True, whole_path=True),
}


@torch.no_grad()
def match_layers(kl: Tensor, settings: Matching, generator: torch.Generator, sharpness: float = 1.0) -> Tensor:
    """Choose teacher layers for every student layer of every group.

    Args:
        kl: [G, t_s, t_l], nats, reduced over response tokens as `matching.reduction` says; a group
            is a micro-batch, or a sample with `matching.per_sample`.
        settings: strategy, scale, eps and stride prior.
        generator: on the CPU; its state belongs to the checkpoint.
        sharpness: divides the temperature of a draw.

    Returns:
        [G, t_s, count] int64 on the CPU, indices into the teacher's target layers.

    Raises:
        ValueError: the student has more target layers than the teacher.
    """
    strategy = STRATEGIES[settings.strategy]
    check_layer_counts(*kl.shape[1:])
    if not strategy.whole_path:
        return _match_one_by_one(kl, strategy, settings, generator, sharpness)
    score = _path_score(kl, strategy, settings, sharpness)
    path = draw_path(score, generator) if strategy.choose == "draw" else best_path(score)
    return path[:, :, None]


@torch.no_grad()
def expected_matches(kl: Tensor, matches: Tensor, settings: Matching, sharpness: float = 1.0) -> Tensor:
    """Where the match of each student layer was to be expected.

    Args:
        kl: [G, t_s, t_l], as in `match_layers`.
        matches: [G, t_s, count], what it chose.
        settings: of the matching.
        sharpness: as in `match_layers`.

    Returns:
        [G, t_s] float64 on the CPU, places among the teacher's target layers: the exact mean over all paths
        for `joint`, else the mean of what was chosen.
    """
    strategy = STRATEGIES[settings.strategy]
    if not strategy.whole_path or strategy.choose != "draw":
        return matches.double().mean(dim=2)
    chances = marginals(_path_score(kl, strategy, settings, sharpness))
    return chances @ torch.arange(kl.shape[2], dtype=torch.float64)


@torch.no_grad()
def match_entropy(kl: Tensor, settings: Matching, sharpness: float = 1.0) -> Tensor:
    """How open the choice was: its entropy as a fraction of an even draw's.

    Args:
        kl: [G, t_s, t_l], as in `match_layers`.
        settings: of the matching.
        sharpness: as in `match_layers`.

    Returns:
        [G] float64 on the CPU, from 0, where nothing is left to chance, to 1, where costs have no say. Of the whole
        path for `joint`, else of the shallowest student layer's match.
    """
    strategy = STRATEGIES[settings.strategy]
    groups, student_layers, teacher_layers = kl.shape
    if strategy.choose != "draw":
        return torch.full((groups,), float(strategy.choose == "random"), dtype=torch.float64)
    if strategy.whole_path:
        choices = comb(teacher_layers, student_layers)
        nats = entropy(_path_score(kl, strategy, settings, sharpness))
    else:
        cost = kl[:, 0].detach().float().cpu()
        window = _window(torch.zeros(groups, dtype=torch.long), 0, strategy, student_layers, teacher_layers)
        choices = int(window[0].sum())
        chances = _chances(cost, window, _temperature(cost, window, strategy, settings, sharpness))
        nats = torch.special.entr(chances.double()).sum(dim=1)
    return nats / log(choices) if choices > 1 else torch.zeros_like(nats)


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
    return torch.multinomial(_chances(cost, window, temperature), 1, generator=generator)


def adaptive_temperature(cost: Tensor, window: Tensor, *, scale: float, eps: float) -> Tensor:
    """scale / (max - min + eps) over each window: [G, t_l] costs to [G] temperatures."""
    return scale / (_spread(cost, window) + eps)


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


def _chances(cost: Tensor, window: Tensor, temperature: Tensor) -> Tensor:
    return torch.where(window, -cost / temperature[:, None], -torch.inf).softmax(dim=1)


def _temperature(cost: Tensor, window: Tensor, strategy: Strategy, settings: Matching, sharpness: float) -> Tensor:
    if not strategy.adaptive:
        return torch.ones(len(cost)) / sharpness
    return adaptive_temperature(cost, window, scale=settings.scale, eps=settings.eps) / sharpness


def _spread(cost: Tensor, window: Tensor) -> Tensor:
    highest = torch.where(window, cost, -torch.inf).amax(dim=1)
    lowest = torch.where(window, cost, torch.inf).amin(dim=1)
    return highest - lowest


def _path_score(kl: Tensor, strategy: Strategy, settings: Matching, sharpness: float) -> Tensor:
    """[G, t_s, t_l] float64: minus what a path pays for each pair of layers, in units of the temperature.

    What the steps of a path skip adds up to its last layer minus its first, so a price on skipping is
    paid at the two ends.
    """
    cost = kl.detach().double().cpu()
    student_layers, teacher_layers = cost.shape[1:]
    spare = teacher_layers - student_layers
    ahead = torch.arange(teacher_layers) - torch.arange(student_layers)[:, None]
    candidates = ((ahead >= 0) & (ahead <= spare)).flatten()
    spread = _spread(cost.flatten(1), candidates)[:, None, None]
    ends = torch.zeros(student_layers, 1, dtype=torch.float64)
    ends[0] += 1
    ends[-1] -= 1
    cost = cost + settings.stride_prior * spread * ends * torch.arange(teacher_layers) / max(1, spare)
    temperature = settings.scale / (spread + settings.eps) / sharpness if strategy.adaptive else 1.0
    return -cost / temperature


def _match_one_by_one(
    kl: Tensor, strategy: Strategy, settings: Matching, generator: torch.Generator, sharpness: float
) -> Tensor:
    groups, student_layers, teacher_layers = kl.shape
    cost = kl.detach().float().cpu()
    start = torch.zeros(groups, dtype=torch.long)
    chosen = []
    for i in range(student_layers):
        window = _window(start, i, strategy, student_layers, teacher_layers)
        uniform = i * (teacher_layers // student_layers)
        picks = _choose(cost[:, i], window, uniform, strategy, settings, generator, sharpness)
        if strategy.order:
            start = picks.amax(dim=1) + 1
        chosen.append(picks)
    return torch.stack(chosen, dim=1)


def _window(start: Tensor, i: int, strategy: Strategy, student_layers: int, teacher_layers: int) -> Tensor:
    """[G, t_l]: what student layer i may be matched with."""
    layers = torch.arange(teacher_layers)
    end = teacher_layers - student_layers + i if strategy.search_range else teacher_layers - 1
    return (layers >= start[:, None]) & (layers <= end)


def _choose(
    cost: Tensor,
    window: Tensor,
    uniform: int,
    strategy: Strategy,
    settings: Matching,
    generator: torch.Generator,
    sharpness: float,
) -> Tensor:
    groups = len(cost)
    if strategy.choose == "uniform":
        return torch.full((groups, 1), uniform)
    if strategy.choose == "lowest":
        count = min(strategy.count, cost.shape[1])
        return torch.where(window, cost, torch.inf).topk(count, dim=1, largest=False).indices
    if strategy.choose == "random":
        return torch.multinomial(window.float(), 1, generator=generator)
    return draw_match(cost, window, _temperature(cost, window, strategy, settings, sharpness), generator)
