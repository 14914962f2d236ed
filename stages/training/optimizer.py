"""AdamW with decay groups, and a cosine schedule with warm-up and floor."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from stages.contract.settings import Schedule


def make_optimizer(parameters: Iterable[nn.Parameter], schedule: Schedule) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (norms, biases) do not."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": schedule.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=schedule.learning_rate)


def learning_rate(step: int, steps: int, schedule: Schedule) -> float:
    """Linear warm-up to `learning_rate`, then half a cosine to `final_learning_rate`.

    Args:
        step: 0-based optimizer step.
        steps: of the stage.
        schedule: the two rates and the warm-up.
    """
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return schedule.final_learning_rate + (schedule.learning_rate - schedule.final_learning_rate) * cosine
