"""One use of the pipeline: an experiment with its graph, its store and its history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipeline.config import ConfigError, Configuration, load
from pipeline.decisions import EVERYTHING, Decision, Selection, decide, made_before
from pipeline.executors import Executor, make_executor
from pipeline.experiment import Experiment
from pipeline.graph import Graph, build_graph, prepare_graph
from pipeline.history import History, RunRecord
from pipeline.identity import Digests
from pipeline.pairing import check_pairs
from pipeline.progress import make_display, warner
from pipeline.reports.report import render
from pipeline.reports.subject import Subject
from pipeline.runner import Observer, Outcome, Runner
from pipeline.store import Store
from pipeline.sweeps.recording import recorded_sweeps
from pipeline.tracking import Tracker
from stages.contract import Artifact
from stages.contract.place import write_whole


@dataclass(frozen=True)
class Session:
    """What every command of `vlsi` works with.

    Attributes:
        configuration: the experiment, its variants, and the overrides given.
        graph: what has to exist.
        store: where it exists.
        history: the runs before.
        last: the experiment's last run.
    """

    configuration: Configuration
    graph: Graph
    store: Store
    history: History
    last: RunRecord | None

    @classmethod
    def open(cls, overrides: Sequence[str]) -> Session:
        """For the stages of an experiment.

        Raises:
            ConfigError: the configuration is not valid, or models or data are missing or outdated.
        """
        configuration = load(overrides)
        store = Store(configuration.main.store)
        refuse_outdated_preparation(configuration, store)
        graph = build_graph(configuration, Digests(store.root))
        history = History(store.artifacts)
        return cls(configuration, graph, store, history, history.last(configuration.main.name))

    @classmethod
    def open_preparation(cls, overrides: Sequence[str]) -> Session:
        """For making an experiment's own models and data.

        Raises:
            ConfigError: the configuration is not valid, or there is nothing to prepare.
        """
        configuration = load(overrides)
        store = Store(configuration.main.store)
        return cls(configuration, prepare_graph(configuration.main), store, History(store.artifacts), None)

    @property
    def experiment(self) -> Experiment:
        """The experiment itself, not a variant."""
        return self.configuration.main

    def decide(self, selection: Selection = EVERYTHING) -> list[Decision]:
        """What has to run of the selected part, and why."""
        return decide(self.graph, self.store, self.last.committed if self.last else {}, selection)

    def execute(
        self,
        decisions: Sequence[Decision],
        console: Console,
        executor: Executor | None = None,
        *,
        keep_going: bool = False,
    ) -> Outcome:
        """Run what has to run, with progress, record and tracking; write the report.

        After a failure nothing new begins, unless it is asked to keep going with what does not depend on it.

        A run with nothing to do, which the last record tells already, leaves no record of its own.

        Raises:
            ConfigError: teacher and student do not see samples alike.
        """
        check_pairs(self.configuration.experiments, decisions, self.store)
        executor = executor or make_executor(self.experiment.executor)
        settings = self.experiment.executor
        if not self.graph.targets:
            with make_display(console) as display:
                return Runner(self.store, settings, executor, [display]).run(decisions)
        if all(decision.reused for decision in decisions) and self.history.tells(self.experiment.name, self.graph):
            return Runner(self.store, settings, executor, []).run(decisions)
        return self._execute_recorded(decisions, console, executor, keep_going)

    def artifacts(self) -> dict[str, Artifact]:
        """Everything up to date, by node key."""
        return made_before(self.decide())

    def write_report(self, path: Path | None = None) -> Path:
        """Write the HTML report on what is up to date and say where it is.

        Raises:
            ConfigError: nothing is there to report on.
        """
        artifacts = self.artifacts()
        if not artifacts:
            raise ConfigError(f"nothing of {self.experiment.name} has been made yet; run `{self.command('run')}` first")
        path = path or self.store.report_file(self.experiment.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, render(self._subject(artifacts)))
        return path

    def command(self, name: str, *more: str) -> str:
        """A `vlsi` command on this experiment, as a person would type it."""
        chosen = self.configuration.overrides or (f"experiment={self.experiment.name}",)
        return " ".join(["vlsi", name, *chosen, *more])

    def _subject(self, artifacts: Mapping[str, Artifact]) -> Subject:
        record = self.history.last(self.experiment.name)
        sweeps = recorded_sweeps(self.history, self.experiment)
        return Subject.of_graph(self.experiment, self.graph, artifacts, record, sweeps)

    def _has_news(self, outcome: Outcome) -> bool:
        """Whether there is more to report on than the last report had."""
        changed = outcome.executed or outcome.failed or not self.store.report_file(self.experiment.name).is_file()
        return bool(outcome.artifacts and changed)

    def _execute_recorded(
        self, decisions: Sequence[Decision], console: Console, executor: Executor, keep_going: bool
    ) -> Outcome:
        nodes = [decision.node for decision in decisions]
        recorder = self.history.recorder(self.configuration, self.graph, nodes)
        with Tracker(self.experiment.tracking, self.store, [recorder], warner(console)) as tracker, recorder:
            with make_display(console) as display:
                observers: list[Observer] = [recorder, tracker, display]
                runner = Runner(self.store, self.experiment.executor, executor, observers, keep_going=keep_going)
                outcome = runner.run(decisions)
            if self._has_news(outcome):
                self.write_report()
            recorder.conclude(self.graph, outcome)
        return outcome


def refuse_outdated_preparation(configuration: Configuration, store: Store) -> None:
    """Stop before models or data are used that other settings made."""
    experiment = configuration.main
    used = (experiment.teacher.path, experiment.student.path, experiment.data.train, experiment.data.test)
    if experiment.prepare is None or not any(Path(path).is_relative_to(experiment.prepared) for path in used):
        return
    (decision,) = decide(prepare_graph(experiment), store, {})
    if decision.artifact is not None and not decision.reused:
        command = " ".join(["vlsi prepare", *configuration.overrides])
        raise ConfigError(
            f"prepare: {experiment.prepared} was made with other settings ({decision.reasons[0]}); "
            f"run `{command}` to make it anew"
        )
