"""Public benchmarks, read from local copies of their published files, and what answers to them are worth.

A benchmark turns its rows into questions and judges answers; `BENCHMARKS` has all by name. Nothing here
imports torch, so that whoever only asks what a file is gets an answer at once.
"""

from __future__ import annotations

from pathlib import Path

from stages.benchmarks.ai2d import AI2D
from stages.benchmarks.benchmark import Benchmark
from stages.benchmarks.blink import Blink
from stages.benchmarks.chartqa import ChartQA
from stages.benchmarks.mathvista import MathVista
from stages.benchmarks.mmbench import MMBench
from stages.benchmarks.mmmu import MMMU
from stages.benchmarks.mmstar import MMStar
from stages.benchmarks.mmvet import MMVet
from stages.benchmarks.pope import Pope
from stages.benchmarks.question import Question, Verdict
from stages.benchmarks.rows import files_of, read_rows
from stages.benchmarks.samples import Samples
from stages.benchmarks.scienceqa import ScienceQA
from stages.contract import StageError
from stages.contract.quarantine import BadLine

__all__ = [
    "BENCHMARKS",
    "SAMPLES",
    "Benchmark",
    "Question",
    "Verdict",
    "benchmark_named",
    "read_questions",
    "recognise",
]

SAMPLES = Samples.name
"""What answers are judged by if no benchmark is named."""
BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        MMBench(),
        MMVet(),
        MMMU(),
        MathVista(),
        AI2D(),
        ChartQA(),
        MMStar(),
        Blink(),
        ScienceQA(),
        Pope(),
        Samples(),
    )
}


def benchmark_named(name: str | None) -> Benchmark:
    """A benchmark by its name; None is a data set in our own formats.

    Raises:
        StageError: there is none of this name.
    """
    if (name or SAMPLES) not in BENCHMARKS:
        raise StageError(f"benchmark {name!r} is unknown; allowed: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name or SAMPLES]


def read_questions(name: str | None, place: Path) -> tuple[list[Question], list[BadLine]]:
    """A benchmark's questions in order, and what of it cannot be used.

    Args:
        name: of the benchmark; None reads a data set in our own formats.

    Raises:
        StageError: there is no such benchmark, there are no such files, or one is damaged as a whole.
    """
    entries = list(benchmark_named(name).read(place))
    questions = [entry for entry in entries if isinstance(entry, Question)]
    return questions, [entry for entry in entries if isinstance(entry, BadLine)]


def recognise(place: Path) -> Benchmark:
    """The benchmark that a file or folder is a copy of, by its name, else by the fields of its first row; else a
    data set in our own formats."""
    named = _squeezed(place.name)
    for benchmark in BENCHMARKS.values():
        if benchmark.fields and _squeezed(benchmark.name) in named:
            return benchmark
    present = _first_fields(place)
    fitting = [
        (len(fields), benchmark)
        for benchmark in BENCHMARKS.values()
        for fields in benchmark.fields
        if fields <= present
    ]
    return max(fitting, key=lambda entry: entry[0])[1] if fitting else BENCHMARKS[SAMPLES]


def _squeezed(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _first_fields(place: Path) -> set[str]:
    """Fields that hold something; none of what the formats of benchmarks do not know."""
    if place.suffix in (".yaml", ".yml") or "#" in place.name:
        return set()
    record = next(iter(read_rows(files_of(place, ())[0], ())), None)
    return {*record.value} if record is not None and isinstance(record.value, dict) else set()
