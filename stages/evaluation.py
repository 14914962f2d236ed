"""Evaluation: answer held-out questions by greedy (or beam) decoding and score the answers.

Reads   the samples or a local copy of a benchmark, one model (a teacher, a small backbone or an exported student).
Writes  `predictions/`: shards with a row for each answer: the question, the prompt as the model got it, what it said,
        what of that counts, the label, and whether it is right; `quarantine.jsonl`. The scores stand in the manifest.
Runs    on actors of Ray Data; resumes at a shard.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from stages.benchmarks import Question, Verdict, benchmark_named, read_questions
from stages.benchmarks.referee import Referee
from stages.benchmarks.scoring import score
from stages.cache.table import described
from stages.contract import Job
from stages.contract.files import PREDICTIONS_FOLDER
from stages.contract.job import main
from stages.contract.place import Place, files_below, open_file
from stages.contract.settings import EvaluationSettings
from stages.data.encoding import Encoded, Encoder, collate_prompts, encode_all, pad_id
from stages.data.packing import pack
from stages.data.sample import BadLine
from stages.models.backbone import Backbone, load_processor
from stages.shards import ReadSamples, ShardProgram, run_over_shards

_TEXTS = ("id", "item", "task", "question", "prompt", "reference", "prediction", "extracted")
_SCHEMA = pa.schema([*((name, pa.string()) for name in _TEXTS), ("correct", pa.float64())])
"""`item`: what is asked for, the same in all forms of one question; `correct`: 1, 0, between for a part, or null as
long as nobody has judged the answer."""


def open_reader(job: Job) -> ReadSamples:
    """Encodes samples as the model sees them."""
    settings = job.typed(EvaluationSettings)
    processor = load_processor(job.inputs["model"], settings.model)
    return partial(encode_all, Encoder(processor, settings.preprocessing, memory_bytes=0))


class EvaluationWorker:
    """Makes shards of answers."""

    def __init__(self, job: Job, work: Place) -> None:
        self._settings = job.typed(EvaluationSettings)
        self._benchmark = benchmark_named(self._settings.benchmark)
        self._referee = Referee(self._settings.judge) if self._settings.judge else None
        processor = load_processor(job.inputs["model"], self._settings.model)
        self._encoder = Encoder(processor, self._settings.preprocessing, memory_bytes=0)
        self._backbone = Backbone.load(job.inputs["model"], self._settings.model)

    def work(self, ids: list[str], encoded: list[Encoded], bad: list[BadLine]) -> pa.Table:
        """Answer one shard's questions."""
        answered = (answer for group in self._groups(encoded) for answer in self._answer(group))
        rows = {question.id: self._row(question, said) for question, said in answered}
        return described(pa.Table.from_pylist([rows[name] for name in ids if name in rows], schema=_SCHEMA), bad, {})

    def _groups(self, encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
        """Samples for one `generate` call: of similar length, all with pictures or all without."""
        for has_images in (True, False):
            alike = [sample for sample in encoded if bool(sample.sample.images) == has_images]
            lengths = [len(sample.input_ids) + self._settings.max_new_tokens for sample in alike]
            for indices in pack(lengths, max_tokens=self._settings.micro_batch_tokens):
                yield [alike[i] for i in indices]

    @torch.no_grad()
    def _answer(self, group: Sequence[Encoded]) -> list[tuple[Question, str]]:
        tokenizer = self._encoder.processor.tokenizer
        prompts = collate_prompts(group, pad_id(tokenizer))
        generated = self._backbone.model.generate(  # type: ignore[operator]
            **{name: tensor.to(self._backbone.device) for name, tensor in prompts.items()},
            max_new_tokens=self._settings.max_new_tokens,
            num_beams=self._settings.num_beams,
            do_sample=False,
            pad_token_id=pad_id(tokenizer),
        )
        new = generated[:, prompts["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        return [(_question(encoded), text.strip()) for encoded, text in zip(group, texts, strict=True)]

    def _row(self, question: Question, said: str) -> dict[str, Any]:
        verdict = self._judge(question, said)
        return {
            "id": question.id,
            "item": question.item,
            "task": question.task,
            "question": question.question,
            "prompt": self._encoder.render(question.messages[:-1], prompt=True),
            "reference": question.labels[0] if question.labels else "",
            "prediction": said,
            "extracted": verdict.extracted,
            "correct": verdict.correct,
        }

    def _judge(self, question: Question, said: str) -> Verdict:
        verdict = self._benchmark.judge(question, said)
        if not self._benchmark.needs_judge or self._referee is None:
            return verdict
        return Verdict(verdict.extracted, self._referee.score(self._benchmark.judge_prompt(question, said)))


def run(job: Job, work: Place) -> dict[str, Any]:
    """Answer and score the questions."""
    settings = job.typed(EvaluationSettings)
    questions, bad = read_questions(settings.benchmark, Path(job.inputs["samples"]))
    totals = run_over_shards(job, work, ShardProgram(PREDICTIONS_FOLDER, open_reader, EvaluationWorker), questions, bad)
    answers = work / PREDICTIONS_FOLDER
    columns = ["item", "task", "reference", "extracted", "correct"]
    tables = [pq.read_table(open_file(answers / name), columns=columns) for name in files_below(answers)]
    rows = [row for table in tables for row in table.to_pylist()]
    judged = [(row["reference"], row["extracted"]) for row in rows if row["correct"] is not None]
    return {
        **totals,
        **score(rows),
        "metrics": benchmark_named(settings.benchmark).metrics(judged),
        "decoding": settings.decoding,
    }


def _question(encoded: Encoded) -> Question:
    assert isinstance(encoded.sample, Question), "the reader is given nothing else"
    return encoded.sample


if __name__ == "__main__":
    sys.exit(main("evaluation"))
