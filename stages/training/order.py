"""The order of training samples: a function of (seed, epoch, position) and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from stages.contract.settings import Schedule


@dataclass(frozen=True)
class Order:
    """Which samples each worker sees in each optimizer step.

    The epochs' permutations stand one after the other; step k takes the k-th `batch_size` of them.
    Workers take turns, so the same samples make up a step whatever the number of workers.

    Attributes:
        samples: how many there are.
        schedule: holds batch sizes and seed.
    """

    samples: int
    schedule: Schedule

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage."""
        whole = self.schedule.epochs * self.samples / self.schedule.batch_size
        return self.schedule.steps or max(1, round(whole))

    def micro_batches(self, step: int, rank: int = 0, workers: int = 1) -> list[list[int]]:
        """Sample indices of one worker in one step, cut into micro-batches.

        Every worker gets the same number of micro-batches, so that none waits for another's.

        Raises:
            ValueError: the batch cannot be dealt out evenly.
        """
        size = self.schedule.batch_size
        if size % workers:
            raise ValueError(f"schedule.batch_size {size} has to be a multiple of the {workers} workers")
        mine = [self._at(place) for place in range(step * size + rank, (step + 1) * size, workers)]
        count = -(-size // (workers * self.schedule.micro_batch_size))
        return [mine[index::count] for index in range(count)]

    def _at(self, place: int) -> int:
        epoch, position = divmod(place, self.samples)
        return _permutation(self.samples, self.schedule.seed, epoch)[position]


@lru_cache(maxsize=4)
def _permutation(samples: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(samples, generator=generator).tolist()
