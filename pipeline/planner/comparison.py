"""What was planned of a stage beside what was measured when it ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.config import ConfigError
from pipeline.experiment import Experiment
from pipeline.graph import Node
from pipeline.planner.facts import Options, find_facts
from pipeline.planner.plan import COSTS, Planner, StagePlan
from stages.contract import Artifact


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
    """

    key: str
    disk_bytes: Pair
    files: Pair
    response_tokens: Pair
    peak_bytes: Pair
    seconds: Pair


def compare(experiment: Experiment, present: Sequence[tuple[Node, Artifact]]) -> tuple[str, list[Comparison]]:
    """Every planned stage among those that ran, and what the plan was based on.

    Nothing if the plan cannot be made: a model's configuration is of an unknown kind, or gone.
    """
    planned = [(node, artifact) for node, artifact in present if node.stage in COSTS]
    verbalization = next((str(a.place) for node, a in planned if node.key == "verbalization"), None)
    try:
        planner = Planner(experiment, find_facts(experiment, Options(), verbalization))
    except ConfigError:
        return "", []
    comparisons = [_comparison(planner.stage(node.stage, node.settings, node.key), node, a) for node, a in planned]
    return planner.facts.basis, comparisons


def _comparison(plan: StagePlan, node: Node, artifact: Artifact) -> Comparison:
    summary = artifact.manifest.summary
    shards = [file for file in artifact.manifest.files if file.path.endswith(".parquet")]
    nothing, disk = Pair(None, None), plan.disk
    return Comparison(
        node.key,
        disk_bytes=Pair(disk.bytes, summary.get("bytes")) if disk else nothing,
        files=Pair(disk.files, len(shards)) if disk else nothing,
        response_tokens=Pair(disk.response_tokens, summary.get("response_tokens")) if disk else nothing,
        peak_bytes=Pair(plan.cost.peak_bytes, summary.get("peak_memory_bytes")),
        seconds=Pair(plan.seconds, artifact.manifest.duration_seconds),
    )
