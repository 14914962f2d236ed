"""The order of samples: every epoch whole, every worker's share part of one batch, nothing but (seed, place)."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from stages.contract.settings import Schedule
from stages.training import order as module
from stages.training.order import Order


def make_order(samples: int, **schedule: object) -> Order:
    return Order(samples, Schedule(**schedule))


def step_samples(order: Order, step: int, workers: int = 1) -> list[int]:
    """All samples of one step, of all workers."""
    return [index for rank in range(workers) for micro in order.micro_batches(step, rank, workers) for index in micro]


@pytest.mark.parametrize(("samples", "batch"), [(12, 4), (10, 4), (7, 7), (5, 8), (1, 3)])
def test_every_epoch_is_a_permutation(samples: int, batch: int) -> None:
    """Also where a step spans the end of an epoch, or several epochs. Red if a step's rest is dropped."""
    order = make_order(samples, batch_size=batch, micro_batch_size=batch)
    epochs = 4
    steps = -(-epochs * samples // batch)
    stream = [index for step in range(steps) for index in order.micro_batches(step)[0]]
    for epoch in range(epochs):
        assert sorted(stream[epoch * samples : (epoch + 1) * samples]) == list(range(samples)), f"epoch {epoch}"


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize(("batch", "micro"), [(8, 1), (8, 2), (8, 8), (16, 3)])
def test_all_workers_together_see_the_one_workers_batch(workers: int, batch: int, micro: int) -> None:
    """No sample twice or never. Red if ranks shuffle for themselves, as DistributedSampler's padding does."""
    order = make_order(23, batch_size=batch, micro_batch_size=micro)
    for step in range(7):
        assert Counter(step_samples(order, step, workers)) == Counter(step_samples(order, step))


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 5))
def test_every_rank_has_the_same_number_of_micro_batches(
    samples: int, per_worker: int, micro: int, workers: int, step: int
) -> None:
    """Else a rank waits for ever in a reduction. None is larger than it may be, and nothing is lost."""
    batch = per_worker * workers
    order = make_order(samples, batch_size=batch, micro_batch_size=micro)
    ranks = [order.micro_batches(step, rank, workers) for rank in range(workers)]
    assert len({len(batches) for batches in ranks}) == 1, [len(batches) for batches in ranks]
    assert all(len(indices) <= micro for batches in ranks for indices in batches)
    assert len(step_samples(order, step, workers)) == batch
    assert Counter(step_samples(order, step, workers)) == Counter(step_samples(order, step))


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(0, 5))
def test_no_micro_batch_is_empty_where_the_batch_divides(per_worker: int, workers: int, micro: int, step: int) -> None:
    order = make_order(30, batch_size=per_worker * workers, micro_batch_size=micro)
    assert all(order.micro_batches(step, rank, workers)[-1] for rank in range(workers))


@pytest.mark.parametrize(("batch", "workers"), [(5, 4), (2, 4)])
def test_a_batch_that_cannot_be_dealt_out_is_refused_with_both_numbers(batch: int, workers: int) -> None:
    order = make_order(30, batch_size=batch, micro_batch_size=1)
    with pytest.raises(ValueError, match=f"batch_size {batch} has to be a multiple of the {workers} workers"):
        order.micro_batches(0, 0, workers)


def test_the_stream_depends_on_nothing_but_seed_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the batch size, the workers, torch's own random state, or which steps were asked for before."""

    def stream(batch: int) -> list[int]:
        order = make_order(11, batch_size=batch, micro_batch_size=batch, seed=5)
        return [index for step in range(24 // batch) for index in order.micro_batches(step)[0]]

    expected = stream(1)
    assert all(stream(batch) == expected for batch in (2, 3, 8, 24))
    torch.manual_seed(123)
    module._permutation.cache_clear()
    later = make_order(11, batch_size=8, micro_batch_size=8, seed=5)
    assert later.micro_batches(2)[0] == expected[16:24]
    assert later.micro_batches(0)[0] == expected[:8]


def test_asking_for_an_order_leaves_torchs_random_state_alone() -> None:
    """Red if the global generator is used: a resumed run would draw other dropout masks."""
    state = torch.get_rng_state()
    make_order(11, batch_size=4, seed=77).micro_batches(9)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    """Red if the seed is not used, or every epoch repeats the first one's order."""
    orders = [
        tuple(make_order(50, batch_size=50, micro_batch_size=50, seed=seed).micro_batches(epoch)[0])
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == len(orders)
    assert tuple(range(50)) not in orders


@pytest.mark.parametrize(
    ("samples", "schedule", "expected"),
    [
        (2_900_000, {"batch_size": 512}, 5664),
        (1500, {"batch_size": 30, "epochs": 8}, 400),
        (100, {"batch_size": 8, "epochs": 0.5}, 6),
        (1500, {"batch_size": 30, "epochs": 8, "steps": 3}, 3),
        (3, {"batch_size": 512}, 1),
    ],
    ids=["the paper's epoch", "epochs", "a fraction of one", "steps go before epochs", "never none"],
)
def test_steps_of_a_stage(samples: int, schedule: dict[str, object], expected: int) -> None:
    """epochs · samples / batch_size, rounded."""
    assert make_order(samples, **schedule).steps == expected
