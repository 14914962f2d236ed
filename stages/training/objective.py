"""An objective: the module a training stage trains, whose forward is its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stages.contract.settings import ModelLoading, Preprocessing, Schedule
from stages.data.encoding import Batch, Encoder
from stages.data.sample import Sample
from stages.models.backbone import Backbone, load_processor


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
        schedule: how long and with which optimizer.
        encoder: of the student.
        preprocessing: what the encoder was made with.
        generator: source of the stage's random draws; checkpointed.
    """

    samples: Sequence[Sample]
    schedule: Schedule
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


class TrainingSettings(Protocol):
    """What the settings of all three training stages have."""

    @property
    def model(self) -> ModelLoading:
        """How the student is loaded."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How samples become tensors."""

    @property
    def schedule(self) -> Schedule:
        """How long and with which optimizer."""


class StudentObjective(Objective):
    """An objective with a student, loaded, seeded and ready to say which of its parts are trained."""

    def __init__(self, settings: TrainingSettings, student: str) -> None:
        """`student`: a checkpoint folder or hub id."""
        super().__init__()
        self.schedule, self.preprocessing = settings.schedule, settings.preprocessing
        self.generator = torch.Generator().manual_seed(self.schedule.seed)
        torch.manual_seed(self.schedule.seed)
        self.encoder = Encoder(load_processor(student, settings.model), self.preprocessing)
        self._student = Backbone.load(student, settings.model)
