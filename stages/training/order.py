"""The order of training samples and all random numbers: functions of (seed, epoch, position).

A step's samples are drawn without regard to their length, and its loss is a mean over all their
tokens; only within the step are they grouped by length, so that no step is of short samples only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
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

    def samples_of(self, step: int, rank: int = 0, workers: int = 1) -> list[int]:
        """Sample indices of one worker in one step.

        Raises:
            ValueError: there are more workers than samples in a step.
        """
        size = self.schedule.batch_size
        if size < workers:
            raise ValueError(f"schedule.batch_size {size} leaves some of the {workers} workers without a sample")
        return [self._at(place) for place in range(step * size + rank, (step + 1) * size, workers)]

    def _at(self, place: int) -> int:
        epoch, position = divmod(place, self.samples)
        return _permutation(self.samples, self.schedule.seed, epoch)[position]


def step_seed(seed: int, step: int, worker: int) -> int:
    """Seed of a worker's random numbers in one step; a resumed run needs no other random state."""
    return int(np.random.SeedSequence([seed, step, worker]).generate_state(1, np.uint64)[0] >> 1)


@lru_cache(maxsize=4)
def _permutation(samples: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(samples, generator=generator).tolist()
