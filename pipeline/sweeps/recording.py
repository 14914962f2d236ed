"""The records of a sweep: one for each trial, kept in step by what happens to the nodes that trials share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from pipeline.executors import StageFailed
from pipeline.graph import Node
from pipeline.history import History, Recorder
from pipeline.runner import Outcome
from pipeline.sweeps.plan import Trial
from stages.contract import Artifact


@contextmanager
def recording(history: History, trials: Mapping[str, Trial], sweep: str) -> Iterator[TrialRecorders]:
    """Open the records of `trials`, given by the names of their records; an error closes those that are open."""
    with ExitStack() as records:
        yield TrialRecorders(
            [(trial, records.enter_context(_record(history, name, trial, sweep))) for name, trial in trials.items()]
        )


class TrialRecorders:
    """An observer of the runner that tells every record about its own nodes, by the names that it has for them."""

    def __init__(self, records: list[tuple[Trial, Recorder]]) -> None:
        """A record is closed when the evaluation of its trial is there."""
        self._records = records
        self._users: dict[str, list[tuple[Trial, Recorder, Node]]] = defaultdict(list)
        for trial, recorder in records:
            for node in trial.graph.nodes:
                self._users[node.fingerprint].append((trial, recorder, node))

    def reused(self, node: Node, artifact: Artifact) -> None:
        """Tell those that use it."""
        self._tell("reused", node, artifact)
        self._conclude_with(node, artifact)

    def started(self, node: Node) -> dict[str, str]:
        """Tell those that wait for it."""
        self._tell("started", node)
        return {}

    def line(self, node: Node, line: Mapping[str, Any]) -> None:
        """Nothing to record: the journal is the record."""

    def finished(self, node: Node, artifact: Artifact) -> None:
        """Tell those that waited for it."""
        self._tell("finished", node, artifact)
        self._conclude_with(node, artifact)

    def failed(self, node: Node, error: StageFailed) -> None:
        """Tell those that waited for it."""
        self._tell("failed", node, error)

    def conclude(self, outcome: Outcome, own_names: Mapping[str, Mapping[str, str]]) -> None:
        """Close the records of the trials that did not get to their evaluation."""
        for trial, recorder in self._records:
            if recorder.record.status == "running":
                recorder.conclude(trial.graph, outcome.renamed(own_names[trial.name]))

    def _tell(self, event: str, node: Node, *details: Any) -> None:
        for _, recorder, own in self._users[node.fingerprint]:
            getattr(recorder, event)(own, *details)

    def _conclude_with(self, node: Node, artifact: Artifact) -> None:
        for trial, recorder, own in self._users[node.fingerprint]:
            if own.key == trial.target.key:
                recorder.conclude(trial.graph, Outcome({own.key: artifact}))


def _record(history: History, name: str, trial: Trial, sweep: str) -> Any:
    return history.recording(trial.configuration, trial.graph, trial.graph.nodes, name=name, sweep=sweep)
