"""MathVista: mathematics in pictures, answered with an option, a number or a list."""

from __future__ import annotations

from collections.abc import Iterator

from stages.benchmarks.benchmark import ASK_FOR_LETTER, MultipleChoice
from stages.benchmarks.extraction import number, numbers
from stages.benchmarks.question import LETTERS, Question, Verdict, pose
from stages.benchmarks.rows import KEY, Row
from stages.data import BadSample

_DIGITS = {"1": "one decimal place", "2": "two decimal places"}


class MathVista(MultipleChoice):
    """The prompts ask for nothing but the answer, so that rules can read it; the authors let GPT-4 extract it."""

    name = "mathvista"
    title = "MathVista"
    metric = "accuracy, extraction by rules"
    source = "Lu et al., MathVista (ICLR 2024), calculate_score.py; prompts of lmms-eval (format-prompt)"
    files = ("testmini-*.parquet", "testmini.json")
    fields = (frozenset({"question", "question_type", "answer_type", "precision", "choices"}),)
    pictures = ("decoded_image",)
    max_new_tokens = 256

    def questions(self, row: Row) -> Iterator[Question]:
        """One; the answer of the test split is empty."""
        answer, choices = row.maybe("answer"), row.texts("choices")
        kind, precision = row.text("answer_type"), row.maybe("precision").removesuffix(".0")
        if choices and answer and answer not in choices:
            raise BadSample(f"the answer {answer!r} is none of the choices")
        label = LETTERS[choices.index(answer)] if choices and answer else answer
        metadata = row.values.get("metadata")
        yield pose(
            row.maybe("pid", KEY) or row.name,
            _prompt(row, choices, kind, precision),
            row.pictures("decoded_image", "image"),
            [label] if label else [],
            options=choices,
            task=str(metadata.get("task") or "") if isinstance(metadata, dict) else "",
            reads=f"{kind} {precision}".strip(),
            line=row.line,
        )

    def judge(self, question: Question, said: str) -> Verdict:
        """Numbers are rounded as the question asks and then have to be equal."""
        if question.options:
            return super().judge(question, said)
        kind, _, precision = question.reads.partition(" ")
        extracted = _read(said, kind, int(precision or 0))
        right = any(extracted == _read(label, kind, int(precision or 0)) for label in question.labels)
        return Verdict(extracted, float(right and bool(extracted)) if question.labels else None)


def _prompt(row: Row, choices: list[str], kind: str, precision: str) -> str:
    unit = f" (Unit: {row.maybe('unit')})" if row.maybe("unit") else ""
    asked = row.text("question") + unit
    if choices:
        listed = "\n".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
        return f"{asked}\nChoices:\n{listed}\n{ASK_FOR_LETTER}"
    wanted = {
        "integer": "a single integer number",
        "float": f"a single floating-point number with {_DIGITS.get(precision, 'the decimal places asked for')}",
        "list": "a Python list",
    }
    if kind not in wanted:
        raise BadSample(f"`answer_type` {kind!r} is unknown; allowed: {', '.join(wanted)}, or text with choices")
    return f"{asked}\nAnswer the question using {wanted[kind]}."


def _read(said: str, kind: str, precision: int) -> str:
    """An answer as the question asks for it: a whole number, one with so many decimals, or a list."""
    if kind == "list":
        return str([float(value) for value in numbers(said)])
    value = number(said)
    if value is None:
        return ""
    return str(int(value)) if kind == "integer" and abs(value) < 1e15 else str(round(value, precision))
