"""What was planned of a stage beside what was measured when it ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.config import ConfigError
from pipeline.experiment import Experiment
from pipeline.planner.facts import Options, find_facts
from pipeline.planner.plan import COSTS, Planner, StagePlan
from stages.contract import Artifact
from stages.contract.settings import Settings


class Pair(NamedTuple):
    """A quantity, planned and measured; None where it was not."""

    planned: float | None
    measured: float | None


@dataclass(frozen=True)
class Comparison:
    """One stage that ran.

    Attributes:
        key: of its node.
        disk_bytes, files, response_tokens: of the shards of a stage that writes some.
        peak_bytes: of the worker that took the most memory.
        seconds: wall time; planned only for accelerators, whose throughput was stated.
        flops: planned work over all workers.
        workers: planned; with the seconds they make the cost.
    """

    key: str
    disk_bytes: Pair
    files: Pair
    response_tokens: Pair
    peak_bytes: Pair
    seconds: Pair
    flops: float
    workers: int


def compare(experiment: Experiment, made: Sequence[tuple[str, Settings, Artifact]]) -> tuple[str, list[Comparison]]:
    """Every planned stage among those that ran, given by key and settings, and what the plan was based on.

    Nothing if the plan cannot be made: a model's configuration is of an unknown kind, or gone.
    """
    planned = [one for one in made if one[2].manifest.stage in COSTS]
    verbalization = next((str(artifact.place) for key, _, artifact in planned if key == "verbalization"), None)
    try:
        planner = Planner(experiment, find_facts(experiment, Options(), verbalization))
    except ConfigError:
        return "", []
    comparisons = [
        _comparison(key, planner.stage(artifact.manifest.stage, settings, key), artifact)
        for key, settings, artifact in planned
    ]
    return planner.facts.basis, comparisons


def _comparison(key: str, plan: StagePlan, artifact: Artifact) -> Comparison:
    summary = artifact.manifest.summary
    shards = [file for file in artifact.manifest.files if file.path.endswith(".parquet")]
    nothing, disk = Pair(None, None), plan.disk
    return Comparison(
        key,
        disk_bytes=Pair(disk.bytes, summary.get("bytes")) if disk else nothing,
        files=Pair(disk.files, len(shards)) if disk else nothing,
        response_tokens=Pair(disk.response_tokens, summary.get("response_tokens")) if disk else nothing,
        peak_bytes=Pair(plan.cost.peak_bytes, summary.get("peak_memory_bytes")),
        seconds=Pair(plan.seconds, artifact.manifest.duration_seconds),
        flops=plan.cost.work.flops,
        workers=plan.workers,
    )
