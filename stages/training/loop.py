"""The training loop of verbalization, interaction and reinforcement.

One optimizer step takes `batch_size` samples over all workers and all micro-batches, and its loss is
the mean over all their response tokens. A checkpoint holds the trained parameters, the optimizer, all
random states and the step; the order of the samples follows from the step, so a resumed run equals
an uninterrupted one.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.train
import torch
from accelerate import Accelerator
from torch import Tensor

from stages.contract import Journal, StageError
from stages.contract.settings import Schedule
from stages.data.encoding import Batch, collate, encode_all
from stages.data.sample import BadLine
from stages.training.objective import Loss, Objective
from stages.training.optimizer import learning_rate, make_optimizer
from stages.training.order import Order

CHECKPOINT_FILE = "state.pt"


class Loop:
    """Trains an objective on this worker."""

    def __init__(self, objective: Objective, schedule: Schedule, work: Path) -> None:
        self._accelerator = Accelerator(mixed_precision="bf16" if schedule.autocast == "bfloat16" else "no")
        self._objective = objective
        self._schedule = schedule
        self._work = work
        self._order = Order(len(objective.samples), schedule)
        self._bad: dict[str, BadLine] = {}
        self._optimizer = make_optimizer(objective.parameters(), schedule)
        self._module, self._optimizer = self._accelerator.prepare(objective, self._optimizer)

    def run(self) -> list[BadLine]:
        """Train to the last step, from the newest checkpoint if there is one.

        Returns:
            The samples that could not be used.

        Raises:
            StageError: a loss is not finite, or too many samples cannot be used.
        """
        start = self._restore()
        journal = self._journal(start)
        for step in range(start, self._order.steps):
            began = time.monotonic()
            numbers = self._step(step)
            numbers["samples_per_second"] = self._schedule.batch_size / (time.monotonic() - began)
            if journal:
                journal.write(step + 1, **numbers)
            if (step + 1) % self._schedule.checkpoint_every_steps == 0 or step + 1 == self._order.steps:
                self._checkpoint(step + 1)
        return list(self._bad.values())

    def _step(self, step: int) -> dict[str, Any]:
        rate = learning_rate(step, self._order.steps, self._schedule)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        batches = list(self._batches(step))
        tokens = self._sum_over_workers(torch.tensor(float(sum(len(batch.labels) for batch in batches))))
        losses = [self._backward(batch, tokens, step) for batch in batches]
        norm = self._clip()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {**self._means(losses, tokens), "learning_rate": rate, "gradient_norm": norm}

    def _batches(self, step: int) -> Iterator[Batch]:
        """This worker's micro-batches, without the samples that cannot be used."""
        workers, rank = self._accelerator.num_processes, self._accelerator.process_index
        for indices in self._order.micro_batches(step, rank, workers):
            encoded, bad = encode_all(self._objective.encoder, [self._objective.samples[i] for i in indices])
            self._quarantine(bad)
            if not encoded:
                raise StageError(f"step {step}: no sample of a micro-batch can be used: {bad[0].id}: {bad[0].reason}")
            yield collate(encoded, self._objective.encoder.pad_id).to(self._accelerator.device)

    def _backward(self, batch: Batch, tokens: Tensor, step: int) -> Loss:
        loss: Loss = self._module(batch)
        if not torch.isfinite(loss.total):
            parts = {name: value.tolist() for name, value in loss.sums.items()}
            raise StageError(f"step {step}: the loss is not finite ({parts}); samples {', '.join(batch.sample_ids)}")
        # DDP averages gradients over workers; the loss is a mean over all workers' tokens.
        self._accelerator.backward(loss.total * self._accelerator.num_processes / tokens)
        return loss

    def _clip(self) -> float:
        limit = self._schedule.max_gradient_norm
        parameters = [p for p in self._objective.parameters() if p.requires_grad]
        norm = self._accelerator.clip_grad_norm_(parameters, limit if limit is not None else float("inf"))
        return float(norm) if norm is not None else float("nan")

    def _means(self, losses: list[Loss], tokens: Tensor) -> dict[str, Any]:
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=tokens.device))
        notes: dict[str, list[Any]] = defaultdict(list)
        for loss in losses:
            for name, value in {"loss": loss.total, **loss.sums}.items():
                sums[name] = sums[name] + value.detach()
            for name, note in loss.notes.items():
                notes[name].append(note)
        means = {name: self._sum_over_workers(value) / tokens for name, value in sums.items()}
        return {name: value.tolist() for name, value in means.items()} | notes

    def _sum_over_workers(self, value: Tensor) -> Tensor:
        return self._accelerator.reduce(value.to(self._accelerator.device), reduction="sum")

    def _quarantine(self, bad: list[BadLine]) -> None:
        self._bad |= {line.id: line for line in bad}
        allowed = int(self._objective.preprocessing.max_bad_fraction * len(self._objective.samples))
        if len(self._bad) > allowed:
            raise StageError(
                f"{len(self._bad)} samples cannot be used, preprocessing.max_bad_fraction allows {allowed}; "
                f"the last is {bad[-1].id} (line {bad[-1].line}): {bad[-1].reason}"
            )

    def _journal(self, start: int) -> Journal | None:
        if not self._accelerator.is_main_process:
            return None
        return Journal(self._work, total=self._order.steps, unit="steps", start=start)

    def _checkpoint(self, step: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            if self._accelerator.is_main_process:
                torch.save(self._state(step), Path(folder) / CHECKPOINT_FILE)
            checkpoint = ray.train.Checkpoint.from_directory(folder) if self._accelerator.is_main_process else None
            ray.train.report({"step": step}, checkpoint=checkpoint)

    def _state(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "trained": self._objective.trained_state(),
            "optimizer": self._optimizer.state_dict(),
            "torch_random": torch.get_rng_state(),
            "draws": self._objective.generator.get_state(),
        }

    def _restore(self) -> int:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / CHECKPOINT_FILE, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, parameter in self._objective.trained_state().items():
                parameter.copy_(state["trained"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_random"])
        self._objective.generator.set_state(state["draws"])
        return state["step"]
