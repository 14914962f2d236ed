"""Verbalization (step 1 of the paper): train a verbalizer on every target layer of both models.

Reads   the captured teacher states and readout, the captured samples, the student.
Writes  `teacher_verbalizers.safetensors`, `student_verbalizers.safetensors`, the journal.
Runs    on workers of Ray Train; resumes at a step, bit for bit on the same number of workers.

Only verb-FFNs are trained. The backbones are frozen, so every layer is a regression of its own and no
backward pass enters a backbone; teacher and student share the loop only because they share the data.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.cache.reader import CacheReader
from stages.contract import Job, read_journal
from stages.contract.files import (
    LAST_LAYER,
    READOUT_FOLDER,
    STATES_FOLDER,
    STUDENT_VERBALIZERS_FILE,
    TEACHER_VERBALIZERS_FILE,
    column_block,
)
from stages.contract.job import main
from stages.contract.settings import VerbalizationSettings, resolve_target_layers
from stages.data.encoding import Batch
from stages.data.sample import read_samples
from stages.losses.divergence import Head, divergence, label_target, log_partition
from stages.models.backbone import default_device
from stages.models.readout import Readout
from stages.models.verbalizer import Verbalizers
from stages.training.launch import train
from stages.training.objective import Loss, StudentObjective


class VerbalizationObjective(StudentObjective):
    """Cross-entropy of every verbalizer of both models against the response."""

    def __init__(self, job: Job) -> None:
        settings = job.typed(VerbalizationSettings)
        super().__init__(settings, job.inputs["student"])
        self._captured = CacheReader(Path(job.inputs["capture"]) / STATES_FOLDER)
        samples, _ = read_samples(Path(job.inputs["samples"]))
        self.samples = [sample for sample in samples if sample.id in self._captured]
        self._student.model.requires_grad_(False)
        self._readout = Readout.load(Path(job.inputs["capture"]) / READOUT_FOLDER, settings.model).to(default_device())
        columns = self._captured.layout.layers
        teacher_layers = [column_block(column) for column in columns if column != LAST_LAYER]
        student_layers = resolve_target_layers(settings.target_layers, len(self._student.blocks))
        teacher_width = self._captured.layout.fields[0].width
        self.teacher_verbalizers = Verbalizers(teacher_layers, teacher_width, settings.verbalizer)
        self.student_verbalizers = Verbalizers(student_layers, self._student.width, settings.verbalizer)
        vocabulary = self.encoder.real_vocabulary
        self._teacher_head = self._readout.head_rows(vocabulary)
        self._student_head = self._student.readout.head_rows(vocabulary)

    def forward(self, batch: Batch) -> Loss:
        """Sum of all layers' cross-entropies."""
        layers = self._captured.fields(batch.sample_ids, batch.labels)
        teacher_states = [fields[0].to(batch.labels.device) for fields in layers[:-1]]
        with torch.no_grad():
            student_states = self._student.states(batch, self.student_verbalizers.target_layers).targets
        teacher = verbalized_cross_entropy(
            self.teacher_verbalizers(teacher_states, self._readout.norm), batch.labels, self._teacher_head
        )
        student = verbalized_cross_entropy(
            self.student_verbalizers(student_states, self._student.norm), batch.labels, self._student_head
        )
        return Loss(teacher.sum() + student.sum(), {"ce_teacher": teacher.detach(), "ce_student": student.detach()})

    def save(self, work: Path) -> dict[str, Any]:
        """Write both models' verbalizers."""
        self.teacher_verbalizers.save(work / TEACHER_VERBALIZERS_FILE)
        self.student_verbalizers.save(work / STUDENT_VERBALIZERS_FILE)
        last = read_journal(work)[-1]
        return {
            "teacher_target_layers": list(self.teacher_verbalizers.target_layers),
            "student_target_layers": list(self.student_verbalizers.target_layers),
            **{name: last[name] for name in ("loss", "ce_teacher", "ce_student")},
            "steps": last["step"],
        }


def verbalized_cross_entropy(inputs: list[Tensor], labels: Tensor, head: Head) -> Tensor:
    """Cross-entropy of every layer, summed over tokens: one [N, d] head input per layer to [layers]."""
    target = label_target(labels, head)
    return torch.stack([divergence(x, log_partition(x, head), target).sum() for x in inputs])


def run(job: Job, work: Path) -> dict[str, Any]:
    """Train both models' verbalizers."""
    return train(job, work, "stages.verbalization:VerbalizationObjective")


if __name__ == "__main__":
    sys.exit(main("verbalization"))
