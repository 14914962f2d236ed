"""An objective small enough to see through: it learns how often each token occurs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.contract.settings import Preprocessing, Schedule
from stages.data.encoding import Batch, Encoder
from stages.data.sample import Sample
from stages.training.objective import Loss, Objective, check_finite


class Unigrams(Objective):
    """With a random draw in every micro-batch. `poison` names a sample whose loss is NaN."""

    def __init__(self, samples: list[Sample], encoder: Encoder, schedule: Schedule) -> None:
        super().__init__()
        self.samples, self.encoder, self.schedule = samples, encoder, schedule
        self.preprocessing = Preprocessing(max_bad_fraction=0.2)
        self.generator = torch.Generator()
        self.logits = nn.Parameter(torch.zeros(encoder.real_vocabulary))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.poison: str | None = None

    def forward(self, batch: Batch) -> Loss:
        losses = -self.logits.log_softmax(0)[batch.labels]
        poisoned = torch.tensor([self.poison == name for name in batch.sample_ids])[batch.rows]
        losses = torch.where(poisoned, torch.nan, losses)
        check_finite(losses[None], ["unigrams"], batch)
        draw = torch.rand(1, generator=self.generator) * len(losses)
        sums = {"twice": 2 * losses.sum(), "draw": draw, "dropout": torch.rand(1) * len(losses)}
        return Loss(losses.sum(), {**sums, "progress": torch.tensor(self.progress * len(losses))})

    def save(self, work: Path) -> dict[str, Any]:
        return {}
