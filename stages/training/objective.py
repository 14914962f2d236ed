"""An objective: the module a training stage trains, whose forward is its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from stages.cache.reader import CacheReader
from stages.contract import Job, StageError
from stages.contract.settings import ModelLoading, Preprocessing, Schedule
from stages.data.encoding import Batch, Encoder
from stages.data.sample import Sample
from stages.models.backbone import Backbone, default_device, load_processor


class Loss(NamedTuple):
    """The loss of one micro-batch, summed over its response tokens.

    Attributes:
        total: scalar with gradient.
        sums: what else is written to the journal as a mean over tokens: scalars, vectors, matrices.
    """

    total: Tensor
    sums: dict[str, Tensor]


class Objective(nn.Module, ABC):
    """What the loop trains. Only parameters with `requires_grad` change or are checkpointed.

    Attributes:
        samples: the training set, in file order.
        schedule: how long and with which optimizer.
        encoder: of the student.
        preprocessing: what the encoder was made with.
        cache: the teacher's side of every sample, if the loss needs it.
        generator: source of the stage's random draws, seeded anew for every step.
        progress: share of the steps that are done, from 0 in the first to 1 in the last; set for every step.
        common_draws: whether all workers draw the same random numbers.
        autocast: whether the forward pass computes in bfloat16.
    """

    samples: Sequence[Sample]
    schedule: Schedule
    encoder: Encoder
    preprocessing: Preprocessing
    cache: CacheReader | None = None
    generator: torch.Generator
    progress: float = 0.0
    common_draws: bool = False
    autocast: bool = False

    @abstractmethod
    def forward(self, batch: Batch) -> Loss:
        """The loss of one micro-batch.

        Raises:
            StageError: it is not finite; layers and samples are named.
        """

    @abstractmethod
    def save(self, folder: Path, journal: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Write the result into a folder on this machine; returns the summary for the manifest."""

    def derive(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Further entries of the journal, from the step's means over all tokens of all workers."""
        return {}

    def sharded_classes(self) -> list[str]:
        """Names of the module classes that `fsdp` shards one by one."""
        return []


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
    """An objective with a student, loaded, seeded and ready to say which of its parts are trained.

    Attributes:
        student_is_sharded: whether `fsdp` shards the student, which then waits in the CPU's memory.
    """

    student_is_sharded = True

    def __init__(self, job: Job, settings: TrainingSettings) -> None:
        super().__init__()
        self.schedule, self.preprocessing = settings.schedule, settings.preprocessing
        self.generator = torch.Generator()
        self.autocast = settings.model.dtype == "bfloat16"
        torch.manual_seed(self.schedule.seed)
        place = job.inputs["student"]
        waits = self.student_is_sharded and job.resources.parallelism == "fsdp"
        device = torch.device("cpu") if waits else default_device()
        self._student = Backbone.load(place, settings.model, device)
        processor = load_processor(place, settings.model)
        self.encoder = Encoder(processor, self.preprocessing, positions=self._student.positions)

    def sharded_classes(self) -> list[str]:
        """The decoder's blocks; some decoders have several kinds."""
        return list(dict.fromkeys(type(block).__name__ for block in self._student.blocks))


def check_finite(values: Tensor, layers: Sequence[object], batch: Batch) -> None:
    """Stop at losses that are NaN or infinite.

    Args:
        values: [layers, N], of the batch's N response tokens.
        layers: their names.
        batch: whose samples are named.

    Raises:
        StageError: some are; layers and samples are named.
    """
    bad = ~torch.isfinite(values.detach())
    if not bad.any():
        return
    where = [str(layers[i]) for i in bad.any(dim=1).nonzero().flatten().tolist()]
    names = [batch.sample_ids[row] for row in batch.rows[bad.any(dim=0)].unique().tolist()]
    raise StageError(
        f"the loss is not finite at layer {', '.join(where)} for samples {', '.join(names)}; "
        "lower schedule.learning_rate or schedule.max_gradient_norm, or look at these samples"
    )
