"""Shards, made with Ray Data: how capture, precompute and evaluation work through their samples.

A shard passes three operators: samples are read, decoded and encoded on CPUs; a worker, which may hold
a model on accelerators, makes the shard's table; the table is compressed, written and verified on CPUs.
"""

from __future__ import annotations

import json
import logging
import pickle
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa

from stages.cache.table import ShardSummary, shard_path, summarize, write_table
from stages.cluster import connect
from stages.contract import Job, Journal, StageError
from stages.contract.files import SHARDS_FILE
from stages.contract.job import SIDE_CPUS
from stages.contract.place import Place, place_of, write_whole
from stages.contract.quarantine import write_quarantine
from stages.data.sample import BadLine, Sample
from stages.memory import peak_memory_bytes

if TYPE_CHECKING:
    # Whoever only writes shards does without torch.
    from stages.data.encoding import Encoded


class ReadSamples(Protocol):
    """Reads, decodes and encodes samples on a CPU."""

    def __call__(self, samples: list[Sample]) -> tuple[list[Encoded], list[BadLine]]:
        """Those that the worker needs encoded, and those that cannot be used."""


class ShardWorker(Protocol):
    """Makes one shard's table at a time; built once in each actor, with whatever models it needs."""

    def __init__(self, job: Job, work: Place) -> None:
        """What all shards share is left in the work folder by whoever comes first."""

    def work(self, ids: list[str], encoded: list[Encoded], bad: list[BadLine]) -> pa.Table:
        """The table of a shard: a row for every id, in order, that is not among `bad`."""


@dataclass(frozen=True)
class ShardProgram:
    """How a stage makes its shards.

    Attributes:
        folder: of the shards in the artifact.
        open_reader: called once in each actor that reads.
        worker: built once in each actor that works.
    """

    folder: str
    open_reader: Callable[[Job], ReadSamples]
    worker: type[ShardWorker]


class _Read(NamedTuple):
    """A shard whose samples are read."""

    ids: list[str]
    encoded: list[Encoded]
    bad: list[BadLine]


class _Made(NamedTuple):
    """A shard whose table is made."""

    table: pa.Table
    peak_memory_bytes: int


class Finished(NamedTuple):
    """A shard that is written."""

    name: str
    summary: ShardSummary
    peak_memory_bytes: int


def run_over_shards(
    job: Job, work: Place, program: ShardProgram, samples: Sequence[Sample], bad: Sequence[BadLine]
) -> dict[str, Any]:
    """Make one shard for each `shard_samples` samples; shards that are there and whole stay.

    Args:
        job: its settings hold `shard_samples` and `preprocessing.max_bad_fraction`.
        work: the stage's work folder; gets the shards, their index, the journal and the quarantine.
        program: how shards are made.
        samples: in order; shard k holds the k-th slice.
        bad: lines that were no samples.

    Returns:
        Totals for the manifest.

    Raises:
        StageError: more than the allowed fraction of the samples could not be used, or a sample is neither in a
            shard nor quarantined.
    """
    settings: Any = job.settings
    (work / program.folder).mkdir(exist_ok=True)
    journal = Journal(work, total=len(samples), unit="samples")
    everything = len(samples) + len(bad)
    allowed = int(settings.preprocessing.max_bad_fraction * everything)
    quarantine = list(bad)
    _check_bad(quarantine, allowed, job.stage)
    finished: list[Finished] = []
    done = rows = 0
    started = time.monotonic()
    for shard in _finish_shards(job, work, program, _slices(samples, settings.shard_samples)):
        finished.append(shard)
        quarantine += shard.summary.bad
        done, rows = done + shard.summary.samples, rows + shard.summary.rows
        rate = done / (time.monotonic() - started)
        journal.write(done, samples_per_second=rate, rows=rows, quarantined=len(quarantine))
        _check_bad(quarantine, allowed, job.stage)
    journal.flush()
    totals = {"samples": everything, "quarantined": len(quarantine), **_totals(finished)}
    if totals["rows"] + totals["quarantined"] != everything:
        raise StageError(f"{job.stage}: {everything} samples went in, but there are {totals}; force the stage anew")
    _write_index(work, program.folder, finished)
    write_quarantine(work, quarantine, job.stage)
    return totals


def _slices(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    return [list(samples[start : start + size]) for start in range(0, len(samples), size)]


def _finish_shards(job: Job, work: Place, program: ShardProgram, slices: Sequence[list[Sample]]) -> Iterator[Finished]:
    shards = [(shard_path(work / program.folder, index), samples) for index, samples in enumerate(slices)]
    if job.resources.workers:
        yield from _with_ray_data(job, work, program, shards)
        return
    reading, making = _Reading(program, job), _Making(program, job, work)
    for place, samples in shards:
        yield _write(place, making.step(place, reading.step(place, samples)))


def _with_ray_data(
    job: Job, work: Place, program: ShardProgram, shards: list[tuple[Place, list[Sample]]]
) -> Iterator[Finished]:
    import ray
    from ray.data import TaskPoolStrategy

    connect(job.resources.least_cpus)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    resources = job.resources
    rows = ray.data.from_items(
        [{"place": str(place), "state": pickle.dumps(samples)} for place, samples in shards],
        override_num_blocks=len(shards),
    )
    one_by_one: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    read = rows.map_batches(
        _Reading,
        fn_constructor_args=(program, job),
        compute=_pool(resources.encoders, len(shards)),
        num_cpus=SIDE_CPUS,
        **one_by_one,
    )
    made = read.map_batches(
        _Making,
        fn_constructor_args=(program, job, work),
        compute=_pool(resources.workers, len(shards)),
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker,
        **one_by_one,
    )
    writers = TaskPoolStrategy(size=resources.most_workers)
    finished = made.map_batches(_Writing(), compute=writers, num_cpus=SIDE_CPUS, **one_by_one)
    for row in finished.iter_rows():
        yield pickle.loads(row["state"])


class _Step(ABC):
    """An operator of Ray Data on rows that each stand for one shard."""

    @abstractmethod
    def step(self, place: Place, state: Any) -> Any:
        """What becomes of a shard's state."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        (row,) = rows.to_pylist()
        state = pickle.dumps(self.step(place_of(row["place"]), pickle.loads(row["state"])))
        # A table of its own: what Ray makes of bytes ends at 2 GB.
        return pa.table({"place": [row["place"]], "state": pa.array([state], pa.large_binary())})


class _Reading(_Step):
    def __init__(self, program: ShardProgram, job: Job) -> None:
        self._read = program.open_reader(job)

    def step(self, place: Place, state: list[Sample]) -> _Read | Finished:
        if (done := summarize(place)) is not None:
            return Finished(place.name, done, 0)
        return _Read([sample.id for sample in state], *self._read(state))


class _Making(_Step):
    def __init__(self, program: ShardProgram, job: Job, work: Place) -> None:
        self._worker = program.worker(job, work)

    def step(self, place: Place, state: _Read | Finished) -> _Made | Finished:
        if isinstance(state, Finished):
            return state
        table = self._worker.work(*state)
        if lost := set(state.ids) - {*table["id"].to_pylist(), *(line.id for line in state.bad)}:
            raise StageError(f"{place.name}: samples {sorted(lost)[:3]} are neither in the shard nor quarantined")
        return _Made(table, peak_memory_bytes())


class _Writing(_Step):
    def step(self, place: Place, state: _Made | Finished) -> Finished:
        return _write(place, state)


def _write(place: Place, shard: _Made | Finished) -> Finished:
    if isinstance(shard, Finished):
        return shard
    return Finished(place.name, write_table(place, shard.table), shard.peak_memory_bytes)


def _pool(actors: int | tuple[int, int], shards: int) -> Any:
    """As many actors as asked for, or as the cluster has within bounds; never more than shards."""
    from ray.data import ActorPoolStrategy

    least, most = (min(count, shards) for count in (actors if isinstance(actors, tuple) else (actors, actors)))
    return ActorPoolStrategy(min_size=least, max_size=most)


def _totals(finished: Sequence[Finished]) -> dict[str, int]:
    summaries = [shard.summary for shard in finished]
    return {
        "rows": sum(summary.rows for summary in summaries),
        "response_tokens": sum(summary.response_tokens for summary in summaries),
        "bytes": sum(summary.bytes for summary in summaries),
        "shards": len(summaries),
        "peak_memory_bytes": max((shard.peak_memory_bytes for shard in finished), default=0),
    }


def _write_index(work: Place, folder: str, finished: Sequence[Finished]) -> None:
    lines = [
        {"path": f"{folder}/{name}"} | asdict(summary) | {"bad": len(summary.bad)}
        for name, summary, _ in sorted(finished)
    ]
    write_whole(work / SHARDS_FILE, "".join(json.dumps(line) + "\n" for line in lines))


def _check_bad(quarantine: Sequence[BadLine], allowed: int, stage: str) -> None:
    if len(quarantine) > allowed:
        first = quarantine[0]
        raise StageError(
            f"{stage}: {len(quarantine)} samples cannot be used, preprocessing.max_bad_fraction allows {allowed}; "
            f"the first is {first.id} (line {first.line}): {first.reason}"
        )
