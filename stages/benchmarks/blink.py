"""BLINK: what people see at a glance, often over several pictures."""

from __future__ import annotations

from collections.abc import Iterator

from stages.benchmarks.benchmark import ASK_FOR_LETTER, MultipleChoice
from stages.benchmarks.question import LETTERS, Question, pose
from stages.benchmarks.rows import Row
from stages.data import BadSample


class Blink(MultipleChoice):
    """The published prompt, which lists the options as (A), (B), …"""

    name = "blink"
    title = "BLINK"
    source = "Fu et al., BLINK (ECCV 2024); the data set's own prompt with lmms-eval's last sentence"
    files = ("val-*.parquet",)
    fields = (frozenset({"sub_task", "prompt", "choices", "answer"}),)
    pictures = ("image_1", "image_2", "image_3", "image_4")

    def questions(self, row: Row) -> Iterator[Question]:
        """One, with as many pictures as there are."""
        options, label = row.texts("choices"), row.text("answer").strip("()").upper()
        if label == "HIDDEN":
            label = ""
        if label and label not in LETTERS[: len(options)]:
            raise BadSample(f"the answer {label!r} is none of the options' letters")
        shown = [picture for column in self.pictures for picture in row.pictures(column)]
        yield pose(
            row.maybe("idx") or row.name,
            f"{row.text('prompt')}\n{ASK_FOR_LETTER}",
            shown,
            [label] if label else [],
            options=options,
            task=row.text("sub_task"),
            line=row.line,
        )
