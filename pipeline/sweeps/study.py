"""One sweep of one experiment: its plan, what of it is there, and how the rest is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipeline.config import ConfigError, Configuration, load_experiment
from pipeline.decisions import Decision, decide
from pipeline.executors import Executor, make_executor
from pipeline.experiment import Experiment
from pipeline.graph import prepare_graph
from pipeline.history import History
from pipeline.identity import Digests
from pipeline.pairing import check_pairs
from pipeline.progress import make_display, warner
from pipeline.results import scores_of
from pipeline.runner import Outcome, Runner
from pipeline.session import refuse_outdated_preparation
from pipeline.store import Store
from pipeline.sweeps.definition import Sweep, choose
from pipeline.sweeps.plan import Plan, Trial, make_plan
from pipeline.sweeps.recording import TrialRecorders
from pipeline.sweeps.results import Results, Value
from pipeline.tracking import Tracker
from stages.contract import Artifact
from stages.contract.place import write_whole


@dataclass(frozen=True)
class Study:
    """What `vlsi sweep` works with.

    Attributes:
        name: of the sweep.
        sweep: its definition, with the variants of the experiment.
        experiment: what the points change.
        overrides: what was changed for all points.
        plan: the trials.
        store: where artifacts are.
        history: the runs before.
    """

    name: str
    sweep: Sweep
    experiment: Experiment
    overrides: tuple[str, ...]
    plan: Plan
    store: Store
    history: History

    @classmethod
    def open(cls, overrides: Sequence[str], seeds: Sequence[int] = ()) -> Study:
        """The sweep that `sweep=NAME` chooses, with its own seeds unless others are given.

        Raises:
            ConfigError: sweep or configuration are not valid, or models or data are missing or outdated.
        """
        name, sweep, rest = choose(overrides)
        experiment = load_experiment(rest)
        store = Store(experiment.store)
        refuse_outdated_preparation(Configuration(experiment, {}, tuple(rest)), store)
        _refuse_missing_preparations(sweep, rest, store)
        sweep = sweep.within(experiment)
        plan = make_plan(sweep.every_point(), seeds or sweep.seeds, rest, Digests(store.root))
        return cls(name, sweep, experiment, tuple(rest), plan, store, History(store.artifacts))

    def decide(self) -> list[Decision]:
        """What has to run."""
        return decide(self.plan.graph, self.store, {})

    def execute(self, decisions: Sequence[Decision], console: Console, executor: Executor | None = None) -> Outcome:
        """Run what has to run, with progress and a record for each trial; what fails leaves the rest alone.

        Raises:
            ConfigError: teacher and student of a point do not see samples alike.
        """
        experiments = {trial.point: trial.configuration.main for trial in self.plan.trials}
        check_pairs(experiments.values(), decisions, self.store)
        settings = self.experiment.executor
        executor = executor or make_executor(settings)
        records = TrialRecorders(self.history, self._unrecorded(decisions), self.name)
        with Tracker(self.experiment.tracking, self.store, records.recorders, warner(console)) as tracker, records:
            with make_display(console) as display:
                runner = Runner(self.store, settings, executor, [records, tracker, display], keep_going=True)
                outcome = runner.run(decisions)
            records.conclude(outcome, self.plan.own_names)
        return outcome

    def results(self, artifacts: Mapping[str, Artifact]) -> Results:
        """The scores that are there, a value for each trial."""
        values = [
            Value(trial.point, trial.seed, scores_of(trial.name, artifacts[node.key]))
            for trial in self.plan.trials
            if (node := self.plan.graph.targets[trial.name]).key in artifacts
        ]
        return Results(self.name, self.experiment.name, self.sweep, self.plan.points, self.plan.seeds, tuple(values))

    def write_files(self, results: Results) -> dict[str, Path]:
        """Write the values as CSV and the figure as PNG and SVG, and say where they are."""
        from pipeline.sweeps.drawing import save_figure

        name = f"{self.experiment.name}-{self.name}"
        values, *pictures = (self.store.sweep_file(name, suffix) for suffix in ("csv", "png", "svg"))
        values.parent.mkdir(parents=True, exist_ok=True)
        write_whole(values, results.to_csv())
        save_figure(results, *pictures)
        return {"values": values, "figure": pictures[0]}

    def command(self) -> str:
        """This sweep, as a person would type it."""
        seeds = "".join(f"{seed}," for seed in self.plan.seeds)
        return " ".join(["vlsi sweep", f"sweep={self.name}", *self.overrides, f"--seeds {seeds}"])

    def _unrecorded(self, decisions: Sequence[Decision]) -> dict[str, Trial]:
        """The trials that have something to do or no record that says it is done, by the names of their records."""
        stale = {decision.node.fingerprint for decision in decisions if not decision.reused}
        named = {f"{self.experiment.name}@{self.name}.{trial.name}": trial for trial in self.plan.trials}
        return {
            name: trial
            for name, trial in named.items()
            if stale & {node.fingerprint for node in trial.graph.nodes} or not self.history.tells(name, trial.graph)
        }


def _refuse_missing_preparations(sweep: Sweep, overrides: Sequence[str], store: Store) -> None:
    """Stop before models are missed that another preparation makes."""
    commands = []
    for changes in sweep.preparations.values():
        (decision,) = decide(prepare_graph(load_experiment([*overrides, *changes])), store, {})
        if not decision.reused:
            commands.append(" ".join(["vlsi prepare", *(f"'{o}'" if "$" in o else o for o in (*overrides, *changes))]))
    if commands:
        listed = "\n".join(f"  {command}" for command in commands)
        raise ConfigError(f"sweep: models of other sizes are not made yet; run first:\n{listed}")
