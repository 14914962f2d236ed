"""MMMU: college questions, with options or open, pictures anywhere in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stages.benchmarks.benchmark import ASK_FOR_WORD, MultipleChoice, choose
from stages.benchmarks.extraction import numbers
from stages.benchmarks.question import Question, Verdict, pose
from stages.benchmarks.rows import Row

_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_SUBJECT = re.compile(r"[a-z]+_(.+)_\d+")


class MMMU(MultipleChoice):
    """Open answers are judged as the authors do: by the words after `is`, `so`, `=`, … and the numbers there."""

    name = "mmmu"
    title = "MMMU"
    source = "Yue et al., MMMU (CVPR 2024), eval_utils.py of MMMU-Benchmark/MMMU; prompts of lmms-eval"
    files = ("validation-*.parquet",)
    fields = (frozenset({"question", "options", "answer", "question_type", "image_1"}),)
    pictures = tuple(f"image_{number}" for number in range(1, 8))

    def questions(self, row: Row) -> Iterator[Question]:
        """One; the answer of the test split is `?`."""
        name, text = row.text("id"), row.text("question")
        subject = _SUBJECT.fullmatch(name)
        task = subject[1] if subject else ""
        shown = [next(iter(row.pictures(column)), None) for column in self.pictures]
        if row.text("question_type") == "multiple-choice":
            label = row.maybe("answer").strip("?")
            yield choose(name, text, shown, row.texts("options"), label, task=task, line=row.line)
            return
        answer = row.maybe("answer")
        labels = row.texts("answer") if answer.startswith("[") else [answer.strip("?")]
        yield pose(
            name, f"{text}\n{ASK_FOR_WORD}", shown, [label for label in labels if label], task=task, line=row.line
        )

    def judge(self, question: Question, said: str) -> Verdict:
        """With options by the letter; else any of the parts that may be the answer has to hold a label."""
        if question.options:
            return super().judge(question, said)
        parts = open_answers(said)
        right = any(_holds(part, label) for part in parts for label in question.labels)
        return Verdict("; ".join(parts), float(right) if question.labels else None)


def open_answers(said: str) -> list[str]:
    """What may be the answer, in lower case: of every line that has one, the shortest end behind an indicator; of a
    text without any, all of it."""
    lines = said.strip().strip(".").lower().split("\n")
    ends = []
    for place, line in enumerate(lines):
        indicators = (*_INDICATORS, "=") if place == len(lines) - 1 else _INDICATORS
        found = [line.rsplit(indicator, 1)[1].strip() for indicator in indicators if indicator in line]
        ends += [min(found, key=len)] if found else []
    return [end for end in ends if end.strip(",.!?;:'")] or ["\n".join(lines)]


def _holds(part: str, label: str) -> bool:
    """A number has to be among the part's, to two decimals; a text has to stand in it, one character apart."""
    try:
        value = round(float(label.replace(",", "")), 2)
    except ValueError:
        wanted = label.strip().lower()
        return wanted in part if len(wanted) > 1 else f" {wanted}" in part or f"{wanted} " in part or wanted == part
    return value in [round(number, 2) for number in numbers(part)]
