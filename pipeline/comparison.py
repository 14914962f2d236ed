"""What differs between two runs: configuration, upstream artifacts, scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.history import RunRecord
from pipeline.identity import Change, changed_fields, differences, dotted
from pipeline.results import Scores

Identities = Callable[[str], dict[str, Any] | None]
"""The identity of a committed artifact by its `stage/fingerprint`; None if it is gone."""


@dataclass(frozen=True)
class NodeComparison:
    """One node of the graphs of two runs.

    Attributes:
        key: its name, such as `interaction@sft`.
        before: its fingerprint in the earlier run; None if that run had no such node.
        after: the same of the later run.
        made_before: id of the run that made the earlier artifact; None if no record tells.
        made_after: the same of the later one.
        reasons: settings and inputs that differ; empty where an artifact is gone or both are the same.
    """

    key: str
    before: str | None
    after: str | None
    made_before: str | None
    made_after: str | None
    reasons: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Whether both runs used one artifact."""
        return self.before == self.after


@dataclass(frozen=True)
class ScoreComparison:
    """The scores of one model in two runs; None where a run has none."""

    name: str
    before: Scores | None
    after: Scores | None

    @property
    def overall(self) -> float | None:
        """Later minus earlier accuracy, a fraction."""
        return self.after.overall - self.before.overall if self.before and self.after else None

    @property
    def by_task(self) -> dict[str, float]:
        """The same for every kind of question that both runs asked."""
        if self.before is None or self.after is None:
            return {}
        old = self.before.by_task
        return {task: value - old[task] for task, value in self.after.by_task.items() if task in old}


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side."""

    before: RunRecord
    after: RunRecord
    configuration: list[Change]
    nodes: list[NodeComparison]
    scores: list[ScoreComparison]


def compare(before: RunRecord, after: RunRecord, records: Iterable[RunRecord], identity_of: Identities) -> Comparison:
    """Compare two runs.

    Args:
        before: the one that counts as earlier.
        after: the one that counts as later.
        records: all that are known; they tell which run made what.
        identity_of: what an artifact was made of.
    """
    makers = makers_of(records)
    keys = dict.fromkeys([*after.wanted, *before.wanted])
    nodes = [_compare_node(key, before.wanted.get(key), after.wanted.get(key), makers, identity_of) for key in keys]
    return Comparison(
        before,
        after,
        differences(dotted(before.configuration), dotted(after.configuration)),
        nodes,
        _compare_scores(before.scores, after.scores),
    )


def makers_of(records: Iterable[RunRecord]) -> dict[str, str]:
    """Id of the last run that made an artifact, by `stage/fingerprint`."""
    ordered = sorted(records, key=lambda record: record.started)
    return {
        f"{stage.stage}/{stage.fingerprint}": record.id
        for record in ordered
        for stage in record.stages.values()
        if stage.status == "made"
    }


def _compare_node(
    key: str, before: str | None, after: str | None, makers: Mapping[str, str], identity_of: Identities
) -> NodeComparison:
    reasons: tuple[str, ...] = ()
    if before is not None and after is not None and before != after:
        reasons = tuple(_reasons(identity_of(before), identity_of(after)))
    return NodeComparison(
        key, _fingerprint(before), _fingerprint(after), makers.get(before or ""), makers.get(after or ""), reasons
    )


def _fingerprint(place: str | None) -> str | None:
    return place.rpartition("/")[2] if place else None


def _reasons(before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[str]:
    if before is None or after is None:
        return []
    inputs = differences(before["inputs"], after["inputs"])
    return [*changed_fields(before, after), *(f"another {change.key}" for change in inputs)]


def _compare_scores(before: list[Scores], after: list[Scores]) -> list[ScoreComparison]:
    old, new = ({row.name: row for row in rows} for rows in (before, after))
    return [ScoreComparison(name, old.get(name), new.get(name)) for name in dict.fromkeys([*new, *old])]
