"""The scores of an experiment, as numbers: what tables, figures, MLflow and the report all show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.experiment import MAIN
from pipeline.graph import Graph
from pipeline.statistics import Difference, paired
from stages.contract import Artifact
from stages.contract.files import PREDICTIONS_FOLDER
from stages.contract.place import files_below, open_file

OVERALL = "overall"
"""Beside the kinds of question, the score over all of them."""
LABELS = {
    "backbone": "small backbone",
    "sft": "plain SFT",
    "last-layer-kd": "last-layer KD",
    MAIN: "VLsI",
}
"""What tables call a model; other variants keep their own name."""


class Answer(NamedTuple):
    """What one model's answer to one question is worth, from 0 to 1."""

    task: str
    correct: float


Answers = dict[str, Answer]
"""By id of the question."""


@dataclass(frozen=True)
class Scores:
    """Accuracy of one model on held-out questions, as fractions.

    Attributes:
        name: `teacher`, `backbone`, a variant, or `vlsi`.
        overall: over all questions.
        by_task: by kind of question.
        samples: how many questions.
    """

    name: str
    overall: float
    by_task: dict[str, float]
    samples: int

    @property
    def label(self) -> str:
        """The name in tables."""
        return LABELS.get(self.name, self.name)

    @property
    def metric(self) -> str:
        """The name in MLflow: the experiment's own is plain `accuracy`."""
        return "accuracy" if self.name == MAIN else f"accuracy.{self.name}"


def collect_scores(graph: Graph, artifacts: Mapping[str, Artifact]) -> list[Scores]:
    """The scores that exist, in the order of the table; answers that nobody has judged have none."""
    made = {name: artifacts[node.key] for name, node in graph.targets.items() if node.key in artifacts}
    return [scores_of(name, made[name]) for name in made if made[name].manifest.summary["overall"] is not None]


def scores_of(name: str, evaluation: Artifact) -> Scores:
    """The scores in an evaluation's manifest."""
    summary = evaluation.manifest.summary
    by_task = {task: float(entry["accuracy"]) for task, entry in summary["by_task"].items()}
    return Scores(name, float(summary["overall"]), by_task, int(summary["samples"]))


def answers_of(evaluation: Artifact) -> Answers:
    """Which questions were answered right, of those that were judged; nothing if they are gone or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = evaluation.path / PREDICTIONS_FOLDER
    columns = ["id", "task", "correct"]
    try:
        tables = [pq.read_table(open_file(folder / name), columns=columns) for name in files_below(folder)]
    except (OSError, pa.ArrowException):
        return {}
    judged = [row for table in tables for row in table.to_pylist() if row["correct"] is not None]
    return {row["id"]: Answer(row["task"] or "", float(row["correct"])) for row in judged}


def paired_answers(ours: Answers, theirs: Answers) -> Difference | None:
    """The difference of two models over the questions that both were asked; None if there is none."""
    common = [name for name in ours if name in theirs]
    if not common:
        return None
    return paired([ours[name].correct for name in common], [theirs[name].correct for name in common])


def tasks_of(scores: Sequence[Scores]) -> list[str]:
    """Every kind of question, in the order of first appearance."""
    return list(dict.fromkeys(task for row in scores for task in row.by_task))
