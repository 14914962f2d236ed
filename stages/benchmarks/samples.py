"""Any data set in our own formats, answered exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from stages.benchmarks.benchmark import Benchmark
from stages.benchmarks.question import Question, Verdict
from stages.benchmarks.rows import Row
from stages.contract.quarantine import BadLine
from stages.data.sample import Sample, read_samples


class Samples(Benchmark):
    """The last response of every sample is the label."""

    name = "samples"
    title = "samples"
    metric = "exact match"
    source = "none: the data set's own questions and answers"

    def read(self, place: Path) -> Iterator[Question | BadLine]:
        """All samples; a mixture is read too."""
        samples, bad = read_samples(place)
        yield from map(_asked, samples)
        yield from bad

    def questions(self, row: Row) -> Iterable[Question]:
        """Nothing: samples are not read by rows."""
        return ()

    def judge(self, question: Question, said: str) -> Verdict:
        """Right if every character is."""
        answer = said.strip()
        return Verdict(answer, float(answer in question.labels))


def _asked(sample: Sample) -> Question:
    return Question(
        sample.id,
        sample.images,
        sample.messages,
        sample.task,
        sample.line,
        sample.format,
        labels=(sample.responses[-1].strip(),),
        item=sample.id,
    )
