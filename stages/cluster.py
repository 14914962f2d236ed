"""Ray, as the stages use it: connect once, and run a worker class over shards with Ray Data."""

from __future__ import annotations

import json
import logging
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from stages.cache.shard import ShardSummary
from stages.contract import Job, Journal, StageError
from stages.contract.files import QUARANTINE_FILE
from stages.data.sample import BadLine, Sample


class ShardWorker(Protocol):
    """Does the work of one shard at a time; built once in each actor."""

    def __init__(self, job: Job) -> None: ...

    def work(self, path: Path, samples: list[Sample]) -> ShardSummary:
        """Write the shard at `path`, whole; a shard that is already there is only summed up."""


def connect() -> None:
    """Join the Ray cluster at RAY_ADDRESS, or start one on this machine."""
    import ray

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    if not ray.is_initialized():
        ray.init(
            address=os.environ.get("RAY_ADDRESS"),
            log_to_driver=False,
            include_dashboard=False,
            logging_level=logging.WARNING,
        )


def run_over_shards(
    job: Job,
    work: Path,
    worker: type[ShardWorker],
    samples: Sequence[Sample],
    bad: Sequence[BadLine],
    folder: str,
) -> dict[str, Any]:
    """Let actors of `worker` write one shard for each `shard_samples` samples.

    Args:
        job: its settings hold `shard_samples` and `preprocessing.max_bad_fraction`.
        work: the stage's work folder; gets the journal and the quarantine.
        worker: built with the job in each actor.
        samples: in order; shard k holds the k-th slice.
        bad: lines that were no samples.
        folder: of the shards, below `work`.

    Returns:
        Totals for the manifest.

    Raises:
        StageError: more than the allowed fraction of the samples could not be used.
    """
    settings: Any = job.settings
    (work / folder).mkdir(exist_ok=True)
    journal = Journal(work, total=len(samples), unit="samples")
    total = ShardSummary(len(bad), 0, 0, 0, tuple(bad))
    started = time.monotonic()
    allowed = int(settings.preprocessing.max_bad_fraction * (len(samples) + len(bad)))
    _check_bad(total, allowed, job.stage)
    for summary in _summaries(job, work / folder, worker, samples, settings.shard_samples):
        total = add_summaries(total, summary)
        done = total.samples - len(bad)
        rate = done / (time.monotonic() - started)
        journal.write(done, samples_per_second=rate, rows=total.rows, quarantined=len(total.bad))
        _check_bad(total, allowed, job.stage)
    quarantine = sorted(total.bad, key=lambda line: line.line)
    (work / QUARANTINE_FILE).write_text("".join(json.dumps(asdict(line)) + "\n" for line in quarantine))
    return {**asdict(total), "bad": None, "quarantined": len(total.bad)}


def add_summaries(one: ShardSummary, other: ShardSummary) -> ShardSummary:
    """The totals of two shards."""
    return ShardSummary(
        samples=one.samples + other.samples,
        rows=one.rows + other.rows,
        response_tokens=one.response_tokens + other.response_tokens,
        bytes=one.bytes + other.bytes,
        bad=one.bad + other.bad,
    )


def _summaries(
    job: Job, folder: Path, worker: type[ShardWorker], samples: Sequence[Sample], size: int
) -> Iterator[ShardSummary]:
    from stages.cache.shard import shard_path

    shards = [
        (shard_path(folder, index), list(samples[start : start + size]))
        for index, start in enumerate(range(0, len(samples), size))
    ]
    if job.resources.workers == 0:
        local = worker(job)
        yield from (local.work(path, slice_) for path, slice_ in shards)
        return
    yield from _with_ray_data(job, worker, shards)


def _with_ray_data(
    job: Job, worker: type[ShardWorker], shards: list[tuple[Path, list[Sample]]]
) -> Iterator[ShardSummary]:
    import ray

    connect()
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    resources = job.resources
    rows = [{"path": str(path), "samples": pickle.dumps(samples)} for path, samples in shards]
    summaries = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _ShardActor,  # type: ignore[arg-type]
        fn_constructor_args=(worker, job.model_dump_json()),
        compute=_pool(resources.workers, len(shards)),
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker,
    )
    for row in summaries.iter_rows():
        summary = json.loads(row["summary"])
        yield ShardSummary(**{**summary, "bad": tuple(BadLine(**line) for line in summary["bad"])})


def _pool(workers: int | tuple[int, int], shards: int) -> Any:
    """As many actors as asked for, or as the cluster has within bounds; never more than shards."""
    import ray

    if isinstance(workers, int):
        return ray.data.ActorPoolStrategy(size=min(workers, shards))
    least, most = (min(count, shards) for count in workers)
    return ray.data.ActorPoolStrategy(min_size=least, max_size=most)


class _ShardActor:
    def __init__(self, worker: type[ShardWorker], job: str) -> None:
        self._worker = worker(Job.model_validate_json(job))

    def __call__(self, shard: dict[str, Any]) -> dict[str, str]:
        summary = self._worker.work(Path(shard["path"]), pickle.loads(shard["samples"]))
        return {"summary": json.dumps(asdict(summary))}


def _check_bad(total: ShardSummary, allowed: int, stage: str) -> None:
    if len(total.bad) > allowed:
        first = total.bad[0]
        raise StageError(
            f"{stage}: {len(total.bad)} samples cannot be used, preprocessing.max_bad_fraction allows {allowed}; "
            f"the first is {first.id} (line {first.line}): {first.reason}"
        )
