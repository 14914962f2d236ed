"""The order of samples: every epoch whole, every worker's share part of one batch, nothing but (seed, place)."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
import torch

from stages.contract.settings import Schedule
from stages.training import order as module
from stages.training.order import Order, step_seed


def make_order(samples: int, **schedule: object) -> Order:
    return Order(samples, Schedule(**schedule))


@pytest.mark.parametrize(("samples", "batch"), [(12, 4), (10, 4), (7, 7), (5, 8), (1, 3)])
def test_every_epoch_is_a_permutation(samples: int, batch: int) -> None:
    """Also where a step spans the end of an epoch, or several epochs. Red if a step's rest is dropped."""
    order = make_order(samples, batch_size=batch)
    epochs = 4
    steps = -(-epochs * samples // batch)
    stream = [index for step in range(steps) for index in order.samples_of(step)]
    for epoch in range(epochs):
        assert sorted(stream[epoch * samples : (epoch + 1) * samples]) == list(range(samples)), f"epoch {epoch}"


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [8, 13])
def test_all_workers_together_see_the_one_workers_batch(workers: int, batch: int) -> None:
    """No sample twice or never, nearly as many for each. Red if ranks shuffle for themselves."""
    order = make_order(23, batch_size=batch)
    for step in range(7):
        shares = [order.samples_of(step, rank, workers) for rank in range(workers)]
        assert Counter(chain.from_iterable(shares)) == Counter(order.samples_of(step))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_workers_without_a_sample_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="batch_size 2 leaves some of the 4 workers without a sample"):
        make_order(30, batch_size=2).samples_of(0, 0, 4)


def test_the_stream_depends_on_nothing_but_seed_and_place() -> None:
    """Not on the batch size, the workers, torch's own random state, or which steps were asked for before."""

    def stream(batch: int) -> list[int]:
        order = make_order(11, batch_size=batch, seed=5)
        return [index for step in range(24 // batch) for index in order.samples_of(step)]

    expected = stream(1)
    assert all(stream(batch) == expected for batch in (2, 3, 8, 24))
    torch.manual_seed(123)
    module._permutation.cache_clear()
    later = make_order(11, batch_size=8, seed=5)
    assert later.samples_of(2) == expected[16:24]
    assert later.samples_of(0) == expected[:8]


def test_asking_for_an_order_leaves_torchs_random_state_alone() -> None:
    """Red if the global generator is used: a resumed run would draw other dropout masks."""
    state = torch.get_rng_state()
    make_order(11, batch_size=4, seed=77).samples_of(9)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    """Red if the seed is not used, or every epoch repeats the first one's order."""
    orders = [
        tuple(make_order(50, batch_size=50, seed=seed).samples_of(epoch)) for seed in range(3) for epoch in range(3)
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


def test_every_step_and_worker_has_random_numbers_of_its_own() -> None:
    """Red if a step or a worker repeats another's. Seeds fit into 63 bits, as torch wants them."""
    seeds = [step_seed(seed, step, worker) for seed in range(3) for step in range(50) for worker in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)
