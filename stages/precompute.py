"""Precompute: cache what every teacher layer says about every response token.

Reads   the captured states, the teacher's verbalizers, the samples, the teacher (only for samples
        that were not captured), the student's head.
Writes  `targets/`: shards in the chosen codec, one column per teacher target layer and one for its
        ordinary final output; `teacher_head.safetensors` with a `hidden` codec; `quarantine.jsonl`;
        `shards.jsonl`, the shards' index.
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
import pyarrow as pa
import torch
from torch import Tensor

from stages.cache.codecs import Hidden, make_codec
from stages.cache.reader import CacheReader
from stages.cache.shard import Key, Layout, Row, make_table, rows_of
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
from stages.contract.place import Place, local_copy, staged
from stages.contract.settings import PrecomputeSettings
from stages.data.encoding import Encoded, Encoder, encode_all
from stages.data.packing import pack
from stages.data.sample import BadLine, Sample, read_samples
from stages.models.backbone import States, default_device, load_processor
from stages.models.readout import Readout, save_head
from stages.models.teacher import Teacher
from stages.models.verbalizer import Verbalizers
from stages.shards import ReadSamples, ShardProgram, run_over_shards


def open_reader(job: Job) -> ReadSamples:
    """Encodes the samples that were not captured; of the others everything needed is in the capture."""
    settings = job.typed(PrecomputeSettings)
    encoder = Encoder(load_processor(job.inputs["teacher"], settings.model), settings.preprocessing, memory_bytes=0)
    captured = CacheReader(job.folder("capture") / STATES_FOLDER)

    def read(samples: list[Sample]) -> tuple[list[Encoded], list[BadLine]]:
        return encode_all(encoder, [sample for sample in samples if sample.id not in captured])

    return read


class PrecomputeWorker:
    """Makes shards of verbalized layers."""

    def __init__(self, job: Job, work: Place) -> None:
        self._settings = job.typed(PrecomputeSettings)
        self._job = job
        self._device = default_device()
        loading = self._settings.model
        self._captured = CacheReader(job.folder("capture") / STATES_FOLDER)
        self._readout = Readout.load(local_copy(job.folder("capture") / READOUT_FOLDER), loading).to(self._device)
        vocabulary = len(load_processor(job.inputs["teacher"], loading).tokenizer)
        self._teacher_head = self._readout.head_rows(vocabulary)
        student = Readout.of_checkpoint(job.inputs["student"], loading).to(self._device)
        student_head = student.head_rows(vocabulary)
        dtype = getattr(torch, self._settings.dtype)
        self._codec = make_codec(self._settings.layout_codec, dtype, self._teacher_head, student_head)
        columns = self._captured.layout.layers if self._settings.layers == "all" else (LAST_LAYER,)
        self._layout = Layout(self._codec.name, columns, self._codec.fields)
        if isinstance(self._codec, Hidden):
            with staged(work / TEACHER_HEAD_FILE) as path:
                save_head(self._teacher_head, path)

    def work(self, ids: list[str], encoded: list[Encoded], bad: list[BadLine]) -> pa.Table:
        """Verbalize one shard's samples and encode them."""
        rows: dict[str, Row] = {}
        for keys, states in self._states(ids, encoded, bad):
            rows |= rows_of(keys, self._encode(keys, states), self._layout.fields)
        return make_table(self._layout, [rows[name] for name in ids if name in rows], bad)

    def _states(
        self, ids: Sequence[str], encoded: list[Encoded], bad: list[BadLine]
    ) -> Iterator[tuple[list[Key], States]]:
        """Captured states where they exist, else the teacher's."""
        size = self._settings.micro_batch_tokens
        keys = [self._captured.read(name).key for name in ids if name in self._captured]
        for indices in pack([len(key.response_ids) for key in keys], max_tokens=size):
            group = [keys[i] for i in indices]
            yield group, self._captured_states(group)
        if encoded:
            blocks = [column_block(column) for column in self._captured.layout.layers if column != LAST_LAYER]
            for samples, states in self._teacher.states(encoded, blocks, size, bad):
                yield [Key.of(sample) for sample in samples], states

    def _captured_states(self, keys: list[Key]) -> States:
        response_ids = torch.tensor([token for key in keys for token in key.response_ids])
        layers = self._captured.fields([key.id for key in keys], response_ids)
        *targets, last = (fields[0].to(self._device) for fields in layers)
        return States(tuple(targets), last)

    @torch.no_grad()
    def _encode(self, keys: Sequence[Key], states: States) -> list[list[Tensor]]:
        said = [] if self._settings.layers == "last" else self._verbalizers(states.targets, self._readout.norm)
        layers = (*said, states.last)
        numbers = torch.cat([token_numbers(key, len(layers), self._settings.seed) for key in keys], dim=1)
        # All layers at once, so that the heads are read once for them.
        fields = self._codec.encode(torch.cat(layers), numbers.flatten())
        return [list(layer) for layer in zip(*(field.chunk(len(layers)) for field in fields), strict=True)]

    @cached_property
    def _verbalizers(self) -> Verbalizers:
        return Verbalizers.load(local_copy(self._job.folder("verbalization") / TEACHER_VERBALIZERS_FILE), self._device)

    @cached_property
    def _teacher(self) -> Teacher:
        return Teacher(self._job.inputs["teacher"], self._settings.model)


def token_numbers(key: Key, layers: int, seed: int) -> Tensor:
    """[layers, R] random numbers in [0, 1), the sample's own: whoever makes its row anew makes the same row."""
    own = np.random.SeedSequence([seed, zlib.crc32(key.id.encode())])
    return torch.from_numpy(np.random.default_rng(own).random((layers, len(key.response_ids))))


def run(job: Job, work: Place) -> dict[str, Any]:
    """Cache every sample of the training set."""
    settings = job.typed(PrecomputeSettings)
    if settings.layers == "all" and "verbalization" not in job.inputs:
        raise StageError("precompute: layers `all` needs the teacher's verbalizers; give the input `verbalization`")
    samples, bad = read_samples(Path(job.inputs["samples"]))
    totals = run_over_shards(job, work, ShardProgram(TARGETS_FOLDER, open_reader, PrecomputeWorker), samples, bad)
    return {**totals, "codec": settings.layout_codec, "dtype": settings.dtype}


if __name__ == "__main__":
    sys.exit(main("precompute"))
