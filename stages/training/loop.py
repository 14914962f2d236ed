"""The training loop of verbalization, interaction and reinforcement.

One optimizer step takes `batch_size` samples over all workers and all micro-batches, and its loss is
the mean over all their response tokens, however they are cut into micro-batches and dealt to workers.
A checkpoint holds the trained parameters, the optimizer, the step and the samples that could not be used;
the order of the samples and every random number follow from the step, so a resumed run equals an
uninterrupted one.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, replace
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from stages.contract import Journal, Resources, StageError
from stages.contract.artifact import SCRATCH_FOLDER
from stages.contract.files import NOTICE_FILE, STOP_FILE
from stages.contract.place import Place, write_whole
from stages.data.encoding import Batch
from stages.data.sample import BadLine
from stages.memory import peak_memory_bytes
from stages.training.checkpoint import Checkpoints
from stages.training.loader import Loader, StepData
from stages.training.objective import Objective
from stages.training.optimizer import learning_rate, make_optimizer
from stages.training.order import Order, step_seed
from stages.training.workers import distribute

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


@dataclass(frozen=True)
class Outcome:
    """What is to be said of a training that came to its end.

    Attributes:
        bad: all workers' samples that could not be used.
        waiting_share: of this worker's time, waiting for data.
        stopped_at: the last step, if the training was asked to stop before its end.
    """

    bad: tuple[BadLine, ...]
    waiting_share: float
    stopped_at: int | None = None


class Counts(NamedTuple):
    """How much there is of a step: one worker's numbers, or [workers] float64 of all."""

    micro_batches: Any
    response_tokens: Any
    tokens: Any
    padded_tokens: Any
    samples: Any
    bad_samples: Any
    asked_to_stop: Any


class Loop:
    """Trains an objective on this worker."""

    def __init__(self, objective: Objective, work: Place, resources: Resources) -> None:
        self._objective = objective
        self._schedule = objective.schedule
        self._work = work
        self._checkpoints = Checkpoints(work)
        self._order = Order(len(objective.samples), objective.schedule)
        self._shards = resources.parallelism == "fsdp"
        self._accelerator, self._module = distribute(objective, resources)
        self._rank, self._workers = self._accelerator.process_index, self._accelerator.num_processes
        self._bad: dict[str, BadLine] = {}
        self._stopping = False
        self._looked_for_stop = 0.0
        self._optimizer = make_optimizer(objective.parameters(), objective.schedule)

    def run(self) -> Outcome:
        """Train to the last step, from the newest checkpoint if there is one.

        Raises:
            StageError: a loss or a gradient is not finite, memory does not suffice, or too many samples
                cannot be used.
        """
        with self._checkpoints:
            return self._run(self._restore())

    def _run(self, start: int) -> Outcome:
        journal = self._journal(start)
        seconds = waiting = 0.0
        began = time.monotonic()
        loader = Loader(self._objective, self._order, self._rank, self._workers)
        for step, data in enumerate(loader.steps(start), start):
            waited = time.monotonic() - began
            numbers = self._try_step(step, data)
            took = time.monotonic() - began
            seconds, waiting = seconds + took, waiting + waited
            if journal:
                journal.write(step + 1, **_rates(numbers, took), seconds_waiting=waited)
            is_last = step + 1 == self._order.steps or self._stopping
            if (step + 1) % self._schedule.checkpoint_every_steps == 0 or is_last:
                if journal:
                    journal.flush()
                self._checkpoint(step + 1)
            if self._stopping and step + 1 < self._order.steps:
                return Outcome((), 0.0, stopped_at=step + 1)
            began = time.monotonic()
        return Outcome(tuple(self._bad.values()), waiting / seconds if seconds else 0.0)

    @property
    def is_first_worker(self) -> bool:
        """Whether this worker writes what all of them made."""
        return self._rank == 0

    def trained_state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Trained parameters by name, and the optimizer's state; whole, on the CPU. All workers have to call."""
        return get_state_dict(self._module, self._optimizer, options=_WHOLE)

    def _try_step(self, step: int, data: StepData) -> dict[str, Any]:
        try:
            return self._step(step, data)
        except StageError as error:
            raise StageError(f"step {step + 1}: {error}; the last checkpoint is kept") from error
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise StageError(f"step {step + 1}: {_advice(self._schedule, data)} ({error})") from error

    def _step(self, step: int, data: StepData) -> dict[str, Any]:
        rate = learning_rate(step, self._order.steps, self._schedule)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._seed(step)
        self._objective.progress = step / max(1, self._order.steps - 1)
        counts = self._counts(data)
        self._stopping = bool(counts.asked_to_stop.any())
        if counts.bad_samples.any():
            self._quarantine(data.bad)
        if not data.batches:
            first = data.bad[0]
            raise StageError(f"none of a worker's samples can be used; the first is {first.id}: {first.reason}")
        most, tokens = int(counts.micro_batches.max()), counts.response_tokens.sum()
        sums = self._accumulate(_filled(data.batches, most), tokens)
        norm = self._clip()
        self._optimizer.step()
        self._optimizer.zero_grad()
        means = {name: value / tokens for name, value in self._sum_over_workers(sums).items()}
        means |= self._objective.derive(means)
        return {
            **{name: value.tolist() for name, value in means.items()},
            "learning_rate": rate,
            "gradient_norm": norm,
            "samples": int(counts.samples.sum()),
            "tokens": int(counts.tokens.sum()),
            "padding": 1 - float(counts.tokens.sum() / counts.padded_tokens.sum()),
            "micro_batches": most,
            "memory_gb": peak_memory_bytes() / 1e9,
        }

    def _seed(self, step: int) -> None:
        """Random numbers of a step: dropout is each worker's own, draws are where they are not made in common."""
        torch.manual_seed(step_seed(self._schedule.seed, step, self._rank))
        drawing = 0 if self._objective.common_draws else self._rank
        self._objective.generator.manual_seed(step_seed(self._schedule.seed, step, drawing))

    def _counts(self, data: StepData) -> Counts:
        masks = [batch.inputs["attention_mask"] for batch in data.batches]
        own = Counts(
            micro_batches=len(data.batches),
            response_tokens=sum(len(batch.labels) for batch in data.batches),
            tokens=sum(int(mask.sum()) for mask in masks),
            padded_tokens=sum(mask.numel() for mask in masks),
            samples=sum(len(batch.sample_ids) for batch in data.batches),
            bad_samples=len(data.bad),
            asked_to_stop=self._is_asked_to_stop(),
        )
        of_all = self._accelerator.gather(torch.tensor([own], dtype=torch.float64, device=self._accelerator.device))
        return Counts(*of_all.unbind(dim=1))

    def _is_asked_to_stop(self) -> bool:
        """The first worker looks, not more than once a second; all of them end at the same step."""
        if not self._accelerator.is_main_process or time.monotonic() - self._looked_for_stop < 1:
            return False
        self._looked_for_stop = time.monotonic()
        return (self._work / SCRATCH_FOLDER / STOP_FILE).is_file()

    def _accumulate(self, batches: Sequence[Batch], tokens: Tensor) -> dict[str, Tensor]:
        """Add up the gradients of this worker's micro-batches; returns its sums over response tokens."""
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            with nullcontext() if is_last or self._shards else self._accelerator.no_sync(self._module):
                loss = self._module(batch.to(self._accelerator.device))
                # Gradients are averaged over workers; the loss is a mean over all workers' tokens.
                weight = batch.counts * self._workers / tokens
                self._accelerator.backward(loss.total * weight.float())
            if batch.counts:
                for name, value in {"loss": loss.total, **loss.sums}.items():
                    sums[name] = sums.get(name, 0.0) + value.detach().double()
        return sums

    def _clip(self) -> float:
        limit = self._schedule.max_gradient_norm
        parameters = [p for p in self._objective.parameters() if p.requires_grad]
        total = nn.utils.clip_grad_norm_(parameters, limit if limit is not None else float("inf"))
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        if not math.isfinite(norm):
            raise StageError(f"the gradient norm is {norm} though the loss is finite; lower schedule.learning_rate")
        return norm

    def _sum_over_workers(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """All at once."""
        flat = self._accelerator.reduce(torch.cat([value.flatten() for value in values.values()]), reduction="sum")
        pieces = flat.split([value.numel() for value in values.values()])
        return {name: piece.view_as(value) for (name, value), piece in zip(values.items(), pieces, strict=True)}

    def _quarantine(self, own: Sequence[BadLine]) -> None:
        """All workers keep the same list, so that all of them stop where it is too long."""
        bad = gather_object(list(own))
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
        """Copy the state and let a thread write it; of whole copies the first worker's is enough."""
        self._checkpoints.wait()
        if not (self.is_first_worker or self._shards):
            return
        trained, optimizer = self.trained_state()
        if self.is_first_worker:
            bad = [astuple(line) for line in self._bad.values()]
            state = {"step": step, "trained": trained, "optimizer": optimizer, "bad": bad}
            on_cpu = self._accelerator.device.type == "cpu"
            self._checkpoints.save(step, copy.deepcopy(state) if on_cpu else state)

    def _restore(self) -> int:
        """Take up the checkpoint that the first worker found whole; returns its step, 0 without one."""
        step, state = 0, None
        if self.is_first_worker:
            step, state, notice = self._checkpoints.newest()
            if notice:
                write_whole(self._work / SCRATCH_FOLDER / NOTICE_FILE, notice)
        (step,) = broadcast_object_list([step])
        if not step:
            return 0
        state = state or self._checkpoints.load(step)
        self._bad = {line.id: line for line in (BadLine(*values) for values in state["bad"])}
        trained = {name for name, parameter in self._objective.named_parameters() if parameter.requires_grad}
        if missing := sorted(trained - state["trained"].keys()):
            raise StageError(f"the checkpoint of step {step} lacks {missing[:3]}; force the stage anew")
        set_state_dict(
            self._module,
            self._optimizer,
            model_state_dict=state["trained"],
            optim_state_dict=state["optimizer"],
            options=replace(_WHOLE, strict=False),
        )
        return step


def _filled(batches: Sequence[Batch], count: int) -> list[Batch]:
    """As many micro-batches as the worker with the most has: the last one again, for nothing."""
    return [*batches, *[replace(batches[-1], counts=False)] * (count - len(batches))]


def _rates(numbers: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Counts of a step as what they are in a second, beside its other numbers."""
    samples, tokens = numbers.pop("samples"), numbers.pop("tokens")
    return {**numbers, "samples_per_second": samples / seconds, "tokens_per_second": tokens / seconds}


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text


def _advice(schedule: Any, data: StepData) -> str:
    largest = max(batch.inputs["input_ids"].numel() for batch in data.batches)
    return (
        f"out of memory in a micro-batch of up to {largest} padded tokens. Lower schedule.micro_batch_tokens "
        f"(now {schedule.micro_batch_tokens}) or schedule.logits_chunk_mb (now {schedule.logits_chunk_mb}), set "
        f"schedule.gradient_checkpointing=true (now {str(schedule.gradient_checkpointing).lower()}), train with LoRA "
        "(`lora: {rank: 64}`), or shard the student over workers with resources.parallelism=fsdp"
    )
