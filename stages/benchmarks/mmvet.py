"""MM-Vet: open questions that need several capabilities, scored by a model."""

from __future__ import annotations

from collections.abc import Iterator

from stages.benchmarks.benchmark import Benchmark
from stages.benchmarks.question import Question, Verdict, pose
from stages.benchmarks.rows import KEY, Row

_INSTRUCTION = """\
Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. <AND> in the \
ground truth means it is totally right only when all elements in the ground truth are present in the prediction, and \
<OR> means it is totally right when any one element in the ground truth is present in the prediction. The correctness \
score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 (totally right). Just complete the \
last space of the correctness score.

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
What is x in the equation? | -1 <AND> -5 | x = 3 | 0.0
What is x in the equation? | -1 <AND> -5 | x = -1 | 0.5
What is x in the equation? | -1 <AND> -5 | x = -5 or 5 | 0.5
What is x in the equation? | -1 <AND> -5 | x = -1 or x = -5 | 1.0
"""


class MMVet(Benchmark):
    """Without a judge the answers are kept and nothing is scored."""

    name = "mm-vet"
    title = "MM-Vet"
    metric = "judge's score from 0 to 1"
    source = "Yu et al., MM-Vet (ICML 2024), mm-vet_evaluator of yuweihao/MM-Vet: its instruction, the short examples"
    files = ("mm-vet.json", "test-*.parquet")
    fields = (frozenset({"imagename", "question", "answer", "capability"}), frozenset({"answer", "capability"}))
    max_new_tokens = 512
    needs_judge = True

    def questions(self, row: Row) -> Iterator[Question]:
        """One; its task is the capabilities that it needs together."""
        listed = row.values.get("capability")
        capabilities = listed if isinstance(listed, list) else row.text("capability").split(",")
        yield pose(
            row.maybe(KEY, "question_id") or row.name,
            row.text("question"),
            row.pictures("imagename", "image", folders=("images", "")),
            [row.text("answer")],
            task=" + ".join(sorted(str(capability).strip() for capability in capabilities)),
            line=row.line,
        )

    def judge(self, question: Question, said: str) -> Verdict:
        """Nobody has, yet."""
        return Verdict(said, None)

    def judge_prompt(self, question: Question, said: str) -> str:
        """A row of the table that lacks its last cell."""
        truth = question.labels[0].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        asked = question.question
        return f"{_INSTRUCTION}{_cell(asked)} | {_cell(truth)} | {_cell(said)} |"


def _cell(text: str) -> str:
    """A text that does not end its cell or row."""
    return " ".join(text.replace("|", "/").split())
