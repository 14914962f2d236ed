"""The loader: what it gives depends on the step alone, and it works while others work."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stages.cache.shard import Key
from stages.contract import ArtifactError
from stages.contract.settings import Preprocessing, Schedule
from stages.data.encoding import Encoded, Encoder
from stages.data.sample import Sample
from stages.training.loader import Loader, StepData, agreeing
from stages.training.order import Order
from tests.stages.training.objectives import Unigrams


def make_loader(samples: list[Sample], encoder: Encoder, rank: int = 0, workers: int = 1, **changes: Any) -> Loader:
    plan = Schedule(**{"steps": 5, "batch_size": 6, "micro_batch_tokens": 60} | changes)
    return Loader(Unigrams(samples, encoder, plan), Order(len(samples), plan), rank, workers)


def content(data: StepData) -> list[tuple[Any, ...]]:
    return [
        (batch.sample_ids, batch.labels.tolist(), {name: tensor.tolist() for name, tensor in batch.inputs.items()})
        for batch in data.batches
    ]


def test_neither_threads_nor_the_start_change_what_a_step_gets(samples: list[Sample], encoder: Encoder) -> None:
    """Red if a thread's processor, its memory or its progress leaks into the data."""
    expected = [content(data) for data in make_loader(samples, encoder).steps(0)]
    assert len(expected) == 5
    fresh = Encoder(encoder.processor, Preprocessing(), memory_bytes=0)
    for threads in (1, 3):
        found = [content(data) for data in make_loader(samples, fresh, loader_threads=threads).steps(0)]
        assert found == expected
    assert [content(data) for data in make_loader(samples, fresh).steps(3)] == expected[3:]


def test_all_workers_together_load_the_steps_samples(samples: list[Sample], encoder: Encoder) -> None:
    loaders = [make_loader(samples, encoder, rank, 2) for rank in range(2)]
    for step, parts in enumerate(zip(*(loader.steps(0) for loader in loaders), strict=True)):
        ids = [name for part in parts for batch in part.batches for name in batch.sample_ids]
        plan = Schedule(steps=5, batch_size=6)
        assert sorted(ids) == sorted(samples[i].id for i in Order(len(samples), plan).samples_of(step))


class Slow(Encoder):
    """Takes a while for every sample."""

    SECONDS = 0.02

    def encode(self, sample: Sample) -> Encoded:
        time.sleep(self.SECONDS)
        return super().encode(sample)


def test_data_is_read_while_a_step_runs(samples: list[Sample], encoder: Encoder) -> None:
    """Six samples of 20 ms are ready after a step of 200 ms. Red if they are loaded when they are asked for."""
    slow = Slow(encoder.processor, Preprocessing())
    waited = []
    steps = make_loader(samples, slow).steps(0)
    for step in range(5):
        began = time.monotonic()
        next(steps)
        waited.append(time.monotonic() - began)
        if step < 4:
            time.sleep(0.2)
    assert waited[0] > 6 * Slow.SECONDS
    assert median(waited[1:]) < 3 * Slow.SECONDS, waited


def test_an_error_of_a_thread_reaches_the_loop_at_its_step(samples: list[Sample], encoder: Encoder) -> None:
    class Broken:
        def read(self, sample_id: str) -> Any:
            sample = next(sample for sample in samples if sample.id == sample_id)
            return SimpleNamespace(key=Key.of(encoder.encode(sample)))

        def fields(self, sample_ids: Any, response_ids: torch.Tensor) -> Any:
            if samples[victim].id in sample_ids:
                raise ArtifactError("the shard is damaged")
            return []

    loader = make_loader(samples, encoder, batch_size=1)
    victim = loader._order.samples_of(2)[0]
    loader._objective.cache = Broken()  # type: ignore[assignment]
    steps = loader.steps(0)
    assert [len(next(steps).batches) for _ in range(2)] == [1, 1]
    with pytest.raises(ArtifactError, match="the shard is damaged"):
        next(steps)


def test_bad_samples_come_with_their_step(samples: list[Sample], encoder: Encoder) -> None:
    fresh = Encoder(encoder.processor, Preprocessing(max_tokens=8), memory_bytes=0)
    data = next(make_loader([samples[0]], fresh, batch_size=1).steps(0))
    assert data.batches == ()
    assert [line.id for line in data.bad] == [samples[0].id]
    assert "max_tokens" in data.bad[0].reason


def test_a_sample_that_the_teacher_saw_otherwise_is_refused_with_both_views(
    samples: list[Sample], encoder: Encoder
) -> None:
    """Red if only response tokens are compared: another image grid leaves them as they are."""
    pictured = [sample for sample in samples if sample.images]
    encoded = [encoder.encode(sample) for sample in pictured]
    other = replace(encoded[0], extras={**encoded[0].extras, "image_grid_thw": torch.tensor([[1, 2, 8]])})
    views = {one.sample.id: Key.of(one) for one in [other, *encoded[1:]]}

    class Cache:
        def read(self, sample_id: str) -> Any:
            return SimpleNamespace(key=views[sample_id])

    good, bad = agreeing(encoded, Cache())  # type: ignore[arg-type]
    assert good == encoded[1:]
    assert [line.id for line in bad] == [pictured[0].id]
    assert "the teacher saw " in bad[0].reason
    assert "image_grid_thw [[1, 2, 8]]" in bad[0].reason
    assert f"the student sees {encoded[0].signature}" in bad[0].reason


def test_one_other_token_is_another_signature(samples: list[Sample], encoder: Encoder) -> None:
    encoded = encoder.encode(samples[0])
    ids = encoded.input_ids.clone()
    ids[0] += 1
    assert replace(encoded, input_ids=ids).signature != encoded.signature
