"""ScienceQA: school questions; those with a picture are asked."""

from __future__ import annotations

from collections.abc import Iterator

from stages.benchmarks.benchmark import MultipleChoice, choose
from stages.benchmarks.question import LETTERS, Question
from stages.benchmarks.rows import KEY, Row
from stages.data import BadSample


class ScienceQA(MultipleChoice):
    """The test questions that have a picture, which is what `ScienceQA-IMG` is."""

    name = "scienceqa"
    title = "ScienceQA-IMG"
    source = "Lu et al., Learn to Explain (NeurIPS 2022); problems.json or Parquet, prompt of lmms-eval"
    files = ("problems.json", "test-*.parquet")
    fields = (frozenset({"question", "choices", "answer", "hint", "subject", "lecture"}),)

    def questions(self, row: Row) -> Iterator[Question]:
        """One or, of another split or without a picture, none."""
        key, split = row.maybe(KEY), row.maybe("split") or "test"
        pictures = row.pictures("image", folders=(f"images/test/{key}", f"test/{key}", "", "images"))
        if not pictures or split != "test":
            return
        answer = row.text("answer")
        if not answer.isdecimal() or int(answer) >= len(LETTERS):
            raise BadSample("`answer` is not the place of an option")
        context = f"Context: {row.maybe('hint')}\n" if row.maybe("hint") else ""
        yield choose(
            key or row.name,
            context + row.text("question"),
            pictures,
            row.texts("choices"),
            LETTERS[int(answer)],
            task=row.maybe("subject"),
            line=row.line,
        )
