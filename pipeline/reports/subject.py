"""A subject: one run as a report sees it, with whatever of it there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from pipeline.experiment import MAIN, UNTRAINED, Experiment
from pipeline.graph import Graph
from pipeline.history import RunRecord, StageRun
from pipeline.results import Answers, Scores, answers_of, scores_of
from pipeline.store import Store
from pipeline.sweeps.results import Results
from stages.contract import STAGES, Artifact, open_artifact
from stages.contract.settings import Settings


@dataclass(frozen=True)
class Part:
    """One node of a run.

    Attributes:
        key: its name, such as `interaction@sft`.
        stage: that makes it.
        fingerprint: of what is wanted.
        artifact: what is there of it; None if nothing is.
        run: what became of it in the run; None if no record tells.
        settings: of the stage; None if this version does not know them.
    """

    key: str
    stage: str
    fingerprint: str
    artifact: Artifact | None
    run: StageRun | None
    settings: Settings | None

    @property
    def model(self) -> str:
        """Of an evaluation: whose. Else the variant it is for."""
        return self.key.partition("@")[2] or MAIN

    @property
    def complaint(self) -> str:
        """What is wrong with it, as a phrase behind its name; empty if it is there and its last attempt went well."""
        if self.run is not None and self.run.error:
            return f"{self.run.status}: {self.run.error.removeprefix(f'{self.stage}: ')}"
        return "" if self.artifact else "has not been made"


@dataclass(frozen=True)
class Subject:
    """One run.

    Attributes:
        name: of the experiment, or of the point of a sweep.
        configuration: the whole of it, as JSON values.
        experiment: the same, typed; None if this version does not know its settings.
        parts: its nodes, inputs before what uses them.
        evaluations: the keys of the evaluations by what they evaluate, in the order of the table.
        record: of the run; None if nobody recorded it.
        sweeps: of the experiment, as far as they have values.
    """

    name: str
    configuration: Mapping[str, Any]
    experiment: Experiment | None
    parts: tuple[Part, ...]
    evaluations: Mapping[str, str]
    record: RunRecord | None = None
    sweeps: tuple[Results, ...] = ()

    @classmethod
    def of_graph(
        cls,
        experiment: Experiment,
        graph: Graph,
        artifacts: Mapping[str, Artifact],
        record: RunRecord | None = None,
        sweeps: Sequence[Results] = (),
    ) -> Subject:
        """What is up to date of an experiment, by node key; of its last run what concerns the same nodes."""
        runs = record.stages if record else {}
        parts = []
        for node in graph.nodes:
            run = runs.get(node.key)
            known = run if run and run.fingerprint == node.fingerprint else None
            artifact = artifacts.get(node.key)
            parts.append(Part(node.key, node.stage, node.fingerprint, artifact, known, node.settings))
        evaluations = {name: node.key for name, node in graph.targets.items()}
        configuration = experiment.model_dump(mode="json")
        return cls(experiment.name, configuration, experiment, tuple(parts), evaluations, record, tuple(sweeps))

    @classmethod
    def of_record(cls, record: RunRecord, store: Store) -> Subject:
        """What a run wanted, as far as it is still in the store."""
        parts = []
        for key, place in record.wanted.items():
            stage, _, fingerprint = place.rpartition("/")
            artifact = open_artifact(store.artifacts / place)
            settings = _settings_of(artifact) if artifact else None
            parts.append(Part(key, stage, fingerprint, artifact, record.stages.get(key), settings))
        found = {part.model: part.key for part in parts if part.stage == "evaluation"}
        trained = [name for name in found if name not in (*UNTRAINED, MAIN)]
        evaluations = {name: found[name] for name in (*UNTRAINED, *trained, MAIN) if name in found}
        experiment = _experiment_of(record)
        return cls(record.experiment, record.configuration, experiment, tuple(parts), evaluations, record)

    @property
    def title(self) -> str:
        """Unique among the runs of a store."""
        return f"{self.name} {self.record.id}" if self.record else self.name

    @property
    def identifier(self) -> str:
        """Unique on a page."""
        return self.record.id if self.record else "run"

    @property
    def present(self) -> list[tuple[Part, Artifact]]:
        """Everything that is there."""
        return [(part, part.artifact) for part in self.parts if part.artifact is not None]

    @cached_property
    def scores(self) -> list[Scores]:
        """Those that exist, in the order of the table."""
        return [scores_of(name, artifact) for name, artifact in self._evaluated.items()]

    @cached_property
    def answers(self) -> dict[str, Answers]:
        """Which questions each model answered right, where its predictions are still there."""
        read = {name: answers_of(artifact) for name, artifact in self._evaluated.items()}
        return {name: answers for name, answers in read.items() if answers}

    @property
    def _evaluated(self) -> dict[str, Artifact]:
        by_key = {part.key: artifact for part, artifact in self.present}
        return {name: by_key[key] for name, key in self.evaluations.items() if key in by_key}


def _settings_of(artifact: Artifact) -> Settings | None:
    identity = artifact.manifest.identity
    try:
        return STAGES[artifact.manifest.stage].settings.model_validate(identity["settings"])
    except (ValidationError, KeyError):
        return None


def _experiment_of(record: RunRecord) -> Experiment | None:
    try:
        return Experiment.model_validate(record.configuration)
    except ValidationError:
        return None
