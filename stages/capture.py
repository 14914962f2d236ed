"""Capture: run the teacher over some samples and keep its hidden states at response tokens.

Reads   the samples, the teacher.
Writes  `states/`: shards of raw hidden states, one column per target layer and one for the head's
        input; `teacher/`: its readout and configuration, so that no later stage needs the teacher
        to know what a state says; `quarantine.jsonl`.
        `shards.jsonl`, the shards' index.
Runs    on actors of Ray Data, each with a whole teacher; resumes at a shard.

Verb-FFNs are small regressions: `capture.fraction` of the samples is enough to train them.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from stages.cache.codecs import Field
from stages.cache.shard import RAW_STATES, Key, Layout, Row, make_table, rows_of
from stages.contract import Job
from stages.contract.files import LAST_LAYER, READOUT_FOLDER, STATES_FOLDER, block_column
from stages.contract.job import main
from stages.contract.place import Place, staged
from stages.contract.settings import CaptureSettings, resolve_target_layers
from stages.data.encoding import Encoded, Encoder, encode_all
from stages.data.sample import BadLine, Sample, read_samples
from stages.models.backbone import load_processor
from stages.models.teacher import Teacher
from stages.shards import ReadSamples, ShardProgram, run_over_shards


def open_reader(job: Job) -> ReadSamples:
    """Encodes samples as the teacher sees them."""
    settings = job.typed(CaptureSettings)
    processor = load_processor(job.inputs["teacher"], settings.model)
    return partial(encode_all, Encoder(processor, settings.preprocessing, memory_bytes=0))


class CaptureWorker:
    """Makes shards of raw states."""

    def __init__(self, job: Job, work: Place) -> None:
        self._settings = job.typed(CaptureSettings)
        self._teacher = Teacher(job.inputs["teacher"], self._settings.model)
        backbone = self._teacher.backbone
        self._blocks = resolve_target_layers(self._settings.target_layers, len(backbone.blocks))
        columns = (*map(block_column, self._blocks), LAST_LAYER)
        self._layout = Layout(RAW_STATES, columns, (Field(backbone.width, getattr(torch, self._settings.dtype)),))
        if not (work / READOUT_FOLDER).exists():
            with staged(work / READOUT_FOLDER) as folder:
                backbone.readout.save(folder, backbone.model.config)

    def work(self, ids: list[str], encoded: list[Encoded], bad: list[BadLine]) -> pa.Table:
        """Run the teacher over one shard's samples."""
        rows: dict[str, Row] = {}
        for group, states in self._teacher.states(encoded, self._blocks, self._settings.micro_batch_tokens, bad):
            layers = [[tensor] for tensor in (*states.targets, states.last)]
            rows |= rows_of([Key.of(sample) for sample in group], layers, self._layout.fields)
        return make_table(self._layout, [rows[name] for name in ids if name in rows], bad)


def choose_samples(samples: Sequence[Sample], fraction: float, seed: int) -> list[Sample]:
    """A fixed share of the samples, at least one, in their own order."""
    count = max(1, round(fraction * len(samples)))
    chosen = set(random.Random(seed).sample(range(len(samples)), count))
    return [sample for index, sample in enumerate(samples) if index in chosen]


def run(job: Job, work: Place) -> dict[str, Any]:
    """Capture the states of `capture.fraction` of the samples."""
    settings = job.typed(CaptureSettings)
    samples, bad = read_samples(Path(job.inputs["samples"]))
    chosen = choose_samples(samples, settings.fraction, settings.seed)
    return run_over_shards(job, work, ShardProgram(STATES_FOLDER, open_reader, CaptureWorker), chosen, bad)


if __name__ == "__main__":
    sys.exit(main("capture"))
