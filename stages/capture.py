"""Capture: run the teacher over some samples and keep its hidden states at response tokens.

Reads   the samples, the teacher.
Writes  `states/`: shards of raw hidden states, one column per target layer and one for the head's
        input; `teacher/`: its readout and configuration, so that no later stage needs the teacher
        to know what a state says; `quarantine.jsonl`.
Runs    on actors of Ray Data, each with a whole teacher; resumes at a shard.

Verb-FFNs are small regressions: `capture.fraction` of the samples is enough to train them.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stages.cache.codecs import Field
from stages.cache.shard import RAW_STATES, Layout, Row, ShardSummary, rows_of, summarize, write_shard
from stages.cluster import run_over_shards
from stages.contract import Job
from stages.contract.files import LAST_LAYER, READOUT_FOLDER, STATES_FOLDER, block_column
from stages.contract.job import main
from stages.contract.settings import CaptureSettings, resolve_target_layers
from stages.data.encoding import encode_all
from stages.data.sample import Sample, read_samples
from stages.models.teacher import Teacher


class CaptureWorker:
    """Writes shards of raw states."""

    def __init__(self, job: Job) -> None:
        self._settings = job.typed(CaptureSettings)
        self._teacher = Teacher(job.inputs["teacher"], self._settings.model, self._settings.preprocessing)
        backbone = self._teacher.backbone
        self._blocks = resolve_target_layers(self._settings.target_layers, len(backbone.blocks))
        columns = (*map(block_column, self._blocks), LAST_LAYER)
        self._layout = Layout(RAW_STATES, columns, (Field(backbone.width, getattr(torch, self._settings.dtype)),))

    def work(self, path: Path, samples: list[Sample]) -> ShardSummary:
        """Run the teacher over one shard's samples."""
        self._save_readout(path.parents[1] / READOUT_FOLDER)
        if (done := summarize(path)) is not None:
            return done
        encoded, bad = encode_all(self._teacher.encoder, samples)
        rows: dict[str, Row] = {}
        for group, states in self._teacher.states(encoded, self._blocks, self._settings.micro_batch_tokens, bad):
            layers = [[tensor] for tensor in (*states.targets, states.last)]
            rows |= rows_of(group, layers, self._layout.fields)
        return write_shard(path, self._layout, [rows[s.id] for s in samples if s.id in rows], bad)

    def _save_readout(self, folder: Path) -> None:
        """Whichever actor comes first leaves the readout, whole."""
        if folder.exists():
            return
        with TemporaryDirectory(dir=folder.parent) as scratch:
            complete = Path(scratch) / "readout"
            complete.mkdir()
            self._teacher.backbone.readout.save(complete, self._teacher.backbone.model.config)
            with suppress(OSError):
                complete.rename(folder)


def choose_samples(samples: Sequence[Sample], fraction: float, seed: int) -> list[Sample]:
    """A fixed share of the samples, at least one, in their own order."""
    count = max(1, round(fraction * len(samples)))
    chosen = set(random.Random(seed).sample(range(len(samples)), count))
    return [sample for index, sample in enumerate(samples) if index in chosen]


def run(job: Job, work: Path) -> dict[str, Any]:
    """Capture the states of `capture.fraction` of the samples."""
    settings = job.typed(CaptureSettings)
    samples, bad = read_samples(Path(job.inputs["samples"]))
    chosen = choose_samples(samples, settings.fraction, settings.seed)
    return run_over_shards(job, work, CaptureWorker, chosen, bad, STATES_FOLDER)


if __name__ == "__main__":
    sys.exit(main("capture"))
