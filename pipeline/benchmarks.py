"""Benchmarks: which local copies are asked for, the run that answers them, and what the answers are worth.

Their evaluations are nodes like those of `vlsi run`: made once, made anew when anything they depend on changes.
Their runs are recorded as `<experiment>@benchmarks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.config import ConfigError, Configuration, load
from pipeline.decisions import EVERYTHING, Decision, Selection, decide
from pipeline.executors import Executor, make_executor
from pipeline.experiment import MAIN, UNTRAINED, Experiment
from pipeline.graph import Asked, Graph, Node, benchmark_graph
from pipeline.history import History
from pipeline.identity import Digests
from pipeline.pairing import check_pairs
from pipeline.progress import make_display
from pipeline.runner import Outcome, Runner
from pipeline.session import refuse_outdated_preparation
from pipeline.statistics import Difference, Interval, interval, paired
from pipeline.store import Store
from stages.contract import Artifact, StageError
from stages.contract.files import PREDICTIONS_FOLDER
from stages.contract.place import files_below, open_file

MODELS = (*UNTRAINED, MAIN)
"""What is evaluated unless others are named."""
RECORD_SUFFIX = "@benchmarks"


@dataclass(frozen=True)
class Measured:
    """What one model's answers to one benchmark are worth.

    Attributes:
        model: `teacher`, `backbone`, a variant, or `vlsi`.
        score: share of the questions answered right; None where nobody has judged the answers.
        interval: of the score, by bootstrap over the questions.
        metrics: what is counted besides.
        by_task: the score by kind of question.
        quarantined: rows that could not be used.
        correct: how right each question was answered, by the name of what is asked for.
    """

    model: str
    score: float | None
    interval: Interval | None
    metrics: dict[str, float]
    by_task: dict[str, float]
    quarantined: int
    correct: dict[str, float]


@dataclass(frozen=True)
class Result:
    """One benchmark with what its models' answers are worth, and how the student differs from the others."""

    asked: Asked
    models: tuple[Measured, ...]
    differences: dict[str, Difference]
    """The student minus each other model, over the questions that both have; by the other's name."""


@dataclass(frozen=True)
class Benchmarks:
    """Benchmarks asked of an experiment's models."""

    configuration: Configuration
    asked: tuple[Asked, ...]
    graph: Graph
    store: Store
    history: History

    @classmethod
    def open(cls, overrides: Sequence[str], places: Sequence[str], models: Sequence[str]) -> Benchmarks:
        """For `places` as people write them: `NAME=PATH`, or a path whose benchmark is recognised.

        Raises:
            ConfigError: the configuration is not valid, or models or files are missing or outdated.
        """
        configuration = load(overrides)
        store = Store(configuration.main.store)
        refuse_outdated_preparation(configuration, store)
        asked = tuple(parse(places))
        graph = benchmark_graph(configuration, Digests(store.root), asked, models)
        return cls(configuration, asked, graph, store, History(store.artifacts))

    @property
    def experiment(self) -> Experiment:
        """Whose models are asked."""
        return self.configuration.main

    @property
    def record_name(self) -> str:
        """Of the run's records."""
        return f"{self.experiment.name}{RECORD_SUFFIX}"

    def decide(self, selection: Selection = EVERYTHING) -> list[Decision]:
        """What has to run, and why."""
        records = [self.history.last(name) for name in (self.experiment.name, self.record_name)]
        known = {key: value for record in records if record for key, value in record.committed.items()}
        return decide(self.graph, self.store, known, selection)

    def execute(self, decisions: Sequence[Decision], console: Console, executor: Executor | None = None) -> Outcome:
        """Answer what has not been answered, with progress and a record.

        Raises:
            ConfigError: teacher and student do not see samples alike.
        """
        check_pairs(self.configuration.experiments, decisions, self.store)
        settings = self.experiment.executor
        executor = executor or make_executor(settings)
        if all(decision.reused for decision in decisions) and self.history.tells(self.record_name, self.graph):
            return Runner(self.store, settings, executor, []).run(decisions)
        nodes = [decision.node for decision in decisions]
        recorder = self.history.recorder(self.configuration, self.graph, nodes, name=self.record_name)
        with recorder, make_display(console) as display:
            outcome = Runner(self.store, settings, executor, [recorder, display], keep_going=True).run(decisions)
            recorder.conclude(self.graph, outcome)
        return outcome

    def results(self, artifacts: Mapping[str, Artifact]) -> list[Result]:
        """What the answers that are there are worth, by benchmark."""
        return [self._result(asked, artifacts) for asked in self.asked]

    def _result(self, asked: Asked, artifacts: Mapping[str, Artifact]) -> Result:
        nodes = {name: node for name, node in self.graph.targets.items() if name.endswith(f":{asked.label}")}
        models = tuple(
            _measure(name, node, artifacts[node.key]) for name, node in nodes.items() if node.key in artifacts
        )
        student = next((model for model in models if model.model == MAIN), None)
        others = [model for model in models if model.model != MAIN]
        found = {other.model: _difference(student, other) for other in others} if student else {}
        return Result(asked, models, {name: difference for name, difference in found.items() if difference})


def parse(places: Sequence[str]) -> list[Asked]:
    """What `--benchmark` options ask for.

    Raises:
        ConfigError: an unknown name, or a file that is not there.
    """
    from stages.benchmarks import benchmark_named, recognise

    found = []
    for text in places:
        name, stated, path = text.partition("=")
        place = Path(path if stated else text).expanduser().absolute()
        try:
            found.append((benchmark_named(name) if stated else recognise(place), place))
        except StageError as error:
            raise ConfigError(f"--benchmark {text}: {str(error).removeprefix('benchmark: ')}") from error
    times = Counter(benchmark.name for benchmark, _ in found)
    labels = [b.name if times[b.name] == 1 else f"{b.name}-{_squeezed(place.stem)}" for b, place in found]
    if repeated := next((label for label, count in Counter(labels).items() if count > 1), ""):
        raise ConfigError(f"--benchmark: {repeated} is asked for twice; name each file once, each differently")
    return [Asked(benchmark.name, str(place), label) for (benchmark, place), label in zip(found, labels, strict=True)]


def _squeezed(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def _measure(name: str, node: Node, artifact: Artifact) -> Measured:
    summary, correct = artifact.manifest.summary, correct_answers(artifact)
    return Measured(
        model=name.partition(":")[0],
        score=summary["overall"],
        interval=interval([*correct.values()]) if correct else None,
        metrics=dict(summary.get("metrics", {})),
        by_task={task: float(entry["accuracy"]) for task, entry in summary["by_task"].items()},
        quarantined=int(summary.get("quarantined", 0)),
        correct=correct,
    )


def correct_answers(evaluation: Artifact) -> dict[str, float]:
    """How right each question was answered, by what is asked for; empty if nobody has judged the answers."""
    import pyarrow.parquet as pq

    from stages.benchmarks.scoring import by_item

    folder = evaluation.path / PREDICTIONS_FOLDER
    tables = [pq.read_table(open_file(folder / name), columns=["item", "correct"]) for name in files_below(folder)]
    return by_item(row for table in tables for row in table.to_pylist())


def _difference(student: Measured, other: Measured) -> Difference | None:
    common = [item for item in student.correct if item in other.correct]
    if not common:
        return None
    return paired([student.correct[item] for item in common], [other.correct[item] for item in common])


def results_document(benchmarks: Benchmarks, results: Sequence[Result]) -> dict[str, Any]:
    """For programs."""
    from stages.benchmarks import benchmark_named

    return {
        "experiment": benchmarks.experiment.name,
        "decoding": benchmarks.experiment.evaluation.decoding,
        "benchmarks": [
            {
                "name": result.asked.name,
                "label": result.asked.label,
                "place": result.asked.place,
                "metric": benchmark_named(result.asked.name).metric,
                "models": [_model_document(model) for model in result.models],
                "differences": {name: found._asdict() for name, found in result.differences.items()},
            }
            for result in results
        ],
    }


def _model_document(model: Measured) -> dict[str, Any]:
    return {
        "model": model.model,
        "score": model.score,
        "interval": list(model.interval) if model.interval else None,
        "questions": len(model.correct),
        "quarantined": model.quarantined,
        "metrics": model.metrics,
        "by_task": model.by_task,
    }
