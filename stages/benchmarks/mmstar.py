"""MMStar: the options stand in the question."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stages.benchmarks.benchmark import MultipleChoice, choose, lettered_columns
from stages.benchmarks.question import LETTERS, Question
from stages.benchmarks.rows import Row

_MARK = re.compile(r"(?<!\w)([A-H]):\s")


class MMStar(MultipleChoice):
    """Questions that need their picture."""

    name = "mmstar"
    title = "MMStar"
    source = "Chen et al., Are We on the Right Way for Evaluating LVLMs? (NeurIPS 2024); prompt of lmms-eval"
    files = ("*mmstar*.parquet", "val-*.parquet", "*MMStar*.tsv")
    fields = (frozenset({"question", "answer", "category", "l2_category"}),)

    def questions(self, row: Row) -> Iterator[Question]:
        """One; a table of VLMEvalKit has a column for each option."""
        text, label = row.text("question"), row.text("answer").strip("().").upper()
        options = lettered_columns(row) or [""] * _count_of(text)
        yield choose(
            row.text("index"), text, row.pictures("image"), options, label, task=row.maybe("category"), line=row.line
        )


def _count_of(text: str) -> int:
    """How many options a question lists, as `A: …, B: …`; four where it cannot be seen."""
    marks = [LETTERS.index(mark) + 1 for mark in _MARK.findall(text)]
    return max([4, *marks])
