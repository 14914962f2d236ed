"""Evaluation: answer held-out questions by greedy (or beam) decoding and score the answers.

Reads   the samples, one model (a teacher, a small backbone or an exported student).
Writes  `predictions/`: shards with id, task, question, reference, prediction, correct;
        `quarantine.jsonl`. The scores stand in the manifest.
Runs    on actors of Ray Data; resumes at a shard.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from stages.cache.table import described
from stages.contract import Job
from stages.contract.files import PREDICTIONS_FOLDER
from stages.contract.job import main
from stages.contract.place import Place, files_below, open_file
from stages.contract.settings import EvaluationSettings
from stages.data.encoding import Encoded, Encoder, collate_prompts, encode_all, pad_id
from stages.data.packing import pack
from stages.data.sample import BadLine, Sample, read_samples
from stages.models.backbone import Backbone, load_processor
from stages.shards import ReadSamples, ShardProgram, run_over_shards

_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "task", "question", "reference", "prediction")),
        ("correct", pa.bool_()),
    ]
)


def open_reader(job: Job) -> ReadSamples:
    """Encodes samples as the model sees them."""
    settings = job.typed(EvaluationSettings)
    processor = load_processor(job.inputs["model"], settings.model)
    return partial(encode_all, Encoder(processor, settings.preprocessing, memory_bytes=0))


class EvaluationWorker:
    """Makes shards of answers."""

    def __init__(self, job: Job, work: Place) -> None:
        self._settings = job.typed(EvaluationSettings)
        self._tokenizer = load_processor(job.inputs["model"], self._settings.model).tokenizer
        self._backbone = Backbone.load(job.inputs["model"], self._settings.model)

    def work(self, ids: list[str], encoded: list[Encoded], bad: list[BadLine]) -> pa.Table:
        """Answer one shard's questions."""
        answered = (answer for group in self._groups(encoded) for answer in self._answer(group))
        rows = {sample.id: _row(sample, text) for sample, text in answered}
        return described(pa.Table.from_pylist([rows[name] for name in ids if name in rows], schema=_SCHEMA), bad, {})

    def _groups(self, encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
        """Samples for one `generate` call: of similar length, all with pictures or all without."""
        for has_images in (True, False):
            alike = [sample for sample in encoded if bool(sample.sample.images) == has_images]
            lengths = [len(sample.input_ids) + self._settings.max_new_tokens for sample in alike]
            for indices in pack(lengths, max_tokens=self._settings.micro_batch_tokens):
                yield [alike[i] for i in indices]

    @torch.no_grad()
    def _answer(self, group: Sequence[Encoded]) -> list[tuple[Sample, str]]:
        padding = pad_id(self._tokenizer)
        prompts = collate_prompts(group, padding)
        generated = self._backbone.model.generate(  # type: ignore[operator]
            **{name: tensor.to(self._backbone.device) for name, tensor in prompts.items()},
            max_new_tokens=self._settings.max_new_tokens,
            num_beams=self._settings.num_beams,
            do_sample=False,
            pad_token_id=padding,
        )
        new = generated[:, prompts["input_ids"].shape[1] :]
        texts = self._tokenizer.batch_decode(new, skip_special_tokens=True)
        return [(encoded.sample, text.strip()) for encoded, text in zip(group, texts, strict=True)]


def score(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Share of exact matches, overall and by task; `rows` hold `task`, empty where it has none, and `correct`."""
    by_task: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        if row["task"]:
            by_task[row["task"]].append(row["correct"])
    return {
        "overall": sum(row["correct"] for row in rows) / max(1, len(rows)),
        "samples": len(rows),
        "by_task": {
            task: {"accuracy": sum(correct) / len(correct), "samples": len(correct)}
            for task, correct in sorted(by_task.items())
        },
    }


def _row(sample: Sample, prediction: str) -> dict[str, Any]:
    reference = sample.responses[-1].strip()
    return {
        "id": sample.id,
        "task": sample.task,
        "question": sample.question,
        "reference": reference,
        "prediction": prediction,
        "correct": prediction == reference,
    }


def run(job: Job, work: Place) -> dict[str, Any]:
    """Answer and score the samples."""
    samples, bad = read_samples(Path(job.inputs["samples"]))
    totals = run_over_shards(job, work, ShardProgram(PREDICTIONS_FOLDER, open_reader, EvaluationWorker), samples, bad)
    answers = work / PREDICTIONS_FOLDER
    tables = [pq.read_table(open_file(answers / name), columns=["task", "correct"]) for name in files_below(answers)]
    return {**totals, **score([row for table in tables for row in table.to_pylist()])}


if __name__ == "__main__":
    sys.exit(main("evaluation"))
