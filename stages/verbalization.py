"""Verbalization (step 1 of the paper): train a verbalizer on every target layer of both models.

Reads   the captured teacher states and readout, the captured samples, the student.
Writes  `teacher_verbalizers.safetensors`, `student_verbalizers.safetensors`, the journal, `sayings.json`.
Runs    on workers of Ray Train; resumes at a step, bit for bit on the same number of workers.

Only verb-FFNs are trained. The backbones are frozen, so every layer is a regression of its own and no
backward pass enters a backbone; teacher and student share the loop only because they share the data.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.cache.reader import CacheReader
from stages.contract import Job
from stages.contract.files import (
    LAST_LAYER,
    READOUT_FOLDER,
    STATES_FOLDER,
    STUDENT_VERBALIZERS_FILE,
    TEACHER_VERBALIZERS_FILE,
    column_block,
)
from stages.contract.job import main
from stages.contract.place import Place, local_copy
from stages.contract.sayings import Speaker, write_sayings
from stages.contract.settings import VerbalizationSettings, resolve_target_layers
from stages.data.encoding import Batch
from stages.data.sample import read_samples
from stages.losses.divergence import Head, divergence, label_target, partition
from stages.models.backbone import default_device
from stages.models.readout import Readout
from stages.models.saying import what_layers_say
from stages.models.verbalizer import Verbalizers, VerbFFN
from stages.sayings import show_first
from stages.training.launch import train
from stages.training.objective import Loss, StudentObjective, check_finite


class VerbalizationObjective(StudentObjective):
    """Cross-entropy of every verbalizer of both models against the response."""

    student_is_sharded = False

    def __init__(self, job: Job) -> None:
        settings = job.typed(VerbalizationSettings)
        super().__init__(job, settings)
        captured = job.folder("capture")
        self._num_sayings = settings.sayings
        self.cache = self._captured = CacheReader(captured / STATES_FOLDER)
        samples, _ = read_samples(Path(job.inputs["samples"]))
        self.samples = [sample for sample in samples if sample.id in self.cache]
        self._student.model.requires_grad_(False)
        self._readout = Readout.load(local_copy(captured / READOUT_FOLDER), settings.model).to(default_device())
        layout = self.cache.layout
        teacher_layers = [column_block(column) for column in layout.layers if column != LAST_LAYER]
        student_layers = resolve_target_layers(settings.target_layers, len(self._student.blocks))
        self.teacher_verbalizers = Verbalizers(teacher_layers, layout.fields[0].width, settings.verbalizer)
        self.student_verbalizers = Verbalizers(student_layers, self._student.width, settings.verbalizer)
        vocabulary = self.encoder.real_vocabulary
        self._teacher_head = self._readout.head_rows(vocabulary)
        self._student_head = self._student.readout.head_rows(vocabulary)

    def forward(self, batch: Batch) -> Loss:
        """Sum of all layers' cross-entropies."""
        teacher_states, student_states = self._states(batch)
        teacher = self._cross_entropy(
            "teacher", self.teacher_verbalizers, teacher_states, self._readout, self._teacher_head, batch
        )
        student = self._cross_entropy(
            "student", self.student_verbalizers, student_states, self._student.readout, self._student_head, batch
        )
        return Loss(teacher.sum() + student.sum(), {"ce_teacher": teacher, "ce_student": student})

    def sharded_classes(self) -> list[str]:
        """The verb-FFNs; the frozen student is whole on every worker."""
        return [VerbFFN.__name__]

    def _states(self, batch: Batch) -> tuple[list[Tensor], Sequence[Tensor]]:
        """Of the target layers of teacher and student, [N, d] each."""
        with torch.no_grad():
            student = self._student.states(batch, self.student_verbalizers.target_layers).targets
        return [fields[0] for fields in batch.cached[:-1]], student

    def _cross_entropy(
        self, side: str, verbalizers: Verbalizers, states: Sequence[Tensor], readout: Readout, head: Head, batch: Batch
    ) -> Tensor:
        """[layers], summed over tokens."""
        said = torch.stack(verbalizers(states, readout.norm))
        passed = partition(said, head, chunk_bytes=self.schedule.logits_chunk_bytes)
        losses = divergence(said, passed, label_target(batch.labels, head))
        check_finite(losses, [f"{side} block {block}" for block in verbalizers.target_layers], batch)
        return losses.sum(dim=1)

    def save(self, folder: Path, journal: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Write both models' verbalizers, and what the layers say through them."""
        write_sayings(folder, show_first(self, self._num_sayings, self._speak))
        self.teacher_verbalizers.save(folder / TEACHER_VERBALIZERS_FILE)
        self.student_verbalizers.save(folder / STUDENT_VERBALIZERS_FILE)
        last = journal[-1]
        return {
            "teacher_target_layers": list(self.teacher_verbalizers.target_layers),
            "student_target_layers": list(self.student_verbalizers.target_layers),
            **{name: last[name] for name in ("loss", "ce_teacher", "ce_student")},
            "steps": last["step"],
        }

    def _speak(self, batch: Batch) -> list[Speaker]:
        """What both models' layers say of a batch."""
        cached = self._captured.fields(batch.sample_ids, batch.labels)
        teacher, student = self._states(replace(batch, cached=cached).to(default_device()))
        return [
            self._speaker("teacher", self.teacher_verbalizers, teacher, self._readout, self._teacher_head),
            self._speaker("backbone", self.student_verbalizers, student, self._student.readout, self._student_head),
        ]

    def _speaker(
        self, name: str, verbalizers: Verbalizers, states: Sequence[Tensor], readout: Readout, head: Head
    ) -> Speaker:
        said = verbalizers.to(default_device())(states, readout.norm)
        tokenizer, chunk = self.encoder.processor.tokenizer, self.schedule.logits_chunk_bytes
        return Speaker(name, what_layers_say(verbalizers.target_layers, said, head, tokenizer, chunk_bytes=chunk))


def run(job: Job, work: Place) -> dict[str, Any]:
    """Train both models' verbalizers."""
    return train(job, work, "stages.verbalization:VerbalizationObjective")


if __name__ == "__main__":
    sys.exit(main("verbalization"))
