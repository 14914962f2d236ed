"""Interaction (step 2 of the paper): train the student's decoder against the teacher's verbalized layers.

Reads   the samples, the student, its verbalizers, what the teacher's layers say (the precomputed cache).
Writes  the student as a Hugging Face checkpoint, `student_verbalizers.safetensors`, the journal, `sayings.json`.
Runs    on workers of Ray Train; resumes at a step, bit for bit on the same number of workers.

With the `moment` codec neither the teacher nor its head is in memory. Losses the settings leave out
leave out what they need: `none`/`kl` is last-layer distillation, `ce` needs no teacher at all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.cache.codecs import Hidden, make_codec
from stages.cache.reader import CacheReader
from stages.contract import Job, StageError
from stages.contract.files import (
    LAST_LAYER,
    STUDENT_VERBALIZERS_FILE,
    TARGETS_FOLDER,
    TEACHER_HEAD_FILE,
    column_block,
)
from stages.contract.job import main
from stages.contract.place import Place, local_copy
from stages.contract.sayings import Speaker, read_sayings, write_sayings
from stages.contract.settings import InteractionSettings
from stages.data.encoding import Batch
from stages.data.sample import read_samples
from stages.losses.divergence import Head, Target, divergence, label_target, partition
from stages.losses.layerwise import FeatureCosts, KLCosts, LayerCosts, match_and_learn
from stages.losses.matching import check_layer_counts
from stages.models.backbone import Backbone
from stages.models.readout import load_head
from stages.models.saying import what_layers_say
from stages.models.student import prepare_for_training, save_student, train_decoder
from stages.models.verbalizer import Verbalizers, VerbFFN
from stages.sayings import show_again
from stages.training.launch import train
from stages.training.objective import Loss, StudentObjective, check_finite

MATCHING_SHARE = 0.1
"""Share of the steps that the matching matrices at the start and at the end are counted over."""


class TeacherTargets:
    """What the teacher's layers say about a batch, from the cache."""

    def __init__(self, folder: Place, student: Backbone, vocabulary: int) -> None:
        """Read `targets/` of a precompute artifact; `vocabulary` is the number of real token ids."""
        self.reader = CacheReader(folder / TARGETS_FOLDER)
        layout = self.reader.layout
        self.blocks = [column_block(column) for column in layout.layers if column != LAST_LAYER]
        head = folder / TEACHER_HEAD_FILE
        teacher = load_head(local_copy(head), student.device) if head.exists() else None
        self.codec = make_codec(layout.codec, layout.fields[-1].dtype, teacher, student.readout.head_rows(vocabulary))
        if self.codec.fields != layout.fields:
            raise StageError(
                f"interaction: the cache holds {layout.fields} a token, this student needs {self.codec.fields}; "
                "it was precomputed for another student"
            )

    def last(self, batch: Batch, student: Head) -> Target:
        """The ordinary final output: moments [N, d]."""
        return self.codec.decode(batch.cached[-1], student)

    def intermediate(self, batch: Batch, student: Head) -> Target:
        """The target layers, stacked: moments [t_l, N, d]."""
        decoded = [self.codec.decode(fields, student) for fields in batch.cached[:-1]]
        moments, entropies, biases = zip(*decoded, strict=True)
        return Target(torch.stack(moments), torch.stack(entropies), None if biases[0] is None else torch.stack(biases))

    def features(self, batch: Batch) -> Tensor:
        """The verbalized states themselves, [t_l, N, d_t]; only the `hidden` codec keeps them."""
        if not isinstance(self.codec, Hidden):
            raise TypeError(f"the {self.codec.name} codec keeps no states")
        return torch.stack([self.codec.states(fields) for fields in batch.cached[:-1]])


class InteractionObjective(StudentObjective):
    """The paper's interaction loss and the rows of its ablations."""

    def __init__(self, job: Job) -> None:
        settings = job.typed(InteractionSettings)
        super().__init__(job, settings)
        self._losses, self._matching = settings.losses, settings.matching
        self.common_draws = settings.matching.sync
        train_decoder(self._student, settings.lora)
        prepare_for_training(self._student, self.schedule)
        self.model = self._student.model
        self._vocabulary = self.encoder.real_vocabulary
        self._teacher = self._open_targets(job)
        self.cache = self._teacher.reader if self._teacher else None
        self.verbalizers = self._load_verbalizers(job)
        self.projections = self._make_projections()
        if self._losses.last == "none" and self.verbalizers:
            self._student.blocks[self.verbalizers.target_layers[-1] + 1 :].requires_grad_(False)
        self._shown = [shown.id for shown in read_sayings(job.folder("verbalization"))] if self.verbalizers else []
        samples, _ = read_samples(Path(job.inputs["samples"]))
        self.samples = [s for s in samples if self.cache is None or s.id in self.cache]

    def forward(self, batch: Batch) -> Loss:
        """Loss of the intermediate layers and of the last one."""
        blocks = self.verbalizers.target_layers if self.verbalizers else ()
        states = self._student.states(batch, blocks)
        head = self._student.readout.head_rows(self._vocabulary)
        sums: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        if self.verbalizers:
            said = self.verbalizers(states.targets, self._student.norm)
            names = [f"block {block}" for block in blocks]
            of_layers, sums = self._intermediate(said, head, batch, names)
            check_finite(of_layers, names, batch)
            losses += of_layers.sum(dim=1)
        if self._losses.last != "none":
            by_kl = self._teacher is not None and self._losses.last == "kl"
            target = self._teacher.last(batch, head) if self._teacher and by_kl else label_target(batch.labels, head)
            of_last = self._losses.last_weight * self._divergence(states.last[None], head, target)
            check_finite(of_last, ["last"], batch)
            losses += of_last.sum(dim=1)
        layers = torch.stack(losses)
        return Loss(layers.sum(), {"loss_by_layer": layers, **sums})

    def derive(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each student layer's cheapest, mean and dearest teacher layer, and the mean place of its matches."""
        if "kl" not in means:
            return {}
        kl, shares = means["kl"], means["matches"]
        places = torch.arange(shares.shape[1], dtype=shares.dtype, device=shares.device)
        return {
            "kl_lowest": kl.amin(dim=1),
            "kl_mean": kl.mean(dim=1),
            "kl_highest": kl.amax(dim=1),
            "match_mean": shares @ places,
        }

    def sharded_classes(self) -> list[str]:
        """The decoder's blocks and the verb-FFNs."""
        return [*super().sharded_classes(), *([VerbFFN.__name__] if self.verbalizers else [])]

    def save(self, folder: Path, journal: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Write the student, its verbalizers, what its layers now say and how they were matched."""
        save_student(self._student, self.encoder.processor, folder)
        summary: dict[str, Any] = {"steps": journal[-1]["step"], "loss": journal[-1]["loss"]}
        if self.verbalizers is None:
            return summary
        self.verbalizers.save(folder / STUDENT_VERBALIZERS_FILE)
        write_sayings(folder, show_again(self, self._shown, partial(self._speak, self.verbalizers)))
        summary["student_target_layers"] = list(self.verbalizers.target_layers)
        if self._teacher and "matches" in journal[-1]:
            share = max(1, round(MATCHING_SHARE * len(journal)))
            summary["teacher_target_layers"] = self._teacher.blocks
            summary["matching_start"] = mean_matrix([line["matches"] for line in journal[:share]])
            summary["matching_end"] = mean_matrix([line["matches"] for line in journal[-share:]])
        return summary

    def _intermediate(
        self, said: list[Tensor], head: Head, batch: Batch, names: list[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """[layers, N] losses, and what the journal gets beside them."""
        if self._losses.intermediate == "ce":
            return self._divergence(torch.stack(said), head, label_target(batch.labels, head)), {}
        costs = self._costs(said, head, batch)
        all_pairs = costs.all_pairs()
        check_finite(all_pairs.sum(dim=1), names, batch)
        learned = match_and_learn(
            costs,
            all_pairs,
            batch.rows,
            self._matching,
            self.generator,
            sharpness=self._matching.sharpness(self.progress),
            counts=batch.counts,
        )
        sums = {
            "kl": all_pairs.sum(dim=2),
            "matches": learned.shares,
            "match_expected": learned.expected,
            "match_entropy": learned.entropy,
        }
        return learned.losses, sums

    def _speak(self, verbalizers: Verbalizers, batch: Batch) -> list[Speaker]:
        """What the student's layers say of a batch."""
        states = self._student.states(batch.to(self._student.device), verbalizers.target_layers)
        said = verbalizers(states.targets, self._student.norm)
        head, tokenizer = self._student.readout.head_rows(self._vocabulary), self.encoder.processor.tokenizer
        chunk = self.schedule.logits_chunk_bytes
        layers = what_layers_say(verbalizers.target_layers, said, head, tokenizer, chunk_bytes=chunk)
        return [Speaker("student", layers)]

    def _costs(self, said: list[Tensor], head: Head, batch: Batch) -> LayerCosts:
        if self._teacher is None:
            raise StageError(f"interaction: losses.intermediate `{self._losses.intermediate}` needs a teacher")
        if self.projections is None:
            teacher = self._teacher.intermediate(batch, head)
            return KLCosts(said, head, teacher, chunk_bytes=self.schedule.logits_chunk_bytes)
        projected = [project(x.float()) for project, x in zip(self.projections, said, strict=True)]
        return FeatureCosts(projected, self._teacher.features(batch))

    def _divergence(self, x: Tensor, head: Head, target: Target) -> Tensor:
        """[layers, N] of [layers, N, d] head inputs against one target."""
        return divergence(x, partition(x, head, chunk_bytes=self.schedule.logits_chunk_bytes), target)

    def _open_targets(self, job: Job) -> TeacherTargets | None:
        if not self._losses.need_teacher:
            return None
        if "precompute" not in job.inputs:
            raise StageError("interaction: losses against the teacher need the input `precompute`")
        return TeacherTargets(job.folder("precompute"), self._student, self.encoder.real_vocabulary)

    def _load_verbalizers(self, job: Job) -> Verbalizers | None:
        if self._losses.intermediate == "none":
            return None
        if "verbalization" not in job.inputs:
            raise StageError("interaction: intermediate losses need the input `verbalization`")
        file = job.folder("verbalization") / STUDENT_VERBALIZERS_FILE
        verbalizers = Verbalizers.load(local_copy(file), self._student.device)
        if self._teacher and self._losses.intermediate in ("kl", "feature-l2"):
            check_layer_counts(len(verbalizers.target_layers), len(self._teacher.blocks))
        return verbalizers

    def _make_projections(self) -> nn.ModuleList | None:
        """[D] Features of different widths are compared after a learned linear map of the student's."""
        if self._losses.intermediate != "feature-l2" or self._teacher is None or self.verbalizers is None:
            return None
        if not isinstance(self._teacher.codec, Hidden):
            raise StageError("interaction: losses.intermediate `feature-l2` needs precompute.codec `hidden`")
        width = self._teacher.reader.layout.fields[0].width
        maps = [nn.Linear(self._student.width, width, bias=False) for _ in self.verbalizers.target_layers]
        return nn.ModuleList(maps).to(self._student.device)


def mean_matrix(matrices: list[list[list[float]]]) -> list[list[float]]:
    """The mean of the matching shares of some steps; rows sum to 1."""
    return torch.tensor(matrices, dtype=torch.float64).mean(dim=0).tolist()


def run(job: Job, work: Place) -> dict[str, Any]:
    """Train the student against its teacher's layers."""
    return train(job, work, "stages.interaction:InteractionObjective")


if __name__ == "__main__":
    sys.exit(main("interaction"))
