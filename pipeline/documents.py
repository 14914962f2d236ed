"""What `--json` prints: documents for programs, whose keys stay. Times are seconds, accuracies fractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.comparison import Comparison
from pipeline.decisions import Decision
from pipeline.graph import Node, Source
from pipeline.history import RunRecord
from pipeline.identity import Change, flatten
from pipeline.results import Scores
from stages.contract.place import Place


def decision_document(decision: Decision) -> dict[str, Any]:
    """A node with its `status`: `reused` or `stale`; `seconds` is what its artifact took to make."""
    node, artifact = decision.node, decision.artifact
    return {
        "key": node.key,
        "stage": node.stage,
        "fingerprint": node.fingerprint,
        "place": str(node.output),
        "status": "reused" if decision.reused else "stale",
        "reasons": list(decision.reasons),
        "seconds": artifact.manifest.duration_seconds if decision.reused and artifact else None,
    }


def status_document(experiment: str, decisions: Sequence[Decision]) -> dict[str, Any]:
    """All nodes, and how many would run."""
    stale = sum(not decision.reused for decision in decisions)
    return {"experiment": experiment, "stale": stale, "stages": [decision_document(d) for d in decisions]}


def explanation_document(decision: Decision) -> dict[str, Any]:
    """A node with what its fingerprint is made of."""
    node = decision.node
    inputs = {name: _input_document(source) for name, source in node.inputs.items()}
    return {**decision_document(decision), "inputs": inputs, "settings": flatten(node.identity)}


def run_document(
    record: RunRecord, decisions: Sequence[Decision], scores: Sequence[Scores], places: Mapping[str, Place]
) -> dict[str, Any]:
    """A run that has ended: its nodes with the `status` of `pipeline.history`, its scores, and where its output is."""
    return {
        "run": record.id,
        "experiment": record.experiment,
        "status": record.state,
        "stages": [_executed_document(record, decision) for decision in decisions],
        "scores": [asdict(row) for row in scores],
        "places": {name: str(place) for name, place in places.items()},
    }


def record_document(record: RunRecord) -> dict[str, Any]:
    """A run of the history."""
    stages = {key: stage.model_dump(mode="json") for key, stage in record.stages.items()}
    return {
        "run": record.id,
        "experiment": record.experiment,
        "started": record.started,
        "ended": record.ended,
        "status": record.state,
        "host": record.host,
        "overrides": list(record.overrides),
        "stages": stages,
        "accuracy": record.accuracy,
        "scores": [asdict(row) for row in record.scores],
        "sweep": record.sweep,
        "mlflow_run_id": record.mlflow_run_id,
    }


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """Two runs: settings, nodes and scores; differences are later minus earlier."""
    return {
        "before": comparison.before.id,
        "after": comparison.after.id,
        "configuration": {change.key: _change_document(change) for change in comparison.configuration},
        "stages": [{**asdict(node), "same": node.is_same} for node in comparison.nodes],
        "scores": [
            {
                "name": row.name,
                "before": row.before and row.before.overall,
                "after": row.after and row.after.overall,
                "difference": row.overall,
                "by_task": row.by_task,
            }
            for row in comparison.scores
        ],
    }


def _executed_document(record: RunRecord, decision: Decision) -> dict[str, Any]:
    document = decision_document(decision)
    stage = record.stages.get(decision.node.key)
    if decision.reused or stage is None:
        return {**document, "error": None}
    return {**document, "status": stage.status, "seconds": stage.seconds, "error": stage.error}


def _input_document(source: Node | Source) -> dict[str, str]:
    if isinstance(source, Node):
        return {"stage": source.key, "place": str(source.output), "fingerprint": source.fingerprint}
    return {"place": source.place, "digest": source.digest}


def _change_document(change: Change) -> dict[str, Any]:
    return {"before": change.before, "after": change.after}
