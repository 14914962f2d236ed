"""MMBench: four options at most, asked once for every rotation of them."""

from __future__ import annotations

from collections.abc import Iterator

from stages.benchmarks.benchmark import MultipleChoice, choose, lettered_columns
from stages.benchmarks.question import LETTERS, Question
from stages.benchmarks.rows import Row
from stages.data import BadSample

_ROTATION = 1_000_000
"""Files with rotations of their own number them from here on; the rotations asked here are the same ones."""


class MMBench(MultipleChoice):
    """A question counts only if it is answered right in all rotations of its options."""

    name = "mmbench"
    title = "MMBench"
    metric = "accuracy, circular"
    source = "Liu et al., MMBench (ECCV 2024), CircularEval; table of VLMEvalKit, prompt of lmms-eval"
    files = ("*MMBench*.tsv", "dev-*.parquet")
    fields = (frozenset({"index", "question", "A", "B", "category"}),)

    def questions(self, row: Row) -> Iterator[Question]:
        """As many as there are options."""
        index = row.text("index")
        if not index.isdecimal():
            raise BadSample("`index` is no number")
        if int(index) >= _ROTATION:
            return
        text = "\n".join(part for part in (row.maybe("hint"), row.text("question")) if part)
        options, label = lettered_columns(row), row.maybe("answer").upper()
        task, pictures = row.maybe("category"), row.pictures("image")
        for turn in range(max(1, len(options))):
            turned = [*options[turn:], *options[:turn]]
            moved = _moved(label, turn, len(options))
            yield choose(f"{index}.{turn}", text, pictures, turned, moved, task=task, item=index, line=row.line)


def _moved(label: str, turn: int, count: int) -> str:
    """The letter under which an option stands after a turn; what is no option's letter stays as it is."""
    place = LETTERS[:count].find(label) if label else -1
    return LETTERS[(place - turn) % count] if place >= 0 else label
