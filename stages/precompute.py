"""Precompute: cache what every teacher layer says about every response token.

Reads   the captured states, the teacher's verbalizers, the samples, the teacher (only for samples
        that were not captured), the student's head.
Writes  `targets/`: shards in the chosen codec, one column per teacher target layer and one for its
        ordinary final output; `teacher_head.safetensors` with a `hidden` codec; `quarantine.jsonl`.
Runs    on actors of Ray Data; resumes at a shard.

With the `moment` codec interaction needs neither the teacher nor its head nor its vocabulary.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.cache.codecs import Hidden, make_codec
from stages.cache.reader import CacheReader
from stages.cache.shard import Layout, Row, ShardSummary, rows_of, summarize, write_shard
from stages.cluster import run_over_shards
from stages.contract import Job, StageError
from stages.contract.files import (
    LAST_LAYER,
    READOUT_FOLDER,
    STATES_FOLDER,
    TARGETS_FOLDER,
    TEACHER_HEAD_FILE,
    TEACHER_VERBALIZERS_FILE,
    column_block,
)
from stages.contract.job import main
from stages.contract.settings import PrecomputeSettings
from stages.data.encoding import Encoded, Encoder, encode_all
from stages.data.packing import pack
from stages.data.sample import BadLine, Sample, read_samples
from stages.models.backbone import States, default_device, load_processor
from stages.models.readout import Readout, save_head
from stages.models.teacher import Teacher
from stages.models.verbalizer import Verbalizers


class PrecomputeWorker:
    """Writes shards of verbalized layers."""

    def __init__(self, job: Job) -> None:
        self._settings = job.typed(PrecomputeSettings)
        self._inputs = job.inputs
        self._device = default_device()
        loading = self._settings.model
        self._encoder = Encoder(
            load_processor(job.inputs["teacher"], loading), self._settings.preprocessing, memory_bytes=0
        )
        self._captured = CacheReader(Path(job.inputs["capture"]) / STATES_FOLDER)
        self._readout = Readout.load(Path(job.inputs["capture"]) / READOUT_FOLDER, loading).to(self._device)
        vocabulary = self._encoder.real_vocabulary
        self._teacher_head = self._readout.head_rows(vocabulary)
        student = Readout.of_checkpoint(job.inputs["student"], loading).to(self._device)
        student_head = student.head_rows(vocabulary)
        dtype = getattr(torch, self._settings.dtype)
        self._codec = make_codec(self._settings.layout_codec, dtype, self._teacher_head, student_head)
        columns = self._captured.layout.layers if self._settings.layers == "all" else (LAST_LAYER,)
        self._layout = Layout(self._codec.name, columns, self._codec.fields)

    def work(self, path: Path, samples: list[Sample]) -> ShardSummary:
        """Verbalize one shard's samples and encode them."""
        if isinstance(self._codec, Hidden):
            save_head(self._teacher_head, path.parents[1] / TEACHER_HEAD_FILE)
        if (done := summarize(path)) is not None:
            return done
        encoded, bad = encode_all(self._encoder, samples)
        rows: dict[str, Row] = {}
        for group, states in self._states(encoded, bad):
            rows |= rows_of(group, self._encode(group, states), self._layout.fields)
        return write_shard(path, self._layout, [rows[s.id] for s in samples if s.id in rows], bad)

    def _states(self, encoded: list[Encoded], bad: list[BadLine]) -> Iterator[tuple[list[Encoded], States]]:
        """Captured states where they exist, else the teacher's."""
        size = self._settings.micro_batch_tokens
        captured = [sample for sample in encoded if sample.sample.id in self._captured]
        for indices in pack([len(sample.response_ids) for sample in captured], max_tokens=size):
            group = [captured[i] for i in indices]
            yield group, self._captured_states(group)
        missing = [sample for sample in encoded if sample.sample.id not in self._captured]
        if missing:
            blocks = [column_block(column) for column in self._captured.layout.layers if column != LAST_LAYER]
            yield from self._teacher.states(missing, blocks, size, bad)

    def _captured_states(self, group: list[Encoded]) -> States:
        response_ids = torch.cat([encoded.response_ids for encoded in group])
        layers = self._captured.fields([encoded.sample.id for encoded in group], response_ids)
        *targets, last = (fields[0].to(self._device) for fields in layers)
        return States(tuple(targets), last)

    @torch.no_grad()
    def _encode(self, group: Sequence[Encoded], states: States) -> list[list[Tensor]]:
        said = [] if self._settings.layers == "last" else self._verbalizers(states.targets, self._readout.norm)
        layers = (*said, states.last)
        numbers = torch.cat([token_numbers(sample, len(layers), self._settings.seed) for sample in group], dim=1)
        # All layers at once, so that the heads are read once for them.
        fields = self._codec.encode(torch.cat(layers), numbers.flatten())
        return [list(layer) for layer in zip(*(field.chunk(len(layers)) for field in fields), strict=True)]

    @cached_property
    def _verbalizers(self) -> Verbalizers:
        return Verbalizers.load(Path(self._inputs["verbalization"]) / TEACHER_VERBALIZERS_FILE, self._device)

    @cached_property
    def _teacher(self) -> Teacher:
        return Teacher(self._inputs["teacher"], self._settings.model, self._settings.preprocessing)


def token_numbers(sample: Encoded, layers: int, seed: int) -> Tensor:
    """[layers, R] random numbers in [0, 1), the sample's own: whoever makes its row anew makes the same row."""
    own = np.random.SeedSequence([seed, zlib.crc32(sample.sample.id.encode())])
    return torch.from_numpy(np.random.default_rng(own).random((layers, len(sample.response_ids))))


def run(job: Job, work: Path) -> dict[str, Any]:
    """Cache every sample of the training set."""
    settings = job.typed(PrecomputeSettings)
    if settings.layers == "all" and "verbalization" not in job.inputs:
        raise StageError("precompute: layers `all` needs the teacher's verbalizers; give the input `verbalization`")
    samples, bad = read_samples(Path(job.inputs["samples"]))
    totals = run_over_shards(job, work, PrecomputeWorker, samples, bad, TARGETS_FOLDER)
    return {**totals, "codec": settings.layout_codec, "dtype": settings.dtype}


if __name__ == "__main__":
    sys.exit(main("precompute"))
