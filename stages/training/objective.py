"""An objective: the module a training stage trains, whose forward is its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.contract.settings import Preprocessing
from stages.data.encoding import Batch, Encoder
from stages.data.sample import Sample


@dataclass(frozen=True)
class Loss:
    """The loss of one micro-batch, summed over its response tokens.

    Attributes:
        total: scalar with gradient.
        sums: what is written to the journal, each a scalar or a vector summed over response tokens.
        notes: further entries of the journal, one list item per micro-batch.
    """

    total: Tensor
    sums: dict[str, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """What the loop trains. Only parameters with `requires_grad` change or are checkpointed.

    Attributes:
        samples: the training set, in file order.
        encoder: of the student.
        generator: source of the stage's random draws; checkpointed.
    """

    samples: Sequence[Sample]
    encoder: Encoder
    preprocessing: Preprocessing
    generator: torch.Generator

    @abstractmethod
    def forward(self, batch: Batch) -> Loss:
        """The loss of one micro-batch."""

    @abstractmethod
    def save(self, work: Path) -> dict[str, Any]:
        """Write the result into the work folder; returns the summary for the manifest."""

    def trained_state(self) -> dict[str, Tensor]:
        """The trained parameters by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
