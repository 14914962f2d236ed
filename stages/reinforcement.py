"""Reinforcement (step 3 of the paper): plain supervised finetuning of the whole distilled student.

Reads   the samples, the student.
Writes  the exported student: a plain Hugging Face checkpoint with exactly the base model's parameter
        names, shapes and configuration, and its model card; the journal.
Runs    on workers of Ray Train; resumes at a step, bit for bit on the same number of workers.

It is not reinforcement learning. Interaction trains against distributions, and its greedy decoding
falls behind; this step makes the answers follow the instruction again (METHOD §4).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.contract import Job
from stages.contract.job import main
from stages.contract.lineage import trace
from stages.contract.place import Place, place_of
from stages.contract.settings import ReinforcementSettings
from stages.data.encoding import Batch
from stages.data.sample import read_samples
from stages.losses.divergence import trained_cross_entropy
from stages.models.card import CARD_FILE, model_card
from stages.models.student import prepare_for_training, save_student, train_language_model
from stages.training.launch import train
from stages.training.objective import Loss, StudentObjective, check_finite


class ReinforcementObjective(StudentObjective):
    """Cross-entropy of the response tokens; the head is trained too."""

    def __init__(self, job: Job) -> None:
        settings = job.typed(ReinforcementSettings)
        super().__init__(job, settings)
        self._job = job
        train_language_model(self._student, settings.lora)
        prepare_for_training(self._student, self.schedule)
        self.model = self._student.model
        self.samples, _ = read_samples(Path(job.inputs["samples"]))

    def forward(self, batch: Batch) -> Loss:
        """Next-token cross-entropy over the real token ids."""
        last = self._student.states(batch, ()).last
        total, losses = trained_cross_entropy(
            last.bfloat16() if self.autocast else last,
            self._student.readout.trained_head(),
            batch.labels,
            vocabulary=self.encoder.real_vocabulary,
            chunk_bytes=self.schedule.logits_chunk_bytes,
        )
        check_finite(losses[None], ["last"], batch)
        return Loss(total, {})

    def save(self, folder: Path, journal: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Export the student, with its model card."""
        save_student(self._student, self.encoder.processor, folder)
        lineage = trace(self._job, place_of(self._job.output).parent.parent)
        (folder / CARD_FILE).write_text(model_card(lineage), encoding="utf-8")
        return {"steps": journal[-1]["step"], "loss": journal[-1]["loss"]}


def run(job: Job, work: Place) -> dict[str, Any]:
    """Finetune and export the student."""
    return train(job, work, "stages.reinforcement:ReinforcementObjective")


if __name__ == "__main__":
    sys.exit(main("reinforcement"))
