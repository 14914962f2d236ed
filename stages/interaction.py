"""Interaction (step 2 of the paper): train the student's decoder against the teacher's verbalized layers.

Reads   the samples, the student, its verbalizers, what the teacher's layers say (the precomputed cache).
Writes  the student as a Hugging Face checkpoint, `student_verbalizers.safetensors`, the journal.
Runs    on workers of Ray Train; resumes at a step, bit for bit on the same number of workers.

With the `moment` codec neither the teacher nor its head is in memory. Losses the settings leave out
leave out what they need: `none`/`kl` is last-layer distillation, `ce` needs no teacher at all.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.cache.codecs import Codec, Hidden, Moment
from stages.cache.reader import CacheReader
from stages.contract import Job, StageError, read_journal
from stages.contract.files import (
    LAST_LAYER,
    STUDENT_VERBALIZERS_FILE,
    TARGETS_FOLDER,
    TEACHER_HEAD_FILE,
    column_block,
)
from stages.contract.job import main
from stages.contract.settings import InteractionSettings
from stages.data.encoding import Batch
from stages.data.sample import read_samples
from stages.losses.divergence import Target, divergence, label_target, log_partition
from stages.losses.layerwise import FeatureCosts, KLCosts, LayerCosts, matched_loss
from stages.losses.matching import check_layer_counts
from stages.models.backbone import Backbone
from stages.models.readout import load_head
from stages.models.student import prepare_for_training, save_student, train_decoder
from stages.models.verbalizer import Verbalizers
from stages.training.launch import train
from stages.training.objective import Loss, StudentObjective

MATCHING_SHARE = 0.1
"""Share of the steps that the matching matrices at the start and at the end are counted over."""


class TeacherTargets:
    """What the teacher's layers say about a batch, from the cache."""

    def __init__(self, folder: Path, student: Backbone, vocabulary: int) -> None:
        """Read `targets/` of a precompute artifact; `vocabulary` is the number of real token ids."""
        self.reader = CacheReader(folder / TARGETS_FOLDER)
        layout = self.reader.layout
        self.blocks = [column_block(column) for column in layout.layers if column != LAST_LAYER]
        head, dtype = student.readout.head_rows(vocabulary), layout.fields[0].dtype
        self._codec: Codec = Moment(dtype, None, head)
        if layout.codec == Hidden.name:
            self._codec = Hidden(dtype, load_head(folder / TEACHER_HEAD_FILE, student.device), head)
        if self._codec.fields != layout.fields:
            raise StageError(
                f"interaction: the cache holds {layout.fields} a token, this student needs {self._codec.fields}; "
                "it was precomputed for another student"
            )

    def fields(self, batch: Batch) -> list[list[Tensor]]:
        """For each layer, the last one the head's input, one [N, width] tensor per field."""
        device = batch.labels.device
        layers = self.reader.fields(batch.sample_ids, batch.labels.cpu())
        return [[tensor.to(device) for tensor in fields] for fields in layers]

    def last(self, cached: list[list[Tensor]]) -> Target:
        """The ordinary final output: moments [N, d]."""
        return self._codec.decode(cached[-1])

    def intermediate(self, cached: list[list[Tensor]]) -> Target:
        """The target layers, stacked: moments [t_l, N, d]."""
        decoded = [self._codec.decode(fields) for fields in cached[:-1]]
        moments, entropies, biases = zip(*decoded, strict=True)
        return Target(torch.stack(moments), torch.stack(entropies), None if biases[0] is None else torch.stack(biases))

    def features(self, cached: list[list[Tensor]]) -> Tensor:
        """The verbalized states themselves, [t_l, N, d_t]; only the `hidden` codec keeps them."""
        return torch.stack([fields[0].float() for fields in cached[:-1]])


class InteractionObjective(StudentObjective):
    """The paper's interaction loss and the rows of its ablations."""

    def __init__(self, job: Job) -> None:
        settings = job.typed(InteractionSettings)
        super().__init__(settings, job.inputs["student"])
        self._losses, self._matching = settings.losses, settings.matching
        train_decoder(self._student, settings.lora)
        prepare_for_training(self._student, self.schedule)
        self.model = self._student.model
        self._head = self._student.readout.head_rows(self.encoder.real_vocabulary)
        self._teacher = self._open_targets(job)
        self.verbalizers = self._load_verbalizers(job)
        self.projections = self._make_projections()
        samples, _ = read_samples(Path(job.inputs["samples"]))
        self.samples = [s for s in samples if self._teacher is None or s.id in self._teacher.reader]

    def forward(self, batch: Batch) -> Loss:
        """Loss of the intermediate layers and of the last one."""
        blocks = self.verbalizers.target_layers if self.verbalizers else ()
        states = self._student.states(batch, blocks)
        cached = self._teacher.fields(batch) if self._teacher else []
        parts: dict[str, Tensor] = {}
        notes: dict[str, Any] = {}
        if self.verbalizers:
            said = self.verbalizers(states.targets, self._student.norm)
            parts["loss_intermediate"], notes = self._intermediate(said, cached, batch)
        if self._losses.last != "none":
            target = self._teacher.last(cached) if self._teacher and self._losses.last == "kl" else self._labels(batch)
            parts["loss_last"] = self._losses.last_weight * self._divergence(states.last, target)
        return Loss(torch.stack(list(parts.values())).sum(), parts, notes)

    def save(self, work: Path) -> dict[str, Any]:
        """Write the student, its verbalizers and how the layers were matched."""
        save_student(self._student, self.encoder.processor, work)
        lines = read_journal(work)
        summary: dict[str, Any] = {"steps": lines[-1]["step"], "loss": lines[-1]["loss"]}
        if self.verbalizers is None:
            return summary
        self.verbalizers.save(work / STUDENT_VERBALIZERS_FILE)
        summary["student_target_layers"] = list(self.verbalizers.target_layers)
        if self._teacher and "matches" in lines[-1]:
            shape = (len(self.verbalizers.target_layers), len(self._teacher.blocks))
            share = max(1, round(MATCHING_SHARE * len(lines)))
            summary["teacher_target_layers"] = self._teacher.blocks
            summary["matching_start"] = matching_matrix(lines[:share], *shape)
            summary["matching_end"] = matching_matrix(lines[-share:], *shape)
        return summary

    def _intermediate(
        self, said: list[Tensor], cached: list[list[Tensor]], batch: Batch
    ) -> tuple[Tensor, dict[str, Any]]:
        if self._losses.intermediate == "ce":
            target = self._labels(batch)
            return torch.stack([self._divergence(x, target) for x in said]).sum(), {}
        costs = self._costs(said, cached)
        try:
            loss, matches = matched_loss(costs, batch.rows, batch.sample_ids, self._matching, self.generator)
        except ValueError as error:
            raise StageError(str(error)) from error
        return loss, {"matches": matches.tolist()}

    def _costs(self, said: list[Tensor], cached: list[list[Tensor]]) -> LayerCosts:
        if self._teacher is None:
            raise StageError(f"interaction: losses.intermediate `{self._losses.intermediate}` needs a teacher")
        if self.projections is None:
            return KLCosts(said, self._head, self._teacher.intermediate(cached))
        projected = [project(x.float()) for project, x in zip(self.projections, said, strict=True)]
        return FeatureCosts(projected, self._teacher.features(cached))

    def _divergence(self, x: Tensor, target: Target) -> Tensor:
        x = x.float()
        return divergence(x, log_partition(x, self._head), target).sum()

    def _labels(self, batch: Batch) -> Target:
        return label_target(batch.labels, self._head)

    def _open_targets(self, job: Job) -> TeacherTargets | None:
        if not self._losses.need_teacher:
            return None
        if "precompute" not in job.inputs:
            raise StageError("interaction: losses against the teacher need the input `precompute`")
        return TeacherTargets(Path(job.inputs["precompute"]), self._student, self.encoder.real_vocabulary)

    def _load_verbalizers(self, job: Job) -> Verbalizers | None:
        if self._losses.intermediate == "none":
            return None
        if "verbalization" not in job.inputs:
            raise StageError("interaction: intermediate losses need the input `verbalization`")
        file = Path(job.inputs["verbalization"]) / STUDENT_VERBALIZERS_FILE
        verbalizers = Verbalizers.load(file, self._student.device)
        if self._teacher and self._losses.intermediate in ("kl", "feature-l2"):
            check_layer_counts(len(verbalizers.target_layers), len(self._teacher.blocks))
        return verbalizers

    def _make_projections(self) -> nn.ModuleList | None:
        """[D] Features of different widths are compared after a learned linear map of the student's."""
        if self._losses.intermediate != "feature-l2" or self._teacher is None or self.verbalizers is None:
            return None
        if self._teacher.reader.layout.codec != Hidden.name:
            raise StageError("interaction: losses.intermediate `feature-l2` needs precompute.codec `hidden`")
        width = self._teacher.reader.layout.fields[0].width
        maps = [nn.Linear(self._student.width, width, bias=False) for _ in self.verbalizers.target_layers]
        return nn.ModuleList(maps).to(self._student.device)


def matching_matrix(lines: list[dict[str, Any]], student_layers: int, teacher_layers: int) -> list[list[float]]:
    """How often each student layer chose each teacher layer in some journal lines: rows sum to 1."""
    counts = torch.zeros(student_layers, teacher_layers)
    for line in lines:
        for matches in line["matches"]:
            chosen = torch.tensor(matches)
            for layer in range(student_layers):
                counts[layer] += torch.bincount(chosen[:, layer].flatten(), minlength=teacher_layers)
    return (counts / counts.sum(dim=1, keepdim=True)).tolist()


def run(job: Job, work: Path) -> dict[str, Any]:
    """Train the student against its teacher's layers."""
    return train(job, work, "stages.interaction:InteractionObjective")


if __name__ == "__main__":
    sys.exit(main("interaction"))
