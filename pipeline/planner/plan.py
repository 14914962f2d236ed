"""The plan of an experiment: what each stage computes, holds in memory and writes.

Every number is a consequence of the configuration, of the two models' sizes, of `Facts` about the
samples, and of a stated throughput. Nothing runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any

from pipeline.experiment import Experiment
from pipeline.planner import costs
from pipeline.planner.caches import Caches, CodecPlan, Disk
from pipeline.planner.catalogue import model_size
from pipeline.planner.facts import Facts
from pipeline.planner.shards import CODECS, STATES
from pipeline.planner.work import Cost, Machine, Recipe, Workload
from stages.contract import Resources
from stages.contract.settings import (
    CaptureSettings,
    InteractionSettings,
    ModelLoading,
    PrecomputeSettings,
    ReinforcementSettings,
    Settings,
    VerbalizationSettings,
    resolve_target_layers,
)

GPU_TFLOPS = 400.0
"""Sustained in bfloat16: about 40 % of the peak of an NVIDIA H100."""
GPU_MEMORY_RATE = 2e12
CPU_MEMORY_RATE = 1e10
"""Bytes a second that are read or written, sustained."""
NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
Training = VerbalizationSettings | InteractionSettings | ReinforcementSettings


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        stage: its name.
        samples: that it processes, over all epochs.
        cost: work over all workers, memory of one.
        workers: how many there are.
        accelerators: of each worker; 0 computes on CPUs.
        busy: of them at a time: a model spread over several is passed through one after the other.
        seconds: at the stated throughput; None on CPUs without one: what bounds a small model there is no arithmetic.
        disk: of a stage that writes shards.
    """

    stage: str
    samples: float
    cost: Cost
    workers: int
    accelerators: float
    busy: float
    seconds: float | None
    disk: Disk | None


class Planner:
    """Says what the stages of one experiment cost."""

    def __init__(self, experiment: Experiment, facts: Facts, tflops: float | None = None) -> None:
        """Read both models' configurations.

        Args:
            experiment: with its settings and resources.
            facts: about its samples.
            tflops: sustained by one accelerator, or one CPU where there is none.

        Raises:
            ConfigError: a configuration is not on this machine, or its architecture is unknown.
        """
        self.experiment = experiment
        self.facts = facts
        self.teacher = model_size("teacher", experiment.teacher)
        self.student = model_size("student", experiment.student)
        self._tflops = tflops
        self._caches = Caches(experiment, facts, self.teacher, self.student)

    @cached_property
    def stages(self) -> list[StagePlan]:
        """The stages of the experiment itself, in order."""
        settings = {stage: getattr(self.experiment, stage) for stage in COSTS}
        if self.experiment.interaction is None:
            settings = {"reinforcement": settings["reinforcement"]}
        return [self.stage(stage, found) for stage, found in settings.items() if found is not None]

    @cached_property
    def codecs(self) -> list[CodecPlan]:
        """The cache of the whole training set in each of precompute's codecs."""
        settings = self.experiment.precompute
        return [] if settings is None else [self._caches.codec(settings, codec) for codec in CODECS]

    def stage(self, stage: str, settings: Settings, key: str = "") -> StagePlan:
        """One stage with any settings; `key` names its node where that has resources of its own."""
        resources = self.experiment.executor.resources_of(key or stage)
        workers = max(1, resources.most_workers)
        loading: ModelLoading = settings.model  # type: ignore[attr-defined]
        spread = loading.device_map is not None and stage in ("capture", "precompute")
        busy = min(1.0, resources.gpus_per_worker) if spread else resources.gpus_per_worker
        machine = self._machine(resources, busy)
        workload = self._workload(settings)
        recipe = self._recipe(settings, workers)
        cost: Cost = COSTS[stage](self.teacher, self.student, workload, recipe, machine)
        if not machine.is_cpu:
            cost = cost.on_gpu()
        if resources.parallelism == "fsdp":
            cost = cost.sharded(workers)
        is_stated = not machine.is_cpu or self._tflops is not None
        seconds = cost.work.seconds(machine) / workers if is_stated else None
        disk = self._disk(settings)
        return StagePlan(stage, workload.samples, cost, workers, resources.gpus_per_worker, busy, seconds, disk)

    def _machine(self, resources: Resources, busy: float) -> Machine:
        if busy == 0:
            rate = 1e12 * (self._tflops or 1.0) * resources.cpus_per_worker
            return Machine(rate, rate, CPU_MEMORY_RATE, CPU_MEMORY_RATE, self.facts.process_bytes, is_cpu=True)
        rate = 1e12 * (self._tflops or GPU_TFLOPS) * busy
        return Machine(rate, rate / 2, GPU_MEMORY_RATE * busy, GPU_MEMORY_RATE * busy)

    def _workload(self, settings: Settings) -> Workload:
        """Of all workers, over all epochs."""
        samples = self.facts.samples
        captured = max(1.0, round(self.experiment.capture.fraction * samples))
        if isinstance(settings, CaptureSettings):
            samples = max(1.0, round(settings.fraction * samples))
        elif isinstance(settings, Training):
            pool = captured if isinstance(settings, VerbalizationSettings) else samples
            schedule = settings.schedule
            steps = schedule.steps or max(1, round(schedule.epochs * pool / schedule.batch_size))
            samples = steps * schedule.batch_size
        return self.facts.workload.some(samples)

    def _recipe(self, settings: Any, workers: int) -> Recipe:
        facts, experiment = self.facts, self.experiment
        precompute = experiment.precompute if not isinstance(settings, PrecomputeSettings) else settings
        teachers, students = self._target_counts(settings, precompute)
        recipe = Recipe(
            teacher_targets=teachers,
            student_targets=students,
            vocabulary=self._caches.vocabulary,
            state_bytes=self.teacher.width * NUMBER_BYTES[experiment.capture.dtype],
            cached_bytes=self._caches.contents(precompute, precompute.codec).token_bytes if precompute else 0,
            codec=precompute.codec.partition("-")[0] if precompute else "moment",
            distinct_samples=facts.samples,
            captured_share=experiment.capture.fraction,
            number_bytes=NUMBER_BYTES[settings.model.dtype],
        )
        if isinstance(settings, CaptureSettings | PrecomputeSettings):
            batch = self._micro_batch(settings.shard_samples, None, settings.micro_batch_tokens)
            if isinstance(settings, PrecomputeSettings) and recipe.captured_share == 1:
                # Captured samples are packed by their responses alone.
                responses = facts.workload.response_tokens
                batch = min(settings.shard_samples, settings.micro_batch_tokens / responses)
            return replace(recipe, shard_samples=settings.shard_samples, micro_batch_samples=batch)
        schedule = settings.schedule
        own = ceil(schedule.batch_size / workers)
        lora = getattr(settings, "lora", None)
        return replace(
            recipe,
            batch_samples=own,
            micro_batch_samples=self._micro_batch(own, schedule.micro_batch_size, schedule.micro_batch_tokens),
            lora_rank=lora and lora.rank,
            checkpointing=schedule.gradient_checkpointing,
        )

    def _micro_batch(self, samples: int, most: int | None, tokens: int) -> float:
        """The largest forward pass, in average samples: the longest ones, up to the budget of tokens."""
        longest = self.facts.longest_tokens
        padded = min(min(samples, most or samples) * longest, max(tokens, longest))
        return padded / self.facts.workload.tokens

    def _target_counts(self, settings: Settings, precompute: PrecomputeSettings | None) -> tuple[int, int]:
        """Target layers of teacher and student that a stage deals with."""
        teachers = self._caches.target_layers
        students = len(resolve_target_layers(self.experiment.student.target_layers, self.student.layers))
        if isinstance(settings, CaptureSettings | VerbalizationSettings):
            return teachers, students
        intermediate = not isinstance(settings, InteractionSettings) or settings.losses.intermediate != "none"
        all_layers = precompute is not None and precompute.layers == "all" and intermediate
        return teachers if all_layers else 0, students if intermediate else 0

    def _disk(self, settings: Settings) -> Disk | None:
        """Shards of a stage that writes some."""
        if isinstance(settings, PrecomputeSettings):
            return self._caches.disk(settings, settings.codec, self.facts.samples)
        if isinstance(settings, CaptureSettings):
            return self._caches.disk(settings, STATES, self._workload(settings).samples)
        return None


COSTS: Mapping[str, Callable[..., Cost]] = {
    "capture": lambda teacher, student, *rest: costs.capture(teacher, *rest),
    "verbalization": costs.verbalization,
    "precompute": costs.precompute,
    "interaction": costs.interaction,
    "reinforcement": lambda teacher, student, *rest: costs.reinforcement(student, *rest),
}
"""The stages that are planned, in order."""
