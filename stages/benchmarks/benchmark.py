"""A benchmark: how its published files are read, how an answer is judged, what is counted besides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from stages.benchmarks.extraction import option_letter
from stages.benchmarks.question import LETTERS, Question, Verdict, pose
from stages.benchmarks.rows import Row, files_of, read_rows
from stages.contract.quarantine import BadLine
from stages.data import BadSample
from stages.data.pictures import Picture

ASK_FOR_LETTER = "Answer with the option's letter from the given choices directly."
ASK_FOR_WORD = "Answer the question using a single word or phrase."
"""Both as LLaVA-1.5 and lmms-eval write them."""


class Benchmark(ABC):
    """One public benchmark, read from local copies of its files.

    Attributes:
        name: how it is asked for.
        title: how tables call it.
        metric: what its score is.
        source: who published it, and what prompt and metric follow.
        files: patterns of the files that are taken of a folder, the first that finds any; all tables if none does.
        fields: what rows have, in each form it is published in; it is recognised by them.
        pictures: columns of Parquet files that hold pictures besides `image`.
        max_new_tokens: that an answer may need.
        needs_judge: whether answers are free text that only a model can score.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    metric: ClassVar[str] = "accuracy"
    source: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = ()
    fields: ClassVar[tuple[frozenset[str], ...]] = ()
    pictures: ClassVar[tuple[str, ...]] = ()
    max_new_tokens: ClassVar[int] = 64
    needs_judge: ClassVar[bool] = False

    @abstractmethod
    def questions(self, row: Row) -> Iterable[Question]:
        """What a row asks: once, in several forms, or not at all.

        Raises:
            BadSample: the row cannot be used.
        """

    @abstractmethod
    def judge(self, question: Question, said: str) -> Verdict:
        """What of an answer counts, and whether it is right."""

    def judge_prompt(self, question: Question, said: str) -> str:
        """What a model is asked that scores the answer from 0 to 1; nothing where rules are enough."""
        return ""

    def metrics(self, pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
        """What is counted besides the score, given each judged answer's label and what was extracted of it."""
        return {}

    def read(self, place: Path) -> Iterator[Question | BadLine]:
        """All questions, in order, each with an id of its own, and the rows that cannot be used.

        Args:
            place: a file, or a folder that holds it.

        Raises:
            StageError: there is no such file, or one is damaged as a whole.
        """
        seen: set[str] = set()
        for file in files_of(place, self.files):
            for record in read_rows(file, self.pictures):
                name = f"{file.stem} {record.name}"
                try:
                    if record.reason or not isinstance(record.value, dict):
                        raise BadSample(record.reason or "a row has to be a record of fields")
                    asked = list(self.questions(Row(file, record.line, name, record.value)))
                    if twice := next((question.id for question in asked if question.id in seen), ""):
                        raise BadSample(f"the id {twice} stands there twice")
                except BadSample as error:
                    yield BadLine(name, record.line, str(error))
                    continue
                seen |= {question.id for question in asked}
                yield from asked


class MultipleChoice(Benchmark):
    """Questions with options, answered with a letter."""

    def judge(self, question: Question, said: str) -> Verdict:
        """Right if the letter is."""
        letter = option_letter(said, question.options)
        return Verdict(letter, float(letter in question.labels) if question.labels else None)


def choose(
    name: str,
    text: str,
    pictures: Sequence[Picture | None],
    options: Sequence[str],
    label: str,
    *,
    task: str = "",
    item: str = "",
    line: int = 0,
) -> Question:
    """A question with options below it; `label` is the right one's letter, or empty where it is not published.

    Raises:
        BadSample: the label is no option's, or there is nothing to choose from.
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise BadSample(f"{len(options)} options are no choice")
    if label and (len(label) > 1 or label not in LETTERS[: len(options)]):
        raise BadSample(f"the answer {label!r} is none of the options' letters")
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    prompt = f"{text}\n{listed}\n{ASK_FOR_LETTER}" if any(options) else f"{text}\n{ASK_FOR_LETTER}"
    labels = (label,) if label else ()
    return pose(name, prompt, pictures, labels, options=options, task=task, item=item, line=line)


def lettered_columns(row: Row) -> list[str]:
    """The options of a table that has a column for each, from A on."""
    texts = [row.maybe(letter) for letter in LETTERS]
    return texts[: next((place for place, text in enumerate(texts) if not text), len(texts))]
