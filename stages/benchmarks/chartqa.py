"""ChartQA: questions about charts, answered with a word or a number."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stages.benchmarks.benchmark import Benchmark
from stages.benchmarks.extraction import short_answer
from stages.benchmarks.question import Question, Verdict, pose
from stages.benchmarks.rows import Row

TOLERANCE = 0.05
_BETWEEN_DIGITS = re.compile(r"(?<=\d),(?=\d{3})")


class ChartQA(Benchmark):
    """A number may be off by 5 %; every other answer has to be the label, in any case."""

    name = "chartqa"
    title = "ChartQA"
    metric = "relaxed accuracy, 5 %"
    source = "Masry et al., ChartQA (ACL 2022 Findings), section 5.1; prompt and rule of lmms-eval and Qwen-VL"
    files = ("test_*.json", "test-*.parquet")
    fields = (
        frozenset({"imgname", "query", "label"}),
        frozenset({"query", "label", "human_or_machine"}),
        frozenset({"type", "question", "answer"}),
    )

    def questions(self, row: Row) -> Iterator[Question]:
        """One; the file or a field says whether a person wrote it."""
        listed = row.texts("label") if isinstance(row.values.get("label"), list) else []
        labels = listed or [row.text("label", "answer")]
        kind = row.maybe("type") or {"0": "human", "1": "augmented"}.get(row.maybe("human_or_machine"), row.file.stem)
        yield pose(
            row.name,
            f"{row.text('query', 'question')}\nAnswer the question with a single word.",
            row.pictures("imgname", "image", folders=("png", "test/png", "", "images")),
            labels,
            task=kind.removeprefix("test_").removesuffix("_test"),
            line=row.line,
        )

    def judge(self, question: Question, said: str) -> Verdict:
        """What stands around the answer is taken off first."""
        answer = short_answer(said)
        return Verdict(answer, float(any(is_relaxed_match(answer, label) for label in question.labels)))


def is_relaxed_match(answer: str, label: str) -> bool:
    """Whether two numbers differ by 5 % of the label at most, or two texts not at all; 45 % is 0.45."""
    given, wanted = _as_number(answer), _as_number(label)
    if given is not None and wanted:
        return abs(given - wanted) / abs(wanted) <= TOLERANCE
    return answer.strip().lower() == label.strip().lower() or (given is not None and given == wanted)


def _as_number(text: str) -> float | None:
    plain = _BETWEEN_DIGITS.sub("", text.strip().lstrip("$"))
    try:
        return float(plain.removesuffix("%")) / (100 if plain.endswith("%") else 1)
    except ValueError:
        return None
