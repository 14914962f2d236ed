"""The loader: a worker's micro-batches, read, decoded and encoded while earlier steps run."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from stages.cache.reader import CacheReader
from stages.cache.shard import Key
from stages.data.encoding import Batch, Encoded, Encoder, collate, encode_all
from stages.data.packing import pack
from stages.data.sample import BadLine
from stages.training.objective import Objective
from stages.training.order import Order


@dataclass(frozen=True)
class StepData:
    """One worker's part of one optimizer step.

    Attributes:
        batches: its micro-batches; there are none if no sample can be used.
        bad: its samples that cannot be used.
    """

    batches: tuple[Batch, ...]
    bad: tuple[BadLine, ...]


class Loader:
    """Reads ahead in `schedule.loader_threads` threads, each at a coming step.

    What it gives depends on the step alone. In memory are the step that runs and one for each thread.
    """

    def __init__(self, objective: Objective, order: Order, rank: int, workers: int) -> None:
        self._objective = objective
        self._order = order
        self._place = (rank, workers)
        self._own = threading.local()

    def steps(self, start: int) -> Iterator[StepData]:
        """The data of step `start` and of all that follow, in order."""
        threads = self._objective.schedule.loader_threads
        coming: deque[Future[StepData]] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
        try:
            for step in range(start, self._order.steps):
                coming.append(pool.submit(self._load, step))
                if len(coming) > threads:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _load(self, step: int) -> StepData:
        objective, schedule = self._objective, self._objective.schedule
        samples = [objective.samples[i] for i in self._order.samples_of(step, *self._place)]
        encoded, bad = encode_all(self._encoder(), samples)
        if objective.cache is not None:
            encoded, others = agreeing(encoded, objective.cache)
            bad = bad + others
        groups = pack(
            [len(sample.input_ids) for sample in encoded],
            max_tokens=schedule.micro_batch_tokens,
            max_samples=schedule.micro_batch_size,
        )
        batches = [collate([encoded[i] for i in group], objective.encoder.pad_id) for group in groups]
        return StepData(tuple(self._with_teacher(batch) for batch in batches), tuple(bad))

    def _with_teacher(self, batch: Batch) -> Batch:
        cache = self._objective.cache
        return batch if cache is None else replace(batch, cached=cache.fields(batch.sample_ids, batch.labels))

    def _encoder(self) -> Encoder:
        """A processor serves one thread at a time."""
        if not hasattr(self._own, "encoder"):
            self._own.encoder = self._objective.encoder.for_another_thread()
        return self._own.encoder


def agreeing(samples: list[Encoded], cache: CacheReader) -> tuple[list[Encoded], list[BadLine]]:
    """The samples that teacher and student see alike; the others are named with both views.

    Another image grid, template or tokenizer shifts the teacher's states against the student's, and
    training would go on, on noise (METHOD §6).
    """
    good, bad = [], []
    for encoded in samples:
        sample, key = encoded.sample, cache.read(encoded.sample.id).key
        if reason := _disagreement(encoded, key):
            bad.append(BadLine(sample.id, sample.line, reason))
        else:
            good.append(encoded)
    return good, bad


def _disagreement(encoded: Encoded, seen: Key) -> str:
    """How a sample is another one for the student than it was for the teacher; empty if it is not."""
    if seen.signature != encoded.signature:
        return f"the teacher saw {seen.signature}, the student sees {encoded.signature}"
    before, now = (content_hash.partition("-")[0] for content_hash in (seen.content_hash, encoded.content_hash))
    return "" if now == before else f"its pictures or messages changed: {before} for the teacher, now {now}"
