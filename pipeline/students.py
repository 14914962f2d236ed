"""A finished student: the exported checkpoint of an experiment or a run, its scores, and who made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from pipeline.config import ConfigError, load
from pipeline.experiment import MAIN
from pipeline.graph import Node
from pipeline.history import History, RunRecord
from pipeline.session import Session
from pipeline.store import Store
from stages.contract import Artifact, open_artifact
from stages.contract.settings import ReinforcementSettings

_EVALUATION = "evaluation"
_REINFORCEMENT = "reinforcement"


@dataclass(frozen=True)
class Student:
    """An exported student.

    Attributes:
        experiment: its name, or that of a point of a sweep.
        artifact: the checkpoint.
        evaluations: of the student (`vlsi`) and of what it is compared with, by name; those that are there.
        maker: the run that made the checkpoint, if its record is still there.
    """

    experiment: str
    artifact: Artifact
    evaluations: dict[str, Artifact]
    maker: RunRecord | None

    @property
    def settings(self) -> ReinforcementSettings:
        """How it was loaded and how samples became tensors.

        Raises:
            ConfigError: another version of `vlsi` made it, whose settings are not these.
        """
        try:
            return ReinforcementSettings.model_validate(self.artifact.manifest.identity["settings"])
        except ValidationError as error:
            raise ConfigError(
                f"{self.artifact.place} was made by another version of vlsi, whose settings are others; "
                "give its folder with --model"
            ) from error


def find_student(run: str | None, overrides: Sequence[str]) -> Student:
    """The student of a run, or what is up to date of an experiment.

    Args:
        run: an id or an experiment, as `vlsi runs` shows them; None for the experiment.
        overrides: changes to the configuration, which also say where the store is.

    Raises:
        ConfigError: there is none; says how to make it.
    """
    return _of_run(run, Store(load(overrides).main.store)) if run else _up_to_date(Session.open(overrides))


def _of_run(run: str, store: Store) -> Student:
    history = History(store.artifacts)
    record = history.find(run)
    wanted = {key: store.artifacts / name for key, name in record.wanted.items()}
    artifact = open_artifact(wanted[_REINFORCEMENT]) if _REINFORCEMENT in wanted else None
    if artifact is None:
        raise ConfigError(f"run {record.id} of {record.experiment} has no finished student in {store.artifacts}")
    found = {_evaluated(key): open_artifact(p) for key, p in wanted.items() if key.startswith(_EVALUATION)}
    evaluations = {name: evaluation for name, evaluation in found.items() if evaluation}
    return Student(record.experiment, artifact, evaluations, _maker(artifact, history))


def _up_to_date(session: Session) -> Student:
    decisions = {decision.node.key: decision for decision in session.decide()}
    made = session.artifacts()
    node = session.graph.targets[MAIN].inputs["model"]
    assert isinstance(node, Node), "a student is made by reinforcement"
    if node.key not in made:
        why = decisions[node.key].reasons[0]
        raise ConfigError(
            f"{session.experiment.name} has no finished student ({node.key}: {why}); "
            f"run `{session.command('run')}`, name a run that `vlsi runs` lists, or give a checkpoint with --model"
        )
    evaluations = {name: made[target.key] for name, target in session.graph.targets.items() if target.key in made}
    return Student(session.experiment.name, made[node.key], evaluations, _maker(made[node.key], session.history))


def _evaluated(key: str) -> str:
    """Name of what a node `evaluation` or `evaluation@NAME` evaluates."""
    return key.partition("@")[2] or MAIN


def _maker(artifact: Artifact, history: History) -> RunRecord | None:
    return next((record for record in history.records() if record.id == artifact.manifest.run), None)
