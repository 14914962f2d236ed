"""POPE: is there such a thing in the picture, yes or no."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stages.benchmarks.benchmark import ASK_FOR_WORD, Benchmark
from stages.benchmarks.extraction import yes_or_no
from stages.benchmarks.question import Question, Verdict, pose
from stages.benchmarks.rows import Row
from stages.data import BadSample


class Pope(Benchmark):
    """Accuracy; precision, recall and F1 of `yes`, and how often it is said."""

    name = "pope"
    title = "POPE"
    metric = "accuracy, F1, yes-ratio"
    source = "Li et al., Evaluating Object Hallucination in LVLMs (EMNLP 2023), evaluate.py; prompt of lmms-eval"
    files = ("coco_pope_*.json", "test-*.parquet")
    fields = (
        frozenset({"question_id", "image", "text", "label"}),
        frozenset({"question_id", "question", "answer", "image_source"}),
    )

    def questions(self, row: Row) -> Iterator[Question]:
        """One; random, popular or adversarial, as the file's name or a field says."""
        label = row.text("label", "answer").lower()
        if label not in ("yes", "no"):
            raise BadSample(f"the answer is {label!r}, neither yes nor no")
        yield pose(
            row.name,
            f"{row.text('text', 'question')}\n{ASK_FOR_WORD}",
            row.pictures("image", folders=("", "val2014", "images")),
            [label],
            task=row.maybe("category") or row.file.stem.rpartition("_")[2],
            line=row.line,
        )

    def judge(self, question: Question, said: str) -> Verdict:
        """Right if it is the label."""
        found = yes_or_no(said)
        return Verdict(found, float(found in question.labels))

    def metrics(self, pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
        """Of `yes`."""
        said = sum(found == "yes" for _, found in pairs)
        there = sum(label == "yes" for label, _ in pairs)
        hits = sum(label == found == "yes" for label, found in pairs)
        return {
            "precision": hits / max(1, said),
            "recall": hits / max(1, there),
            "f1": 2 * hits / max(1, said + there),
            "yes_ratio": said / max(1, len(pairs)),
        }
