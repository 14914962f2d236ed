"""AI2D: questions about diagrams of school books."""

from __future__ import annotations

from collections.abc import Iterator

from stages.benchmarks.benchmark import MultipleChoice, choose, lettered_columns
from stages.benchmarks.question import LETTERS, Question
from stages.benchmarks.rows import Row


class AI2D(MultipleChoice):
    """Four options; letters in the diagram stand where labels were."""

    name = "ai2d"
    title = "AI2D"
    source = "Kembhavi et al., A Diagram Is Worth a Dozen Images (ECCV 2016); lmms-eval's Parquet, VLMEvalKit's table"
    files = ("*AI2D_TEST*.tsv", "test-*.parquet")
    fields = (frozenset({"question", "options", "answer"}),)

    def questions(self, row: Row) -> Iterator[Question]:
        """One; the answer is a letter, or the place of the option, from 0."""
        answer = row.text("answer")
        label = LETTERS[int(answer) % len(LETTERS)] if answer.isdecimal() else answer
        options = row.texts("options") or lettered_columns(row)
        yield choose(
            row.maybe("index") or row.name, row.text("question"), row.pictures("image"), options, label, line=row.line
        )
