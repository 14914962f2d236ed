"""The records of a sweep: one for each trial, kept in step by what happens to the nodes that trials share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from pipeline.config import ConfigError
from pipeline.executors import StageFailed
from pipeline.experiment import MAIN, Experiment
from pipeline.graph import Node
from pipeline.history import History, Recorder, RunRecord
from pipeline.runner import Outcome
from pipeline.sweeps.definition import choose
from pipeline.sweeps.plan import Trial
from pipeline.sweeps.results import Results, Value
from stages.contract import Artifact


def recorded_sweeps(history: History, experiment: Experiment) -> list[Results]:
    """The values that the records of an experiment's sweeps hold, by sweep; of each trial its last record's."""
    found: dict[str, dict[tuple[str, int], RunRecord]] = defaultdict(dict)
    for name in history.experiments():
        base, _, trial = name.partition("@")
        sweep, _, rest = trial.partition(".")
        point, _, seed = rest.rpartition(".")
        if base == experiment.name and seed.isdecimal() and (record := history.last(name)):
            found[sweep][point, int(seed)] = record
    results = (_results_of(sweep, experiment, records) for sweep, records in sorted(found.items()))
    return [result for result in results if result and result.values]


def _results_of(name: str, experiment: Experiment, records: Mapping[tuple[str, int], RunRecord]) -> Results | None:
    """Nothing if the sweep is no longer defined."""
    try:
        sweep = choose([f"sweep={name}"])[1].within(experiment)
    except ConfigError:
        return None
    points = tuple(sweep.every_point())
    values = [
        Value(point, seed, score)
        for (point, seed), record in records.items()
        for score in record.scores
        if score.name == MAIN and point in points
    ]
    seeds = tuple(sorted({value.seed for value in values}))
    return Results(name, experiment.name, sweep, points, seeds, tuple(values))


class TrialRecorders:
    """An observer of the runner that tells every record about its own nodes, by the names that it has for them."""

    def __init__(self, history: History, trials: Mapping[str, Trial], sweep: str) -> None:
        """Records of `trials`, given by their names; one is closed when the evaluation of its trial is there."""
        self._records = [
            (trial, history.recorder(trial.configuration, trial.graph, trial.graph.nodes, name=name, sweep=sweep))
            for name, trial in trials.items()
        ]
        self._users: dict[str, list[tuple[Trial, Recorder, Node]]] = defaultdict(list)
        for trial, recorder in self._records:
            for node in trial.graph.nodes:
                self._users[node.fingerprint].append((trial, recorder, node))
        self._open = ExitStack()

    @property
    def recorders(self) -> list[Recorder]:
        """One for each trial."""
        return [recorder for _, recorder in self._records]

    def __enter__(self) -> TrialRecorders:
        """Begin all records."""
        for recorder in self.recorders:
            self._open.enter_context(recorder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close those that an error leaves open."""
        self._open.__exit__(kind, error, trace)

    def reused(self, node: Node, artifact: Artifact) -> None:
        """Tell those that use it."""
        self._tell("reused", node, artifact)
        self._conclude_with(node, artifact)

    def started(self, node: Node) -> dict[str, str]:
        """Tell those that wait for it; the first of them counts as its maker."""
        environments = [recorder.started(own) for _, recorder, own in self._users[node.fingerprint]]
        return environments[0] if environments else {}

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
